/** `replctl explain KIND[.FIELD]..`: what may be written into an object, as the master's own OpenAPI document says. */
import { nearest, UsageError } from '../../proto/cli.ts';
import { plain } from './format.ts';
import { kindOf } from './kinds.ts';
import { verb } from './verb.ts';

interface Schema {
  type?: string | string[];
  description?: string;
  enum?: unknown[];
  default?: unknown;
  items?: Schema;
  properties?: Record<string, Schema>;
  required?: string[];
  anyOf?: Schema[];
  const?: unknown;
  minimum?: number;
  maximum?: number;
}

/** Without what only says that it may be null. */
function core(schema: Schema): Schema {
  const branch = schema.anyOf?.find(({ type }) => type !== 'null');
  return branch?.properties === undefined ? schema : { ...branch, ...(schema.description !== undefined && { description: schema.description }) }; // prettier-ignore
}
function typeOf(given: Schema): string {
  const schema = core(given);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum !== undefined)
    return schema.enum.map((value) => (typeof value === 'string' ? value : JSON.stringify(value))).join('|');
  if (schema.anyOf !== undefined) return schema.anyOf.map(typeOf).join(' or ');
  const type = [schema.type ?? 'any'].flat().join('|');
  if (schema.items !== undefined) return `list of ${typeOf(schema.items)}`;
  const range = [schema.minimum, schema.maximum].some((bound) => bound !== undefined);
  return range ? `${type} ${schema.minimum ?? ''}..${schema.maximum ?? ''}` : type;
}

/** The field that `path` leads to. @throws UsageError with the fields that there are */
export function fieldOf(root: Schema, path: string[], kind: string): Schema {
  let at = core(root);
  path.forEach((part, depth) => {
    while (at.items !== undefined) at = core(at.items);
    const properties = at.properties ?? {};
    const next = Object.hasOwn(properties, part) ? properties[part] : undefined;
    if (next === undefined) {
      const known = Object.keys(properties);
      const near = nearest(part, known);
      const cure = near === undefined ? '' : `Did you mean ${near}? `;
      const where = [kind, ...path.slice(0, depth)].join('.');
      throw new UsageError(`${where} has no field ${part}.`, `${cure}Fields: ${known.join(', ') || 'none'}`);
    }
    at = core(next);
  });
  return at;
}

export const explain = verb(
  {
    name: 'explain',
    summary: 'Say what may be written into objects of a kind, or into one field of them.',
    operands: 'KIND[.FIELD]..',
    minOperands: 1,
    maxOperands: 1,
    flags: {},
    notes: 'Examples:\n  replctl explain replication.spec\n  replctl explain replication.spec.snapshotSchedules',
  },
  async (session, { operands: [typed = ''] }) => {
    const [name = '', ...path] = typed.split('.');
    const kind = kindOf(name);
    const owner = kind.owners === undefined ? '' : '{name}';
    const { paths } = await session.client.document<{
      paths: Record<string, { post?: { requestBody?: { content: Record<string, { schema: Schema }> } } }>;
    }>();
    const body = paths[`/api/v1${kind.path(owner)}`]?.post?.requestBody?.content['application/json']?.schema;
    if (body === undefined)
      throw new UsageError(`${kind.plural} are not written by people.`, 'See `replctl get --help`.');
    const field = fieldOf(body, path, kind.singular);
    const lines = [`${[kind.singular, ...path].join('.')}: ${typeOf(field)}`];
    if (field.description !== undefined) lines.push(`  ${field.description}`);
    let below = field;
    while (below.items !== undefined) below = core(below.items);
    const rows = Object.entries(below.properties ?? {}).map(([key, child]) => {
      const of = core(child);
      const isNeeded = below.required?.includes(key) === true;
      const preset = of.default === undefined ? '' : `default ${JSON.stringify(of.default)}`;
      const more = [isNeeded ? 'needed' : preset, of.description ?? ''].filter(Boolean).join('; ');
      return `  ${session.paint(key.padEnd(26), 'bold')} ${typeOf(of)}${more === '' ? '' : `\n      ${more}`}`;
    });
    if (rows.length > 0) lines.push('', ...rows);
    session.print(
      lines
        .map((line) =>
          line
            .split('\n')
            .map((one) => keepColours(one))
            .join('\n'),
        )
        .join('\n'),
    );
    return 0;
  },
);

/** Descriptions come from the master: they drive no terminal; our own colours stay. */
function keepColours(line: string): string {
  return line.split(/(\x1b\[\d+m)/).map((part) => (/^\x1b\[\d+m$/.test(part) ? part : plain(part))).join(''); // prettier-ignore
}
