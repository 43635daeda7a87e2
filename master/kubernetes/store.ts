/**
 * The store whose objects are custom resources: REST and `kubectl` are two faces of them, nothing is copied. Reads come
 * from a cache that watches feed; writes wait for the API server (see bridge.ts) and are durable when they return.
 *
 * Guarantees of store.ts hold with these differences: figures of a status (volatile.ts) are durable within 10 s, those of an object at
 * rest after ten minutes, with very many objects later; a change of
 * spec and status together is two writes, spec first; what a person writes with kubectl comes between two writes of ours, and
 * then the change is made again on what is there.
 * An object that a person made has no status yet and is no object of the store until `adopt` gives it one (operator.ts).
 * Failure: an API server that does not answer makes writes throw StoreUnavailable; reads go on with what is known.
 */
import { createHash } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import type { Kind, Metadata, Resources } from '../resources.ts';
import { StoreConflict, StoreRefused, StoreUnavailable } from '../store.ts';
import type { Draft, Store } from '../store.ts';
import { ApiFault, type ClusterOptions } from './api.ts';
import { openBridge, type Arrival } from './bridge.ts';
import { objectCache, type Cache } from './cache.ts';
import {
  displayNameAnnotation,
  encode,
  encodeStatus,
  finalizer,
  nameOf,
  withoutNulls,
  type CustomResource,
} from './codec.ts';
import { history } from './history.ts';
import { allKinds, group, named, version } from './kinds.ts';
import { recordLabel, recordOf, secretName, secretOf, type Secret } from './records.ts';
import { isStill, onlyFigures, statusEveryMs, stillAfterMs } from './volatile.ts';

export interface KubernetesStoreOptions {
  cluster: ClusterOptions;
  namespace: string;
  /** Changes that a watch can go back; the oldest are forgotten. */
  maxChanges?: number;
  /** Refuses writes of a master that does not lead any more, by throwing. */
  mayWrite?: () => void;
  /** The line to the API server broke (a reason) or is up again (undefined). */
  onLine?: (trouble: string | undefined) => void;
  /** The thread that talks with the API server is gone: the process must end. */
  onFailure: (error: Error) => void;
}

export interface KubernetesStore extends Store {
  /** Takes a resource on that a person made: completes its spec and gives it its first status. */
  adopt<K extends Kind>(kind: K, key: string, draft: Draft<K>): void;
  /** Takes our finalizer and the given annotations off a resource, whatever it is. */
  strip(kind: Kind, key: string, what: { finalizer?: true; annotation?: string }): void;
  /** Resources as they are, also those not taken on yet. */
  resources(kind: Kind): { key: string; raw: CustomResource }[];
  /** Conditions of a resource that cannot be taken on as it is. */
  refuse(kind: Kind, key: string, status: Record<string, unknown>): void;
  /** Resolves at the next change of any resource, or when the signal aborts. */
  moved(signal: AbortSignal): Promise<void>;
  /** Writes the figures that wait. */
  flush(): Promise<void>;
}

const attempts = 10;

/** Resolves when all that is there was read. @throws ApiFault when the API server refuses to be read */
export async function openKubernetesStore(options: KubernetesStoreOptions): Promise<KubernetesStore> {
  const { namespace } = options;
  const closing = new AbortController();
  const log = history(Date.now(), options.maxChanges ?? 4096);
  /** What a person decides of an object, by the versions that were seen lately. */
  const decided = new Map<string, string>();
  let wake = Promise.withResolvers<void>();
  const cache: Cache = objectCache(
    (change) => log.add(change),
    (kind, key, object) => {
      if (object) note(kind, key, object);
      wake.resolve();
      wake = Promise.withResolvers<void>();
    },
  );
  const secrets = new Map<string, Secret>();
  const base = (kind: Kind): string => `/apis/${group}/${version}/namespaces/${namespace}/${named(kind).plural}`;
  const pathOf = (kind: Kind, key: string): string => `${base(kind)}/${nameOf(key)}`;
  const secretPath = `/api/v1/namespaces/${namespace}/secrets`;
  const collections = [
    ...allKinds.map((kind) => ({ name: kind, path: base(kind) })),
    { name: 'records', path: `${secretPath}?labelSelector=${encodeURIComponent(recordLabel)}` },
  ];
  const unlisted = new Set(collections.map(({ name }) => name));
  const troubles = new Map<string, string>();
  const ready = Promise.withResolvers<void>();

  const bridge = openBridge({ cluster: options.cluster, collections }, arrive, (error) => {
    ready.reject(error);
    options.onFailure(error);
  });

  function arrive(arrival: Arrival): void {
    if (arrival.type === 'line') return line(arrival.name, arrival.trouble);
    if (arrival.type === 'changed') {
      if (arrival.name === 'records') takeSecret(arrival.object as Secret, arrival.change === 'DELETED');
      else if (arrival.change === 'DELETED') cache.remove(arrival.name as Kind, arrival.object as CustomResource);
      else cache.put(arrival.name as Kind, arrival.object as CustomResource);
      return;
    }
    if (arrival.name === 'records') {
      const items = arrival.items as Secret[];
      const names = new Set(items.map(({ metadata }) => metadata.name));
      for (const name of secrets.keys()) if (!names.has(name)) secrets.delete(name);
      for (const secret of items) takeSecret(secret, false);
    } else cache.replace(arrival.name as Kind, arrival.items as CustomResource[]);
    unlisted.delete(arrival.name);
    if (unlisted.size === 0) ready.resolve();
  }
  function line(name: string, trouble: string | undefined): void {
    const before = troubles.size;
    if (trouble === undefined) troubles.delete(name);
    else troubles.set(name, trouble);
    if ((before === 0) !== (troubles.size === 0)) options.onLine?.(trouble);
  }
  function takeSecret(secret: Secret, deleted: boolean): void {
    const { name, resourceVersion = '0' } = secret.metadata;
    const known = secrets.get(name);
    const newer = known === undefined || BigInt(known.metadata.resourceVersion ?? '0') < BigInt(resourceVersion);
    if (!newer) return;
    if (deleted) secrets.delete(name);
    else secrets.set(name, secret);
  }

  /** @throws StoreRefused, StoreUnavailable, or ApiFault: somebody else was there before, or it is gone */
  function call(method: string, path: string, body?: unknown): unknown {
    options.mayWrite?.();
    try {
      return bridge.wait(method, path, body);
    } catch (error) {
      if (error instanceof ApiFault && (error.status === 0 || error.status >= 500 || error.status === 429))
        throw new StoreUnavailable(`the Kubernetes API server does not take the write: ${error.message}`, error);
      // A rule of the definition, an admission webhook, a quota: what REST would take is not taken there.
      if (error instanceof ApiFault && [400, 403, 413, 422].includes(error.status)) {
        const fields = error.causes.map(({ field, message }) => ({ path: field, message }));
        throw new StoreRefused(`the Kubernetes API server refuses it: ${error.message}`, fields, error);
      }
      throw error;
    }
  }
  /** True when somebody else wrote first, and what is there now was read. */
  function lost(error: unknown, kind: Kind, key: string): boolean {
    if (!(error instanceof ApiFault) || (error.status !== 409 && error.status !== 404)) throw error;
    try {
      cache.put(kind, call('GET', pathOf(kind, key)) as CustomResource);
    } catch (gone) {
      if (!(gone instanceof ApiFault) || gone.status !== 404) throw gone;
      // An API server that has not read the definitions yet knows none of our paths; what it has is not gone by that.
      if (!/"[^"]+" not found/.test(gone.message))
        throw new StoreUnavailable(`the Kubernetes API server does not know ${kind} now: ${gone.message}`, gone);
      const known = cache.resource(kind, key);
      if (known) cache.remove(kind, known);
    }
    return true;
  }

  /** Whoever asked has done nothing wrong: later it goes. An error that is none of a conflict stays what it is. */
  function busy(error: unknown, what: string): Error {
    if (error instanceof Error && !(error instanceof ApiFault && (error.status === 409 || error.status === 404)))
      return error;
    return new StoreUnavailable(`${what} is being written by others all the time; try again`, error);
  }

  function note(kind: Kind, key: string, object: Resources[Kind]): void {
    decided.set(`${kind}/${key}/${object.metadata.resourceVersion}`, digest(decidedText(object)));
    if (decided.size > 20_000) for (const old of [...decided.keys()].slice(0, 10_000)) decided.delete(old);
  }
  function isAsDecided(kind: Kind, key: string, now: Resources[Kind], since: string): boolean {
    if (since === now.metadata.resourceVersion) return true;
    const then = decided.get(`${kind}/${key}/${since}`);
    return then !== undefined && then === digest(decidedText(now));
  }
  function need<K extends Kind>(kind: K, key: string, ifVersion: string | undefined): Resources[K] {
    const object = cache.get(kind, key);
    if (object === undefined) throw new StoreConflict('absent', `there is no ${kind} ${key}`);
    if (ifVersion !== undefined && !isAsDecided(kind, key, object, ifVersion)) {
      const found = object.metadata.resourceVersion;
      throw new StoreConflict('version', `${kind} ${key} is at version ${found}, not ${ifVersion}; read it again`);
    }
    return object;
  }

  /** Writes the status of what is there; spec and metadata stay as somebody else may have made them meanwhile. */
  function writeStatus<K extends Kind>(kind: K, key: string, status: Record<string, unknown>): void {
    for (let attempt = 0; ; attempt++) {
      const raw = cache.resource(kind, key);
      if (!raw) throw new StoreConflict('absent', `there is no ${kind} ${key}`);
      try {
        const answer = call('PUT', `${pathOf(kind, key)}/status`, { ...raw, status }) as CustomResource;
        cache.written(kind, answer, performance.now());
        return;
      } catch (error) {
        if (attempt >= attempts) throw busy(error, `${kind} ${key}`);
        lost(error, kind, key);
      }
    }
  }
  /** @returns false: somebody else wrote first; what is there now is in the cache */
  function writeObject<K extends Kind>(kind: K, key: string, object: Resources[K], finalizers?: string[]): boolean {
    const raw = cache.resource(kind, key);
    if (!raw) throw new StoreConflict('absent', `there is no ${kind} ${key}`);
    const { metadata, ...rest } = encode(kind, key, object);
    const { annotations: _, labels: __, ...kept } = raw.metadata;
    const next = { ...raw, ...rest, metadata: { ...kept, ...metadata, ...(finalizers ? { finalizers } : {}) } };
    try {
      cache.put(kind, call('PUT', pathOf(kind, key), next) as CustomResource);
      return true;
    } catch (error) {
      if (!lost(error, kind, key)) throw error;
      return false;
    }
  }
  function update<K extends Kind>(
    kind: K,
    key: string,
    change: (object: Resources[K]) => void,
    ifVersion?: string,
  ): Resources[K] {
    for (let attempt = 0; attempt <= attempts; attempt++) {
      const object = need(kind, key, ifVersion);
      const before = structuredClone(object);
      change(object);
      keepOurs(object.metadata, before.metadata);
      const isSame = decidedText(object) === decidedText(before);
      if (isSame && isDeepStrictEqual(object, before)) return object;
      if (isSame && onlyFigures(kind, before, object)) {
        cache.overlay(kind, key, object, isStill(kind, before, object));
        return object;
      }
      const status = encodeStatus(kind, object);
      const statusMoved = !isDeepStrictEqual(status, encodeStatus(kind, before));
      if (!isSame && !writeObject(kind, key, object)) continue;
      if (statusMoved) writeStatus(kind, key, status);
      return cache.get(kind, key) ?? object;
    }
    throw busy(undefined, `${kind} ${key}`);
  }
  function remove<K extends Kind>(kind: K, key: string, ifVersion?: string): Resources[K] | undefined {
    if (ifVersion === undefined && cache.get(kind, key) === undefined) return undefined;
    const object = need(kind, key, ifVersion);
    for (let attempt = 0; attempt <= attempts; attempt++) {
      const raw = cache.resource(kind, key);
      if (raw?.metadata.uid !== object.metadata.uid) return object;
      const others = (raw.metadata.finalizers ?? []).filter((one) => one !== finalizer);
      try {
        if (raw.metadata.deletionTimestamp === undefined) {
          const answer = call('DELETE', pathOf(kind, key), {
            apiVersion: 'v1',
            kind: 'DeleteOptions',
            preconditions: { uid: raw.metadata.uid, resourceVersion: raw.metadata.resourceVersion },
          }) as CustomResource;
          if (!named(kind).finalizer && others.length === 0) cache.remove(kind, raw);
          else if ('metadata' in answer && 'spec' in answer) cache.put(kind, answer);
          if (!named(kind).finalizer) continue;
        }
        const marked = cache.resource(kind, key);
        if (marked?.metadata.uid !== object.metadata.uid) return object;
        if ((marked.metadata.finalizers ?? []).includes(finalizer)) {
          const answer = call('PUT', pathOf(kind, key), {
            ...marked,
            metadata: { ...marked.metadata, finalizers: others },
          }) as CustomResource;
          object.metadata.resourceVersion = answer.metadata.resourceVersion;
        }
        // Ours are done; what others still hold it for is not the store's any more.
        cache.remove(kind, { metadata: { ...marked.metadata, resourceVersion: object.metadata.resourceVersion } });
        return object;
      } catch (error) {
        if (attempt >= attempts) throw busy(error, `${kind} ${key}`);
        lost(error, kind, key);
        if (ifVersion !== undefined && cache.get(kind, key)) need(kind, key, ifVersion);
      }
    }
    return object;
  }

  function putRecord(table: string, key: string, value: string | undefined): void {
    const name = secretName(table, key);
    for (let attempt = 0; ; attempt++) {
      const known = secrets.get(name);
      if (value === undefined ? !known : known && recordOf(known)?.value === value) return;
      try {
        if (value === undefined) {
          call('DELETE', `${secretPath}/${name}`);
          secrets.delete(name);
        } else if (known) {
          const body = secretOf(table, key, value, known.metadata.resourceVersion);
          takeSecret(call('PUT', `${secretPath}/${name}`, body) as Secret, false);
        } else takeSecret(call('POST', secretPath, secretOf(table, key, value)) as Secret, false);
        return;
      } catch (error) {
        if (!(error instanceof ApiFault) || (error.status !== 409 && error.status !== 404)) throw error;
        if (attempt >= attempts) throw busy(error, `the record ${name}`);
        secrets.delete(name);
        if (value === undefined && error.status === 404) return;
        if (error.status === 409) takeSecret(call('GET', `${secretPath}/${name}`) as Secret, false);
      }
    }
  }

  async function flushOne(kind: Kind, key: string, overlays: number): Promise<void> {
    const object = cache.get(kind, key);
    const raw = cache.resource(kind, key);
    if (!object || !raw) return;
    try {
      options.mayWrite?.();
      const body = { ...raw, status: encodeStatus(kind, object) };
      const answer = (await bridge.send('PUT', `${pathOf(kind, key)}/status`, body)) as CustomResource;
      cache.written(kind, answer, performance.now(), overlays);
    } catch {
      // A conflict, or no API server: the figures stay where they are, and are tried again.
    }
  }
  async function flushDue(nowMs: number): Promise<void> {
    const due = cache.due(nowMs - statusEveryMs, nowMs - stillAfterMs(cache.waiting));
    const lanes = Array.from({ length: 4 }, async () => {
      for (let one = due.shift(); one; one = due.shift()) await flushOne(one.kind, one.key, one.overlays);
    });
    await Promise.all(lanes);
  }
  let flushing = false;
  const timer = setInterval(() => {
    if (flushing) return;
    flushing = true;
    void flushDue(performance.now()).finally(() => (flushing = false));
  }, 1000).unref();

  try {
    await ready.promise;
  } catch (error) {
    clearInterval(timer);
    bridge.close();
    throw error;
  }
  return {
    get: (kind, key) => cache.get(kind, key),
    list<K extends Kind>(kind: K) {
      return cache.list(kind);
    },
    each: (kind, after) => cache.each(kind, after),
    replicationsOf: (agent) => cache.replicationsOf(agent),
    revision: (kind) => cache.revision(kind),
    // Each version counts: what is derived is made more often than it must be.
    decision: (kind) => cache.revision(kind),
    replicationsIn: (group) => cache.replicationsIn(group),
    snapshotsOf: (replication) => cache.snapshotsOf(replication),
    // Each write is a request of its own.
    batch: (work) => work(),
    create<K extends Kind>(kind: K, key: string, draft: Draft<K>) {
      const body = encode(kind, key, draft as unknown as Resources[K]);
      const finalizers = named(kind).finalizer ? { finalizers: [finalizer] } : {};
      let made: CustomResource;
      try {
        made = call('POST', base(kind), { ...body, metadata: { ...body.metadata, ...finalizers } }) as CustomResource;
      } catch (error) {
        if (error instanceof ApiFault && error.reason === 'AlreadyExists')
          throw new StoreConflict('exists', `there is a ${kind} ${key} already`);
        throw error;
      }
      cache.put(kind, made);
      // A crash here leaves one without status, which is taken on as if a person had made it.
      writeStatus(kind, key, encodeStatus(kind, draft as unknown as Resources[K]));
      const object = cache.get(kind, key);
      if (!object) throw new StoreConflict('absent', `${kind} ${key} was deleted while it was made`);
      return object;
    },
    update,
    delete: remove,
    version: () => log.version(),
    watch: ({ kinds: wanted, since = log.version(), signal }) =>
      log.watch(wanted, since, AbortSignal.any([signal, closing.signal])),
    getRecord(table, key) {
      const secret = secrets.get(secretName(table, key));
      return secret && recordOf(secret)?.value;
    },
    putRecord,
    listRecords: (table) =>
      [...secrets.values()]
        .map(recordOf)
        .filter((record) => record?.table === table)
        .map((record) => ({ key: record?.key ?? '', value: record?.value ?? '' }))
        .sort((a, b) => (a.key < b.key ? -1 : 1)),
    adopt(kind, key, draft) {
      const raw = cache.resource(kind, key);
      if (!raw) return;
      const finalizers = raw.metadata.finalizers ?? [];
      const wanted = named(kind).finalizer && !finalizers.includes(finalizer) ? [...finalizers, finalizer] : finalizers;
      const spec = withoutNulls(draft.spec) as Record<string, unknown>;
      if (wanted !== finalizers || !isDeepStrictEqual(spec, raw.spec)) {
        const body = { ...raw, spec, metadata: { ...raw.metadata, finalizers: wanted } };
        cache.put(kind, call('PUT', pathOf(kind, key), body) as CustomResource);
      }
      writeStatus(kind, key, encodeStatus(kind, draft as unknown as Resources[typeof kind]));
    },
    strip(kind, key, what) {
      const raw = cache.resource(kind, key);
      if (!raw) return;
      const { [what.annotation ?? '']: _, ...annotations } = raw.metadata.annotations ?? {};
      const finalizers = (raw.metadata.finalizers ?? []).filter((one) => what.finalizer !== true || one !== finalizer);
      const metadata = { ...raw.metadata, annotations, finalizers };
      cache.put(kind, call('PUT', pathOf(kind, key), { ...raw, metadata }) as CustomResource);
    },
    refuse: writeStatus,
    resources: (kind) => cache.resources(kind),
    async moved(signal) {
      const aborted = new Promise<void>((resolve) => {
        if (signal.aborted) resolve();
        else signal.addEventListener('abort', () => resolve(), { once: true });
      });
      await Promise.race([wake.promise, aborted]);
    },
    flush: () => flushDue(Infinity),
    close() {
      closing.abort();
      clearInterval(timer);
      bridge.close();
    },
  };
}

/** The store's own metadata cannot be changed. */
function keepOurs(metadata: Metadata, before: Metadata): void {
  const { name, uid, generation, resourceVersion, creationTimestamp, namespace } = before;
  Object.assign(metadata, { name, uid, generation, resourceVersion, creationTimestamp });
  if (namespace !== undefined) metadata.namespace = namespace;
}

/** Spec and what of the metadata is a person's: labels, annotations, the display name. */
function decidedText({ metadata, spec }: Pick<Resources[Kind], 'metadata' | 'spec'>): string {
  const { labels = {}, annotations = {}, displayName = null } = metadata;
  const sorted = (fields: Record<string, string>): [string, string][] => Object.entries(fields).sort();
  const shown = sorted(annotations).filter(([name]) => name !== displayNameAnnotation);
  return JSON.stringify([sorted(labels), shown, displayName, spec]);
}

function digest(text: string): string {
  return createHash('sha256').update(text).digest('base64');
}
