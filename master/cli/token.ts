/**
 * `replctl token`: makes a token, for the API or for one agent to join with, and prints the secret, this once.
 */
import { optional, repeated, toggle, UsageError } from '../../proto/cli.ts';
import { parseChoice, parseDuration, parseName } from '../../proto/value.ts';
import type { NewTokenView, Role } from '../api/schema/token.ts';
import { stringify } from 'yaml';
import { verb } from './verb.ts';

const roles = ['admin', 'manager', 'operator', 'user'] as const satisfies Role[];

function parseNodes(text: string): number {
  if (/^[1-9]\d{0,3}$/.test(text) && Number(text) <= 1000) return Number(text);
  throw new Error('must be a number from 1 to 1000');
}

export const token = verb(
  {
    name: 'token',
    summary: 'Make a token and print it: --join for one agent to join, --role for the API. It is shown only now.',
    flags: {
      join: toggle('a join token: good for one agent, once, within a day'),
      nodes: optional('COUNT', 'of a join token: lets so many nodes in, such as those of a DaemonSet', parseNodes),
      life: optional('TIME', 'of a join token: good for so long, at most 366 days', parseDuration),
      role: optional('ROLE', `an API token with this role: ${roles.join('|')}`, parseChoice(...roles)),
      name: optional('NAME', 'name of the API token', parseName),
      group: repeated('GROUP', 'bind the API token to this protection group', parseName),
    },
    notes: 'Example:\n  (umask 077; replctl token --join > join.token)',
  },
  async (session, { options }) => {
    if (options.join === (options.role !== undefined))
      throw new UsageError('Which token: --join or --role?', 'Give --join, or --role ROLE --name NAME.');
    if (options.join && options.group.length > 0)
      throw new UsageError('--group is for API tokens.', 'Leave out --group, or give --role and --name.');
    if (!options.join && (options.nodes ?? options.life) !== undefined)
      throw new UsageError('--nodes and --life are for join tokens.', 'Leave them out, or give --join.');
    const join = { kind: 'join', nodes: options.nodes, lifeSeconds: options.life };
    const groups = options.group.length > 0 ? { groups: options.group } : {};
    const body = options.join ? join : { kind: 'api', role: options.role, name: options.name, ...groups };
    const made = await session.client.send<NewTokenView>('POST', '/tokens', body);
    if (session.output === 'json') session.print(JSON.stringify(made, null, 2));
    else if (session.output === 'yaml') session.print(stringify(made));
    else session.print(made.token);
    return 0;
  },
);
