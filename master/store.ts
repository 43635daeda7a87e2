/**
 * The one object store under REST, the command line and the controllers: get, list, put-if-version, watch.
 * `store-sqlite.ts` is the embedded one; the Kubernetes API server is meant to be another.
 *
 * Guarantees: a write that returned is durable; put compares the version, so no write is lost unseen; a watch delivers
 * every change after `since` in order, each once, or says `Expired` when the history does not reach back that far.
 * Objects handed out are the caller's own copies.
 */
import type { Kind, Resources } from './resources.ts';

export type Change<K extends Kind = Kind> = {
  [P in K]: { type: 'ADDED' | 'MODIFIED' | 'DELETED'; kind: P; key: string; object: Resources[P] };
}[K] & {
  /** resourceVersion of the change, as a number. */
  version: number;
  /** Given when the change moved them: a watch by label must see an object leave. */
  labelsBefore?: Record<string, string>;
  /** Given when the change moved spec.group of a replication; null: it had none. */
  groupBefore?: string | null;
};

/** What the caller gives of a new object; uid, generation, resourceVersion and creationTimestamp come from the store. */
export type Draft<K extends Kind> = Omit<Resources[K], 'metadata'> & {
  metadata: Pick<Resources[K]['metadata'], 'name'> &
    Partial<Pick<Resources[K]['metadata'], 'displayName' | 'namespace' | 'labels' | 'annotations'>>;
};

export interface Store {
  get<K extends Kind>(kind: K, key: string): Resources[K] | undefined;
  /** Ordered by key. */
  list<K extends Kind>(kind: K): Resources[K][];
  /** The same one by one, from behind a key on; nothing may be written before it has ended. */
  each<K extends Kind>(kind: K, after?: string): Iterable<Resources[K]>;
  /** Replications whose source is a volume of the agent; ordered by key. Costs what there are of these. */
  replicationsOf(agent: string): Resources['Replication'][];
  /** Replications of a consistency group; ordered by key. Costs what there are of these. */
  replicationsIn(group: string): Resources['Replication'][];
  /** Of a replication, ordered by key. */
  snapshotsOf(replication: string): Resources['Snapshot'][];
  /** @throws StoreConflict when the key is taken */
  create<K extends Kind>(kind: K, key: string, draft: Draft<K>): Resources[K];
  /**
   * Reads, changes and writes in one step: `change` mutates the object it is given and must be synchronous.
   * generation grows when spec changed; the store's own metadata cannot be changed. Answers the stored object; nothing is written when nothing changed.
   * @throws StoreConflict when absent, or when `ifVersion` is given and more than the status has changed since that
   *   resourceVersion, or that is not known any more
   */
  update<K extends Kind>(
    kind: K,
    key: string,
    change: (object: Resources[K]) => void,
    ifVersion?: string,
  ): Resources[K];
  /** Answers what was deleted, or undefined when it was absent. */
  delete<K extends Kind>(kind: K, key: string, ifVersion?: string): Resources[K] | undefined;
  /** All writes that `work` makes become durable together, at its end, and none when it throws. It must be synchronous. */
  batch(work: () => void): void;
  /** Another number whenever anything of the kind has changed: for what is derived from all of them. */
  revision(kind: Kind): number;
  /** The same for what was decided: a status that moves on by itself need not count. */
  decision(kind: Kind): number;
  /** Newest version written. */
  version(): number;
  /**
   * All changes with a version above `since` (default: from this call on), until the signal aborts.
   * @throws StoreConflict expired, at the call or later when the reader falls too far behind: list anew
   */
  watch(options: { kinds?: Kind[]; since?: number; signal: AbortSignal }): AsyncIterable<Change>;
  /** Small facts beside the objects (tokens, counters), by table and key; durable on return; undefined deletes. */
  getRecord(table: string, key: string): string | undefined;
  putRecord(table: string, key: string, value: string | undefined): void;
  listRecords(table: string): { key: string; value: string }[];
  close(): void;
}

/** The store is not there now; nothing was written. */
export class StoreUnavailable extends Error {
  constructor(message: string, cause?: unknown) {
    super(message, { cause });
    this.name = 'StoreUnavailable';
  }
}

/** The store does not take this object as it is, though the master would: nothing was written. */
export class StoreRefused extends Error {
  /** What is wrong where, such as spec.trigger.schedule; none when it is not a matter of fields. */
  readonly fields: { path: string; message: string }[];
  constructor(message: string, fields: StoreRefused['fields'], cause?: unknown) {
    super(message, { cause });
    this.name = 'StoreRefused';
    this.fields = fields;
  }
}

export class StoreConflict extends Error {
  readonly reason: 'exists' | 'absent' | 'version' | 'expired';
  constructor(reason: StoreConflict['reason'], message: string) {
    super(message);
    this.name = 'StoreConflict';
    this.reason = reason;
  }
}

/** Store key of an object that belongs to a replication. */
export function snapshotKey(replication: string, snapshot: string): string {
  return `${replication}/${snapshot}`;
}

/** What groupBefore of a change is: undefined when the group stays. */
export function groupMoved(before: Resources[Kind] | undefined, after: Resources[Kind]): string | null | undefined {
  if (before?.kind !== 'Replication' || after.kind !== 'Replication' || before.spec.group === after.spec.group)
    return undefined;
  return before.spec.group ?? null;
}
