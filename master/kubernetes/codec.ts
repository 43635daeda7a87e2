/**
 * Objects of the store as custom resources, and back. Pure.
 *
 * Null is an absent field there, and comes back as null by the schema, so that `kubectl get -o yaml` shows what is known.
 * What is neither spec nor status (requests, identity) lies in the status, the display name in an annotation. A snapshot,
 * whose name is unique within its replication only, is called `<replication>.<name>`, since no name of ours has a dot.
 */
import { apiVersion } from '../resources.ts';
import type { Kind, Resources } from '../resources.ts';
import { group, named } from './kinds.ts';
import { isNullable, type JsonSchema } from './structural.ts';

export const finalizer = `${group}/data`;
/** In the status of what the master has taken on: all of it was set at once, so what is absent is null. */
export const accepted = 'accepted';
export const displayNameAnnotation = `${group}/display-name`;

export interface ObjectMeta {
  name: string;
  namespace?: string;
  uid: string;
  generation?: number;
  resourceVersion: string;
  creationTimestamp: string;
  deletionTimestamp?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  finalizers?: string[];
}

export interface CustomResource {
  apiVersion: string;
  kind: string;
  metadata: ObjectMeta;
  spec: Record<string, unknown>;
  status?: Record<string, unknown>;
}

/** Name of the resource that is stored under a key. */
export function nameOf(key: string): string {
  return key.replace('/', '.');
}

export function keyOf(kind: Kind, name: string): string {
  return kind === 'Snapshot' ? name.replace('.', '/') : name;
}

/** The parts that a person may write: for PUT of the resource itself. */
export function encode(
  kind: Kind,
  key: string,
  object: { metadata: Partial<Resources[Kind]['metadata']>; spec: unknown },
): Pick<CustomResource, 'apiVersion' | 'kind' | 'spec'> & { metadata: Partial<ObjectMeta> & { name: string } } {
  const { labels, annotations, displayName } = object.metadata;
  const shown = {
    ...(annotations ?? {}),
    ...(displayName === undefined ? {} : { [displayNameAnnotation]: displayName }),
  };
  return {
    apiVersion,
    kind: named(kind).kind,
    metadata: {
      name: nameOf(key),
      ...(labels === undefined ? {} : { labels }),
      ...(Object.keys(shown).length === 0 ? {} : { annotations: shown }),
    },
    spec: withoutNulls(object.spec) as Record<string, unknown>,
  };
}

/** With what is hidden in it. */
export function encodeStatus(kind: Kind, object: Resources[Kind]): Record<string, unknown> {
  const { hidden } = named(kind);
  const rest = hidden === undefined ? {} : { [hidden]: (object as unknown as Record<string, unknown>)[hidden] };
  return withoutNulls({ ...object.status, ...rest, [accepted]: true }) as Record<string, unknown>;
}

/** undefined: a resource that a person made and the master has not taken on (yet). */
export function decode<K extends Kind>(kind: K, resource: CustomResource): Resources[K] | undefined {
  const { status, metadata } = resource;
  const { schema, hidden } = named(kind);
  const shape = (schema as unknown as JsonSchema).properties ?? {};
  const { [hidden ?? '']: hiddenPart, [accepted]: isAccepted, ...shown } = status ?? {};
  if (isAccepted !== true) return undefined;
  const { [displayNameAnnotation]: displayName, ...annotations } = metadata.annotations ?? {};
  const key = keyOf(kind, metadata.name);
  return {
    apiVersion,
    kind,
    metadata: {
      name: kind === 'Snapshot' ? key.slice(key.indexOf('/') + 1) : key,
      ...(displayName === undefined ? {} : { displayName }),
      ...(metadata.namespace === undefined ? {} : { namespace: metadata.namespace }),
      ...(metadata.labels === undefined ? {} : { labels: metadata.labels }),
      ...(Object.keys(annotations).length === 0 ? {} : { annotations }),
      uid: metadata.uid,
      generation: metadata.generation ?? 1,
      resourceVersion: metadata.resourceVersion,
      creationTimestamp: new Date(metadata.creationTimestamp).toISOString(),
    },
    spec: specOf(kind, resource),
    status: complete(shape['status'] ?? {}, shown),
    ...(hidden === undefined ? {} : { [hidden]: hiddenPart }),
  } as unknown as Resources[K];
}

export function specOf<K extends Kind>(kind: K, resource: CustomResource): Resources[K]['spec'] {
  const shape = (named(kind).schema as unknown as JsonSchema).properties ?? {};
  return complete(shape['spec'] ?? {}, resource.spec) as Resources[K]['spec'];
}

export function withoutNulls(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutNulls);
  if (typeof value !== 'object' || value === null) return value;
  const fields = Object.entries(value).filter(([, field]) => field !== null && field !== undefined);
  return Object.fromEntries(fields.map(([name, field]) => [name, withoutNulls(field)]));
}

/** Puts back what is absent: null where that is allowed, else the schema's default. */
export function complete(schema: JsonSchema, value: unknown): unknown {
  if (value === undefined || value === null) return isNullable(schema) ? null : structuredClone(schema['default']);
  const inner = schema.anyOf?.find(({ type }) => type !== 'null');
  if (inner && schema.anyOf?.length === 2 && isNullable(schema)) return complete(inner, value);
  if (Array.isArray(value)) return schema.items ? value.map((item) => complete(schema.items ?? {}, item)) : value;
  if (typeof value !== 'object' || !schema.properties) return value;
  const result: Record<string, unknown> = { ...value };
  for (const [name, field] of Object.entries(schema.properties)) {
    const filled = complete(field, result[name]);
    if (filled !== undefined) result[name] = filled;
  }
  return result;
}
