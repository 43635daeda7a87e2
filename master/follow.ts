/**
 * A store's objects of one kind, for ever: first all that are there, then every change, and all anew whenever the watch
 * fell so far behind that the store has forgotten what was in between. For loops that look at the object's present state.
 */
import type { Kind } from './resources.ts';
import { snapshotKey, StoreConflict, type Store } from './store.ts';

/** `uid` of the object that was last seen under the key; `deleted` when the watch saw it go. Ends when the signal aborts. */
export interface Seen {
  key: string;
  uid: string;
  deleted: boolean;
  /** Of the change; absent: it was there when the watch began. */
  version?: number;
}

export async function* follow(store: Store, kind: Kind, signal: AbortSignal): AsyncGenerator<Seen> {
  while (!signal.aborted) {
    const since = store.version();
    for (const { key, uid } of keysOf(store, kind)) yield { key, uid, deleted: false };
    try {
      for await (const { key, object, type, version } of store.watch({ kinds: [kind], since, signal })) {
        yield { key, uid: object.metadata.uid, deleted: type === 'DELETED', version };
      }
      return;
    } catch (error) {
      if (!(error instanceof StoreConflict) || error.reason !== 'expired') throw error;
    }
  }
}

function keysOf(store: Store, kind: Kind): { key: string; uid: string }[] {
  if (kind === 'Snapshot') {
    return store
      .list(kind)
      .map(({ spec, metadata }) => ({ key: snapshotKey(spec.replication, metadata.name), uid: metadata.uid }));
  }
  return store.list(kind).map(({ metadata }) => ({ key: metadata.name, uid: metadata.uid }));
}
