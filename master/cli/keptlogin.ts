/** The session that `replctl login` keeps for the verbs after it. */
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

export interface KeptLogin {
  url: string;
  token: string;
  user: string;
  ca?: string;
}

export function loginFile(): string {
  const { XDG_CONFIG_HOME: config, HOME: home } = process.env;
  return join(config || join(home || homedir(), '.config'), 'replctl', 'session.json');
}

/** Undefined: nobody has logged in. */
export function keptLogin(): KeptLogin | undefined {
  try {
    const kept = JSON.parse(readFileSync(loginFile(), 'utf8')) as Partial<KeptLogin>;
    return typeof kept.url === 'string' && typeof kept.token === 'string' ? (kept as KeptLogin) : undefined;
  } catch {
    return undefined;
  }
}
