/**
 * What the API server holds of our objects, as this master has seen it: fed by watches and by the answers to its own writes,
 * in whatever order they come. An older version never takes the place of a newer one, and what was deleted does not come
 * back with a late message (versions of one resource are numbers that grow; a uid never comes again).
 *
 * Figures of a status that wait to be written (volatile.ts) lie over what the API server has: this master is the only writer of
 * statuses while it leads.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Kind, Resources } from '../resources.ts';
import { groupMoved, type Change } from '../store.ts';
import { decode, keyOf, type CustomResource, type ObjectMeta } from './codec.ts';

interface Entry {
  meta: ObjectMeta;
  /** JSON of the object; undefined: made by a person, not taken on yet. */
  body: string | undefined;
  raw: CustomResource;
  /** The status in `body` is newer than the API server's. */
  dirty: boolean;
  /** All of that only says that what was so still is. */
  still: boolean;
  /** How often figures were laid over it. */
  overlays: number;
  writtenMs: number;
}

export interface Cache {
  get<K extends Kind>(kind: K, key: string): Resources[K] | undefined;
  list<K extends Kind>(kind: K): Resources[K][];
  each<K extends Kind>(kind: K, after?: string): Iterable<Resources[K]>;
  replicationsOf(agent: string): Resources['Replication'][];
  replicationsIn(group: string): Resources['Replication'][];
  snapshotsOf(replication: string): Resources['Snapshot'][];
  revision(kind: Kind): number;
  /** Metadata as the API server has it. */
  meta(kind: Kind, key: string): ObjectMeta | undefined;
  /** Every resource of the kind with its key, also those that are not taken on yet. */
  resources(kind: Kind): { key: string; raw: CustomResource }[];
  resource(kind: Kind, key: string): CustomResource | undefined;
  put(kind: Kind, resource: CustomResource): void;
  /** A whole list: what is not in it is gone. */
  replace(kind: Kind, resources: CustomResource[]): void;
  remove(kind: Kind, resource: Pick<CustomResource, 'metadata'>): void;
  /** Lays a status over what is there, to be written later; `still`: see volatile.ts. */
  overlay<K extends Kind>(kind: K, key: string, object: Resources[K], still: boolean): void;
  /** Keys with figures to be written whose last write is older than `beforeMs`, of what is still than `stillBeforeMs`. */
  due(beforeMs: number, stillBeforeMs: number): { kind: Kind; key: string; overlays: number }[];
  /** How many objects have figures to be written. */
  readonly waiting: number;
  /**
   * The API server has the status now, and answered with the resource; it is the one after so many overlays, absent: whatever lies over
   * it. The watch may have told of that write before, while figures still lay over what was there.
   */
  written(kind: Kind, answer: CustomResource, nowMs: number, overlays?: number): void;
}

const maxGone = 10_000;

export function objectCache(
  onNews: (change: Omit<Change, 'version'>) => void,
  onResource: (kind: Kind, key: string, object: Resources[Kind] | undefined) => void,
): Cache {
  const kinds = new Map<Kind, Map<string, Entry>>();
  const gone = new Set<string>();
  const revisions = new Map<Kind, number>();
  const onChange = (change: Omit<Change, 'version'>): void => {
    revisions.set(change.kind, (revisions.get(change.kind) ?? 0) + 1);
    onNews(change);
  };
  const of = (kind: Kind): Map<string, Entry> => {
    let entries = kinds.get(kind);
    if (!entries) kinds.set(kind, (entries = new Map<string, Entry>()));
    return entries;
  };
  const parse = <K extends Kind>(body: string): Resources[K] => JSON.parse(body) as Resources[K];

  function put(kind: Kind, raw: CustomResource): void {
    const key = keyOf(kind, raw.metadata.name);
    const entries = of(kind);
    const known = entries.get(key);
    const { uid, resourceVersion } = raw.metadata;
    if (gone.has(uid)) return;
    if (known && known.meta.uid !== uid) remove(kind, known.raw);
    else if (known && BigInt(known.meta.resourceVersion) >= BigInt(resourceVersion)) return;
    const before = known?.meta.uid === uid && known.body !== undefined ? parse(known.body) : undefined;
    const object = decode(kind, raw);
    // Ours is newer than what comes back from the API server.
    if (object && before && known?.dirty === true) object.status = before.status;
    const body = object && JSON.stringify(object);
    const same = known?.meta.uid === uid ? known : undefined;
    const { overlays = 0, writtenMs = -Infinity, dirty = false, still = false } = same ?? {};
    const isDirty = dirty && before !== undefined;
    entries.set(key, { meta: raw.metadata, raw, body, dirty: isDirty, still, overlays, writtenMs });
    onResource(kind, key, object);
    if (object && differs(before, object)) onChange(changeOf(before ? 'MODIFIED' : 'ADDED', kind, key, object, before));
  }
  function remove(kind: Kind, { metadata }: Pick<CustomResource, 'metadata'>): void {
    const key = keyOf(kind, metadata.name);
    const known = of(kind).get(key);
    gone.add(metadata.uid);
    if (gone.size > maxGone) for (const uid of [...gone].slice(0, maxGone / 2)) gone.delete(uid);
    if (known?.meta.uid !== metadata.uid) return;
    of(kind).delete(key);
    onResource(kind, key, undefined);
    if (known.body === undefined) return;
    const object = parse(known.body);
    object.metadata.resourceVersion = metadata.resourceVersion;
    onChange(changeOf('DELETED', kind, key, object, undefined));
  }

  return {
    put,
    remove,
    get<K extends Kind>(kind: K, key: string) {
      const body = of(kind).get(key)?.body;
      return body === undefined ? undefined : parse<K>(body);
    },
    list<K extends Kind>(kind: K) {
      const entries = [...of(kind)].filter(([, { body }]) => body !== undefined);
      return entries.sort(([a], [b]) => (a < b ? -1 : 1)).map(([, { body }]) => parse<K>(body ?? ''));
    },
    *each<K extends Kind>(kind: K, after = '') {
      const keys = [...of(kind)].filter(([key, { body }]) => key > after && body !== undefined).map(([key]) => key);
      for (const key of keys.sort()) yield parse<K>(of(kind).get(key)?.body ?? '');
    },
    replicationsOf: (agent) =>
      [...of('Replication')]
        .filter(([, { raw, body }]) => {
          const { source } = raw.spec as { source?: { agent?: string } };
          return body !== undefined && source?.agent === agent;
        })
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([, { body }]) => parse<'Replication'>(body ?? '')),
    replicationsIn: (group) =>
      [...of('Replication')]
        .filter(([, { raw, body }]) => body !== undefined && (raw.spec as { group?: string }).group === group)
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([, { body }]) => parse<'Replication'>(body ?? '')),
    snapshotsOf: (replication) =>
      [...of('Snapshot')]
        .filter(([key, { body }]) => body !== undefined && key.startsWith(`${replication}/`))
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([, { body }]) => parse<'Snapshot'>(body ?? '')),
    revision: (kind) => revisions.get(kind) ?? 0,
    meta: (kind, key) => of(kind).get(key)?.meta,
    resource: (kind, key) => of(kind).get(key)?.raw,
    resources: (kind) => [...of(kind)].map(([key, { raw }]) => ({ key, raw })),
    replace(kind, resources) {
      const present = new Set(resources.map(({ metadata }) => metadata.uid));
      for (const { raw } of [...of(kind).values()]) if (!present.has(raw.metadata.uid)) remove(kind, raw);
      for (const resource of resources) put(kind, resource);
    },
    overlay(kind, key, object, isStill) {
      const entry = of(kind).get(key);
      if (!entry) return;
      const still = isStill && (entry.still || !entry.dirty);
      Object.assign(entry, { body: JSON.stringify(object), dirty: true, still, overlays: entry.overlays + 1 });
      onChange(changeOf('MODIFIED', kind, key, object, undefined));
    },
    get waiting() {
      let waiting = 0;
      for (const entries of kinds.values()) for (const { dirty } of entries.values()) waiting += Number(dirty);
      return waiting;
    },
    due(beforeMs, stillBeforeMs) {
      const found: { kind: Kind; key: string; overlays: number }[] = [];
      for (const [kind, entries] of kinds)
        for (const [key, { dirty, still, writtenMs, overlays }] of entries)
          if (dirty && writtenMs < (still ? stillBeforeMs : beforeMs)) found.push({ kind, key, overlays });
      return found;
    },
    written(kind, answer, nowMs, overlays) {
      const key = keyOf(kind, answer.metadata.name);
      const before = of(kind).get(key);
      if (before) {
        before.writtenMs = nowMs;
        if (overlays === undefined || overlays === before.overlays) before.dirty = false;
      }
      put(kind, answer);
      const entry = of(kind).get(key);
      if (entry?.body === undefined || entry.dirty) return;
      const object = decode(kind, entry.raw);
      if (!object || !differs(parse(entry.body), object)) return;
      entry.body = JSON.stringify(object);
      onChange(changeOf('MODIFIED', kind, key, object, undefined));
    },
  };
}

/**
 * A new resourceVersion alone (a finalizer, a field of another manager) is no change of ours, nor is a generation without
 * another spec, as an object gets that is marked for deletion.
 */
function differs(before: Resources[Kind] | undefined, after: Resources[Kind]): boolean {
  if (!before) return true;
  const plain = (object: Resources[Kind]): unknown => ({
    ...object,
    metadata: { ...object.metadata, resourceVersion: '', generation: 0 },
  });
  return !isDeepStrictEqual(plain(before), plain(after));
}

function changeOf(
  type: Change['type'],
  kind: Kind,
  key: string,
  object: Resources[Kind],
  before: Resources[Kind] | undefined,
): Omit<Change, 'version'> {
  const labels = before?.metadata.labels ?? {};
  const moved = before !== undefined && !isDeepStrictEqual(labels, object.metadata.labels ?? {});
  const groupBefore = groupMoved(before, object);
  return {
    ...{ type, kind, key, object },
    ...(moved ? { labelsBefore: labels } : {}),
    ...(groupBefore === undefined ? {} : { groupBefore }),
  };
}
