/**
 * Dangerous verbs ask for the object's name to be typed. Without a terminal to ask on, and without --yes, they are
 * refused: a script must say that it means it.
 */
import { createInterface } from 'node:readline/promises';
import { toggle } from '../../proto/cli.ts';
import type { Session } from './verb.ts';

export const confirmFlags = { yes: { ...toggle('do not ask for the name to be typed'), short: 'y' } };

export async function confirmed(session: Session, yes: boolean, name: string, question: string): Promise<boolean> {
  if (yes) return true;
  session.note(question);
  if (!process.stdin.isTTY) {
    session.note('Refused: this is not a terminal to type the name on. Add --yes if it is meant.');
    return false;
  }
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const answer = await terminal.question(`Type ${name} to go on: `, { signal: session.signal });
    if (answer.trim() === name) return true;
    session.note('That is not the name: nothing was done.');
    return false;
  } finally {
    terminal.close();
  }
}
