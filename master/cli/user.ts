/** `replctl user` and `replctl sink`: what REST takes as bodies of their own, and holds secrets that are no arguments. */
import { optional, repeated, toggle, UsageError, withDefault } from '../../proto/cli.ts';
import { parseChoice, parseName, parseText } from '../../proto/value.ts';
import type { EventView } from '../api/schema/event.ts';
import { ApiProblem } from './client.ts';
import { printObject } from './get.ts';
import { kindOf } from './kinds.ts';
import { nameOperand } from './replication.ts';
import { readSecret, secretOf } from './secret.ts';
import { verb } from './verb.ts';

const levels = ['FATAL', 'ERROR', 'WARNING', 'INFO', 'TRACE'] as const satisfies EventView['level'][];

export const user = verb(
  {
    name: 'user',
    summary: 'Add a user, or change role, groups, name shown or password of one. Its sessions end when rights change.',
    operands: 'NAME',
    minOperands: 1,
    maxOperands: 1,
    flags: {
      role: optional('ROLE', 'manager|operator|user; needed for a new one', parseChoice('manager', 'operator', 'user')),
      group: repeated('GROUP', 'bind to this protection group', parseName),
      'all-groups': toggle('bind to no groups any more'),
      'display-name': optional('TEXT', 'name shown', parseText),
      password: toggle('give an existing one another password'),
      'password-file': optional('FILE', 'file that holds the password; without: it is asked for', parseText),
      'end-sessions': toggle('end all its sessions'),
    },
    notes: 'Examples:\n  replctl user kim --role operator --group shop\n  replctl user kim --password',
  },
  async (session, { options, operands }) => {
    const { client } = session;
    const name = nameOperand(operands, 'user');
    if (options.group.length > 0 && options['all-groups'])
      throw new UsageError('--group and --all-groups exclude each other.', 'Give one of them.');
    const bound = options['all-groups'] ? { groups: null } : options.group.length > 0 ? { groups: options.group } : {};
    const settings = {
      ...(options.role && { role: options.role }),
      ...bound,
      ...(options['display-name'] !== undefined && { displayName: options['display-name'] }),
    };
    const exists = await client.get(`/users/${name}`).then(
      () => true,
      (error: unknown) => {
        if (error instanceof ApiProblem && error.problem.status === 404) return false;
        throw error;
      },
    );
    if (!exists && options.role === undefined)
      throw new UsageError(`There is no user ${name} yet.`, 'Give --role ROLE to add it.');
    const asks = !exists || options.password || options['password-file'] !== undefined;
    const password = asks ? await secretOf(session, options['password-file'], 'password-file', 'password') : undefined;
    const body = { ...settings, ...(password !== undefined && { password }) };
    let object: object | undefined;
    if (!exists) object = await client.send<object>('POST', '/users', { name, ...body });
    else if (Object.keys(body).length > 0) object = await client.send<object>('PATCH', `/users/${name}`, body);
    if (options['end-sessions']) object = await client.send<object>('POST', `/users/${name}/actions/endsessions`);
    if (object === undefined)
      throw new UsageError('What of it is to change?', '`replctl user --help` lists the flags.');
    printObject(session, kindOf('users'), object, '', exists ? 'changed' : 'created');
    return 0;
  },
);

export const sink = verb(
  {
    name: 'sink',
    summary: 'Send events from now on to a webhook or a syslog server.',
    operands: 'NAME',
    minOperands: 1,
    maxOperands: 1,
    flags: {
      to: optional('URL', 'https://HOST/PATH, syslog+tls://HOST:PORT, syslog+tcp://, syslog+udp://', parseText),
      'to-file': optional('FILE', 'file that holds the URL: those of chat services are secrets', parseText),
      level: withDefault('LEVEL', 'WARNING', `this one and worse: ${levels.join('|')}`, parseChoice(...levels)),
      'secret-file': optional('FILE', 'of a webhook: file with the secret that signs the body', parseText),
    },
    notes:
      'Examples:\n  replctl sink siem --to syslog+tls://logs.example.com:6514 --level INFO\n  replctl get sinks; replctl delete sink siem',
  },
  async (session, { options, operands }) => {
    const name = nameOperand(operands, 'sink');
    const file = options['to-file'];
    if ((options.to === undefined) === (file === undefined))
      throw new UsageError('Where to: --to or --to-file?', 'Give --to URL, or --to-file FILE; one of them.');
    const url = options.to ?? readSecret(file ?? '', 'to-file').trim();
    const secret = options['secret-file'] && readSecret(options['secret-file'], 'secret-file');
    const body = { name, url, level: options.level, ...(secret && { secret }) };
    printObject(session, kindOf('sinks'), await session.client.send<object>('POST', '/sinks', body), '', 'created');
    return 0;
  },
);
