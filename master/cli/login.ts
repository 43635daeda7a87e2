/**
 * `replctl login` and `logout`: a session of a user, kept in a file of the caller's own until it ends.
 *
 * The file (0600) holds address, secret and, where one was given, the CA. The secret goes to that address alone; what is given by
 * flags or environment goes before it.
 */
import { chmodSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { optional, required } from '../../proto/cli.ts';
import { parseName, parseText } from '../../proto/value.ts';
import type { SessionView } from '../api/schema/user.ts';
import { keptLogin, loginFile, type KeptLogin } from './keptlogin.ts';
import { secretOf } from './secret.ts';
import { verb } from './verb.ts';

export const login = verb(
  {
    name: 'login',
    summary: 'Log in as a user; the verbs that follow act with its rights, until logout or an idle half hour.',
    flags: {
      user: { ...required('NAME', 'who logs in', parseName), short: 'u' },
      'password-file': optional('FILE', 'file that holds the password; without: it is asked for', parseText),
    },
    notes: 'Example:\n  replctl login --url https://dr.example.com:8080 --ca-file ca.pem -u kim',
  },
  async (session, { options }) => {
    const password = await secretOf(session, options['password-file'], 'password-file', 'password');
    const made = await session.client.send<SessionView>('POST', '/session', { user: options.user, password });
    const path = loginFile();
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    const ca = options['ca-file'] === undefined ? {} : { ca: readFileSync(options['ca-file'], 'utf8') };
    const kept: KeptLogin = { url: session.client.url, token: made.token ?? '', user: options.user, ...ca };
    writeFileSync(`${path}.new`, `${JSON.stringify(kept)}\n`, { mode: 0o600 });
    chmodSync(`${path}.new`, 0o600);
    renameSync(`${path}.new`, path);
    const groups = made.spec.groups === null ? '' : `, bound to ${made.spec.groups.join(', ')}`;
    session.print(`logged in at ${session.client.url} as ${made.spec.user} (${made.spec.role}${groups})`);
    return 0;
  },
);

export const logout = verb({ name: 'logout', summary: 'End the session of login.', flags: {} }, async (session) => {
  const kept = keptLogin();
  if (kept === undefined) {
    session.note('Nobody is logged in.');
    return 1;
  }
  rmSync(loginFile(), { force: true });
  // One that has ended by itself is as good.
  if (kept.url === session.client.url)
    await session.client.send('DELETE', '/session').catch((error: unknown) => session.note(String(error)));
  session.print(`logged out of ${kept.url}`);
  return 0;
});
