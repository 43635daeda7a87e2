/**
 * `replctl get` and `replctl describe`: objects as tables, JSON, YAML or names, once or as they change.
 *
 * JSON and YAML are what the API answers, untouched; a list over several owners is put together from theirs.
 */
import { stringify } from 'yaml';
import { optional, toggle, UsageError } from '../../proto/cli.ts';
import { parseChoice, parseText } from '../../proto/value.ts';
import type { ListView } from '../api/schema.ts';
import type { EventView } from '../api/schema/event.ts';
import type { Condition } from '../resources.ts';
import { withQuery, type Client } from './client.ts';
import { age, plain, table } from './format.ts';
import { kindOf, kinds, listOf, type Kind } from './kinds.ts';
import { verb, type Session } from './verb.ts';

/* Written out, not imported: a command should not load the validation of the whole API to start. */
const levels = ['FATAL', 'ERROR', 'WARNING', 'INFO', 'TRACE'] as const satisfies EventView['level'][];
const kindList = `Kinds: ${kinds.map(({ plural, short }) => (short.length === 0 ? plural : `${plural} (${short.join(', ')})`)).join(', ')}`;
const examples = `
Examples:
  replctl get replications                 all of a kind
  replctl get replication orders -o yaml   one
  replctl get snapshots orders             those of one replication
  replctl get snapshot orders/monday       one of them
  replctl get points orders                what can be recovered
  replctl get grouppoints shop             moments that all members of a group have in common
  replctl get events --level ERROR -w      go on as they happen`;

/** What was asked for: a kind, perhaps whose, perhaps which one. `KIND/NAME` is taken as well as `KIND NAME`. */
export interface Selection {
  kind: Kind;
  owner: string;
  name: string;
}
export function select(operands: string[]): Selection {
  const first = operands[0] ?? '';
  const slash = first.indexOf('/');
  const given = slash < 0 ? operands : [first.slice(0, slash), first.slice(slash + 1), ...operands.slice(1)];
  const kind = kindOf(given[0] ?? '');
  const below = kind.operands === 'REPLICATION[/NAME]';
  const rest = given.slice(1).flatMap((operand) => (below ? operand.split('/') : operand));
  const most = kind.operands === '' ? 0 : below ? 2 : 1;
  if (rest.length > most) throw new UsageError(`Unexpected argument ${JSON.stringify(rest[most])}.`, formOf(kind));
  const wrong = rest.find((name) => !isName(name));
  if (wrong !== undefined) throw new UsageError(`${JSON.stringify(wrong)} is not a name.`, formOf(kind));
  if ((kind.operands === 'REPLICATION' || kind.operands === 'GROUP') && rest.length === 0)
    throw new UsageError(`${kind.operands} is missing.`, formOf(kind));
  if (kind.operands === 'NAME') return { kind, owner: '', name: rest[0] ?? '' };
  return { kind, owner: rest[0] ?? '', name: rest[1] ?? '' };
}
function isName(text: string): boolean {
  return /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(text);
}
function formOf(kind: Kind): string {
  const optional = kind.operands === 'NAME' || kind.operands === 'AGENT' || kind.operands === 'REPLICATION[/NAME]';
  return `Form: ${kind.plural} ${optional ? `[${kind.operands}]` : kind.operands}`.trimEnd();
}

export function printItems(session: Session, kind: Kind, items: unknown[], owner: string, headings = true): void {
  const columns = kind.columns.filter(({ wide }) => !wide || session.output === 'wide');
  const nowMs = Date.now();
  const rows = items.map((item) => columns.map(({ cell }) => cell({ owner, ...(item as object) }, nowMs)));
  const text = table(columns.map(({ heading }) => heading), rows, session.paint); // prettier-ignore
  session.print(headings ? text : text.slice(text.indexOf('\n') + 1));
}
/** One object after a change to it: as asked for with -o, or as one line that says what was done. */
export function printObject(session: Session, kind: Kind, object: unknown, owner: string, done: string): void {
  if (session.output === 'json') session.print(JSON.stringify(object, null, 2));
  else if (session.output === 'yaml') session.print(stringify(object));
  else if (session.output === 'name') session.print(`${kind.singular}/${kind.key(object, owner)}`);
  else session.print(`${kind.singular}/${kind.key(object, owner)} ${done}`);
}
function printList(session: Session, kind: Kind, list: ListView<unknown>, owner: string): void {
  const names = list.items.map(
    (item) => `${kind.singular}/${kind.key(item, (item as { owner?: string }).owner ?? ownerOf(item, owner))}`,
  );
  if (session.output === 'json') session.print(JSON.stringify(list, null, 2));
  else if (session.output === 'yaml') session.print(stringify(list));
  else if (session.output === 'name') names.forEach((name) => session.print(name));
  else if (list.items.length === 0) session.note(`No ${kind.plural} found.`);
  // The newest next to the prompt, and before those that a watch brings.
  else printItems(session, kind, kind.plural === 'events' ? list.items.toReversed() : list.items, owner);
}
function ownerOf(item: unknown, owner: string): string {
  return (item as { spec?: { replication?: string } }).spec?.replication ?? owner;
}

export const get = verb(
  {
    name: 'get',
    summary: `Show objects. ${kindList}.`,
    operands: 'KIND [NAME]',
    minOperands: 1,
    flags: {
      selector: { ...optional('LABELS', 'only those with these labels, such as app=shop', parseText), short: 'l' },
      watch: { ...toggle('go on and show each change'), short: 'w' },
      level: optional('LEVEL', `events of this level only: ${levels.join('|')}`, parseChoice(...levels)),
      since: optional('TIME', 'events since this time', parseText),
      from: optional('TIME', 'points with a source time from here on', parseText),
      to: optional('TIME', 'points with a source time up to here', parseText),
    },
    notes: examples.trimStart(),
  },
  async (session, { options, operands }) => {
    const { kind, owner, name } = select(operands);
    const only = (flag: 'level' | 'since' | 'from' | 'to', ...plurals: string[]) => {
      if (options[flag] !== undefined && !plurals.includes(kind.plural))
        throw new UsageError(`--${flag} is for ${plurals.join(' and ')} only.`, `Leave out --${flag}.`);
      return options[flag];
    };
    const query = {
      labelSelector: options.selector,
      level: only('level', 'events'),
      since: only('since', 'events'),
      from: only('from', 'points', 'grouppoints'),
      to: only('to', 'points', 'grouppoints'),
    };
    if (name !== '' && kind.plural === 'tokens')
      throw new UsageError('Tokens are listed, not read one by one.', 'Leave out the name.');
    if (name !== '') {
      const object = await session.client.get<unknown>(`${kind.path(owner)}/${name}`);
      if (session.output === 'table' || session.output === 'wide') printItems(session, kind, [object], owner);
      else printObject(session, kind, object, owner, '');
      if (!options.watch) return 0;
    }
    if (kind.owners === undefined || owner !== '' || !options.watch) {
      const list = await listOf(session.client, kind, owner, query);
      if (name === '') printList(session, kind, list, owner);
      if (options.watch) await printChanges(session, kind, owner, name, withQuery(kind.path(owner), query), list);
      return 0;
    }
    throw new UsageError(`--watch of ${kind.plural} needs whose.`, formOf(kind));
  },
);

async function printChanges(
  session: Session,
  kind: Kind,
  owner: string,
  name: string,
  path: string,
  { metadata }: ListView<unknown>,
): Promise<void> {
  for await (const { type, object } of session.client.watch<object>(path, metadata.resourceVersion, session.signal)) {
    if (name !== '' && (object as { metadata?: { name: string } }).metadata?.name !== name) continue;
    if (type === 'DELETED') printObject(session, kind, object, owner, 'deleted');
    else if (session.output === 'table' || session.output === 'wide') printItems(session, kind, [object], owner, false);
    else printObject(session, kind, object, owner, '');
  }
}

/** `Name: value` lines, nested by indentation; empty lists and unknowns are `-`. */
export function outline(value: object, indent = ''): string[] {
  return Object.entries(value).flatMap(([key, field]: [string, unknown]) => {
    const label = `${indent}${key}:`;
    if (Array.isArray(field) && field.some((item) => typeof item === 'object' && item !== null))
      return [
        label,
        ...field.flatMap((item: object, i) => [`${indent}  - ${i + 1}`, ...outline(item, `${indent}    `)]),
      ];
    if (Array.isArray(field)) return [`${label.padEnd(28)} ${plain(field.join(', ') || '-')}`];
    if (typeof field === 'object' && field !== null) return [label, ...outline(field, `${indent}  `)];
    const shown = field === null || field === undefined || field === '' ? '-' : `${field as string | number}`;
    return [`${label.padEnd(28)} ${plain(shown)}`];
  });
}

export const describe = verb(
  {
    name: 'describe',
    summary: `Show everything about one object, with its conditions and newest events. ${kindList}.`,
    operands: 'KIND NAME',
    minOperands: 1,
    flags: {},
  },
  async (session, { operands }) => {
    const { kind, owner, name } = select(operands);
    const single = name !== '';
    const items = single
      ? [await session.client.get<object>(`${kind.path(owner)}/${name}`)]
      : (await listOf(session.client, kind, owner, {})).items;
    for (const item of items) session.print(`${(await described(session, kind, owner, item as object)).join('\n')}\n`);
    if (items.length === 0) session.note(`No ${kind.plural} found.`);
    return 0;
  },
);

async function described(session: Session, kind: Kind, owner: string, item: object): Promise<string[]> {
  const { status, ...rest } = item as { kind?: string; status?: { conditions?: Condition[] } };
  const { conditions, ...facts } = status ?? {};
  const lines = outline({ ...rest, ...(status !== undefined && { status: facts }) });
  if (conditions !== undefined && conditions.length > 0) {
    const nowMs = Date.now();
    const rows = conditions.map(({ type, status, reason, message, lastTransitionTime }) => {
      return [type, status, reason, age((nowMs - Date.parse(lastTransitionTime)) / 1000), message];
    });
    lines.push('conditions:', indented(table(['TYPE', 'STATUS', 'REASON', 'SINCE', 'MESSAGE'], rows, session.paint)));
  }
  const events =
    rest.kind === undefined
      ? []
      : await eventsOf(session.client, `${rest.kind}/${kind.key(item, ownerOf(item, owner))}`);
  if (events.length > 0) {
    const rows = events.map(({ time, level, count, code, message }) => [time, level, String(count), code, message]);
    lines.push('events:', indented(table(['TIME', 'LEVEL', 'COUNT', 'CODE', 'MESSAGE'], rows, session.paint)));
  }
  return lines;
}
function indented(text: string): string {
  return text.trimEnd().replaceAll(/^/gm, '  ');
}
async function eventsOf(client: Client, object: string): Promise<EventView[]> {
  const { items } = await client.list<EventView>('/events');
  const own = items.filter((event) => event.object === object);
  return own.sort((a, b) => Date.parse(a.time) - Date.parse(b.time)).slice(-10);
}
