/**
 * `replctl token`: makes a token, for the API or for one agent to join with, and prints the secret, this once.
 */
import { optional, toggle, UsageError } from '../../proto/cli.ts';
import { parseChoice, parseName } from '../../proto/value.ts';
import type { NewTokenView, Role } from '../api/schema/token.ts';
import { stringify } from 'yaml';
import { verb } from './verb.ts';

const roles = ['admin', 'manager', 'operator', 'user'] as const satisfies Role[];

export const token = verb(
  {
    name: 'token',
    summary: 'Make a token and print it: --join for one agent to join, --role for the API. It is shown only now.',
    flags: {
      join: toggle('a join token: good for one agent, once'),
      role: optional('ROLE', `an API token with this role: ${roles.join('|')}`, parseChoice(...roles)),
      name: optional('NAME', 'name of the API token', parseName),
    },
    notes: 'Example:\n  (umask 077; replctl token --join > join.token)',
  },
  async (session, { options }) => {
    if (options.join === (options.role !== undefined))
      throw new UsageError('Which token: --join or --role?', 'Give --join, or --role ROLE --name NAME.');
    const body = options.join ? { kind: 'join' } : { kind: 'api', role: options.role, name: options.name };
    const made = await session.client.send<NewTokenView>('POST', '/tokens', body);
    if (session.output === 'json') session.print(JSON.stringify(made, null, 2));
    else if (session.output === 'yaml') session.print(stringify(made));
    else session.print(made.token);
    return 0;
  },
);
