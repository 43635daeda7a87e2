/**
 * `replctl apply -f FILE`: makes the objects of a file so, each created or brought to what the file says.
 *
 * Every document is read and checked for kind and name before the first is sent; after that each is sent in the file's
 * order and the first refusal ends it, with what was done before it already said. A replication is put whole: what the
 * file leaves out gets its default.
 */
import { readFileSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import { parseAllDocuments } from 'yaml';
import { required, UsageError } from '../../proto/cli.ts';
import { parseName, parseText } from '../../proto/value.ts';
import type { Metadata } from '../resources.ts';
import { ApiProblem, type Client } from './client.ts';
import { printObject } from './get.ts';
import { kindOf, type Kind } from './kinds.ts';
import { verb } from './verb.ts';

/** An object as people write it. */
export interface Written {
  kind: string;
  metadata: { name: string };
  spec?: { replication?: unknown };
}
interface Stored {
  metadata: { name: string };
  spec: unknown;
}
const appliable: Record<string, string> = {
  Replication: 'replications',
  Snapshot: 'snapshots',
  StorageClass: 'storageclasses',
  Group: 'groups',
  RecoverySchedule: 'recoveryschedules',
};

/** All objects of a YAML or JSON text, lists taken apart. @throws UsageError naming the document */
export function readDocuments(
  text: string,
  file: string,
  kinds: readonly string[] = Object.keys(appliable),
): Written[] {
  const documents = parseAllDocuments(text).flatMap((document, i) => {
    const where = `${file}, document ${i + 1}`;
    const wrong = (fault: Error) => new UsageError(`${where}: ${fault.message}`, 'Correct the YAML or JSON.');
    const [fault] = [...document.errors, ...document.warnings];
    if (fault !== undefined) throw wrong(fault);
    let value: { items?: unknown } | null;
    try {
      value = document.toJS() as typeof value;
    } catch (error) {
      // An alias of nothing, or so many that they would fill the memory.
      throw wrong(error as Error);
    }
    const values: unknown[] = value === null ? [] : Array.isArray(value.items) ? value.items : [value];
    return values.map((object) => checked(object, where, kinds));
  });
  if (documents.length === 0)
    throw new UsageError(`${file} holds no object.`, 'Write objects with kind, metadata.name, spec.');
  return documents;
}
function checked(object: unknown, where: string, kinds: readonly string[]): Written {
  const { kind, metadata, spec } = (typeof object === 'object' && object !== null ? object : {}) as Partial<Written>;
  const known = kinds.join(', ');
  if (kind === undefined || !kinds.includes(kind))
    throw new UsageError(
      `${where}: kind is ${JSON.stringify(kind) ?? 'missing'}.`,
      `Kinds that can be applied: ${known}`,
    );
  try {
    parseName(metadata?.name ?? '');
    if (kind === 'Snapshot') parseName(typeof spec?.replication === 'string' ? spec.replication : '');
  } catch (error) {
    const field = kind === 'Snapshot' ? 'metadata.name or spec.replication' : 'metadata.name';
    throw new UsageError(`${where}: ${field} ${(error as Error).message}.`, 'Correct the file.');
  }
  return object as Written;
}

/** Only what people decide: a file made by `get -o yaml` holds a status and a version that are old by now. */
export function decided({ metadata, spec, ...rest }: Written): Written {
  const { kind } = rest;
  const { uid, generation, resourceVersion, creationTimestamp, ...own } = metadata as Partial<Metadata> &
    Written['metadata'];
  return { kind, metadata: own, ...(spec !== undefined && { spec }) };
}
function differs(before: Stored, after: Stored): boolean {
  return !isDeepStrictEqual(decided(before as Written & Stored), decided(after as Written & Stored));
}

export async function put(client: Client, kind: Kind, owner: string, written: Written): Promise<[Stored, string]> {
  const object = decided(written);
  const path = `${kind.path(owner)}/${object.metadata.name}`;
  let before: Stored;
  try {
    before = await client.get<Stored>(path);
  } catch (error) {
    if (!(error instanceof ApiProblem && error.problem.status === 404)) throw error;
    const { replication, ...settings } = object.spec ?? {};
    const body = owner === '' ? object : { name: object.metadata.name, ...settings };
    return [await client.send<Stored>('POST', kind.path(owner), body), 'created'];
  }
  const method = kind.plural === 'replications' ? 'PUT' : 'PATCH';
  const after = await client.send<Stored>(method, path, object);
  return [after, differs(before, after) ? 'configured' : 'unchanged'];
}

export const apply = verb(
  {
    name: 'apply',
    summary: `Create or change what a file describes: ${Object.keys(appliable).join(', ')}; YAML or JSON, any number.`,
    flags: { filename: { ...required('FILE', 'file to read; - is standard input', parseText), short: 'f' } },
    notes: 'Example:\n  replctl get replication orders -o yaml > orders.yaml; edit it; replctl apply -f orders.yaml',
  },
  async (session, { options }) => {
    const objects = readDocuments(readText(options.filename), options.filename);
    for (const object of objects) {
      const kind = kindOf(appliable[object.kind] ?? '');
      const owner = kind.plural === 'snapshots' ? String(object.spec?.replication) : '';
      try {
        const [stored, done] = await put(session.client, kind, owner, object);
        printObject(session, kind, stored, owner, done);
      } catch (error) {
        session.note(`${kind.singular}/${object.metadata.name}:`);
        throw error;
      }
    }
    return 0;
  },
);

export function readText(file: string): string {
  try {
    return readFileSync(file === '-' ? 0 : file, 'utf8');
  } catch (error) {
    throw new UsageError(
      `${file} cannot be read: ${(error as Error).message}`,
      'Give --filename FILE, a file you may read.',
    );
  }
}
