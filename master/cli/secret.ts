/**
 * Secrets that people give: from a file, or typed on a terminal that does not show them. Never as an argument, which every
 * user of the machine could read.
 */
import { readFileSync } from 'node:fs';
import { UsageError } from '../../proto/cli.ts';
import type { Session } from './verb.ts';

/** @param what for people, such as password @throws UsageError without a file and a terminal */
export async function secretOf(
  session: Session,
  file: string | undefined,
  flag: string,
  what: string,
): Promise<string> {
  if (file !== undefined) return readSecret(file, flag);
  const { stdin, stderr } = process;
  if (!stdin.isTTY)
    throw new UsageError(
      `This is not a terminal to type the ${what} on.`,
      `Give --${flag} FILE (- is standard input).`,
    );
  // Before the question: who types ahead is not shown either.
  stdin.setRawMode(true);
  try {
    stderr.write(`${what[0]?.toUpperCase() ?? ''}${what.slice(1)}: `);
    return await typed(stdin, session.signal);
  } finally {
    stdin.setRawMode(false);
    stdin.pause();
    stderr.write('\n');
  }
}

export function readSecret(file: string, flag: string): string {
  try {
    return readFileSync(file === '-' ? 0 : file, 'utf8').replace(/\r?\n$/, '');
  } catch (error) {
    throw new UsageError(
      `${file} cannot be read: ${(error as Error).message}`,
      `Give --${flag} FILE, one you may read.`,
    );
  }
}

function typed(stdin: NodeJS.ReadStream, signal: AbortSignal): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    const end = (work: () => void): void => {
      stdin.off('data', take);
      signal.removeEventListener('abort', abort);
      work();
    };
    const abort = (): void => end(() => reject(new Error('interrupted')));
    // Raw: the terminal hands over what it would have done by itself.
    const take = (data: Buffer): void => {
      for (const key of data.toString()) {
        if (key === '\r' || key === '\n') return end(() => resolve(text));
        if (key === '\u0003') return end(() => process.kill(process.pid, 'SIGINT'));
        if (key === '\u0004') return end(() => reject(new Error('nothing was typed')));
        if (key === '\u007f' || key === '\b') text = [...text].slice(0, -1).join('');
        else if (key === '\u0015') text = '';
        else text += key;
      }
    };
    signal.addEventListener('abort', abort, { once: true });
    stdin.on('data', take);
    stdin.resume();
  });
}
