/**
 * The shapes of the REST API, written once: validation of requests, TypeScript types, the fields that answers show and
 * the OpenAPI document all come from here and from schema/, one file for each resource. The resources' types in master/resources.ts must agree; the compiler checks
 * it in the unit test of these files.
 *
 * Base schemas describe what is answered: complete, and open to fields of later versions. `input` derives what may be
 * sent: fields with a default may be left out, unknown fields are errors. Fields of the contract that belong to later
 * work are unknown until their work is there: a setting that is taken must have its effect.
 *
 * What is not in a base schema never leaves the master: `requests` and `identity` are missing here on purpose.
 */
import Type, { type Static, type TObject, type TSchema } from 'typebox';
import { apiVersion } from '../resources.ts';
import type * as R from '../resources.ts';

/* Building blocks */

export const namePattern = '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$';

export const nameRule =
  'a name of 1 to 63 lower-case letters, digits and "-", which begins and ends with a letter or digit';

export function words<const T extends string>(...values: T[]) {
  return Type.Unsafe<T>({ type: 'string', enum: values });
}

export function nullable<S extends TSchema>(schema: S) {
  const plain = schema as { type?: unknown; enum?: unknown[] };
  if (typeof plain.type !== 'string' || plain.type === 'object')
    return Type.Unsafe<Static<S> | null>({ anyOf: [schema, { type: 'null' }] });
  const values = plain.enum === undefined ? {} : { enum: [...plain.enum, null] };
  return Type.Unsafe<Static<S> | null>({ ...schema, type: [plain.type, 'null'], ...values });
}

export function name(of?: string) {
  const description = of === undefined ? nameRule : `${nameRule} (${of})`;
  return Type.String({ pattern: namePattern, description });
}

export function time(of?: string) {
  const rule = 'a time as of RFC 3339, such as 2026-11-20T09:00:00.000Z';
  const description = of === undefined ? rule : `${rule} (${of})`;
  return Type.String({ format: 'date-time', description });
}

/** Absolute, without "//", "/./", "/../" and no "/" at its end, so that one place has one name. */
export function path(description = 'an absolute path without "." and ".." parts and without a "/" at its end') {
  return Type.String({
    pattern: '^(/(?!\\.{1,2}(/|$))[^/\\u0000]+)+$',
    maxLength: 4095,
    description,
  });
}

export const bytes = () => Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });

export const Metadata = Type.Object({
  name: name(),
  displayName: Type.Optional(Type.String({ maxLength: 255 })),
  namespace: Type.Optional(name()),
  labels: Type.Optional(
    Type.Record(
      Type.String(),
      Type.String({
        pattern: '^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$',
        description: 'a label value of at most 63 letters, digits, "-", "_", "."',
      }),
      {
        maxProperties: 64,
        propertyNames: {
          pattern: '^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$',
          description: 'a label key such as app or example.com/app',
        },
      },
    ),
  ),
  annotations: Type.Optional(
    Type.Record(Type.String(), Type.String({ maxLength: 4096 }), {
      maxProperties: 64,
      propertyNames: { maxLength: 317 },
    }),
  ),
  uid: Type.String(),
  generation: Type.Integer(),
  resourceVersion: Type.String(),
  creationTimestamp: time(),
});

export function resource<K extends string, S extends TSchema, T extends TSchema>(kind: K, spec: S, status: T) {
  return Type.Object({
    apiVersion: Type.Literal(apiVersion),
    kind: Type.Literal(kind),
    metadata: Metadata,
    spec,
    status,
  });
}

export const Condition = Type.Object({
  type: Type.String(),
  status: words('True', 'False', 'Unknown'),
  reason: Type.String(),
  message: Type.String(),
  lastTransitionTime: time(),
});

export const VolumeMode = words('Block', 'Filesystem');

export const Consistency = words('filesystem', 'crash', 'file');

export const SnapshotPeriod = words('minute', 'hour', 'day', 'week', 'month');

export const Problem = Type.Object({
  type: Type.String(),
  title: Type.String(),
  status: Type.Integer(),
  detail: Type.String(),
  code: Type.String(),
  requestId: Type.String(),
  errors: Type.Optional(Type.Array(Type.Object({ path: Type.String(), message: Type.String() }))),
});

export function listOf<S extends TSchema>(item: S) {
  return Type.Object({
    items: Type.Array(item),
    metadata: Type.Object({
      continue: nullable(Type.String({ description: 'give it as continue= for what follows; null: nothing follows' })),
      resourceVersion: Type.String({
        description: 'state of the list; watch=true with this Last-Event-ID goes on from it',
      }),
    }),
  });
}

export const serverFields = ['uid', 'generation', 'resourceVersion', 'creationTimestamp'];

/** Closed, and what has a default may be left out. The type stays: defaults are filled in before the check. */
export function input<S extends TSchema>(schema: S): S {
  const plain = schema as Record<string, unknown>;
  if (plain['type'] === 'array') return { ...plain, items: input(plain['items'] as TSchema) } as unknown as S;
  if (plain['type'] !== 'object' || plain['properties'] === undefined) return schema;
  const properties = Object.entries(plain['properties'] as Record<string, Record<string, unknown>>);
  const required = ((plain['required'] ?? []) as string[]).filter((key) => {
    const field = properties.find(([property]) => property === key)?.[1];
    return field !== undefined && !('default' in field || 'x-inferred' in field);
  });
  return {
    ...plain,
    required,
    properties: Object.fromEntries(properties.map(([key, value]) => [key, input(value as TSchema)])),
    additionalProperties: false,
  } as unknown as S;
}

/** An object as written by people, or as it was read: what the server decides may be there and is not looked at. */
export function inputObject<S extends TObject>(kind: string, spec: S) {
  return Type.Object(
    {
      apiVersion: Type.Optional(Type.Literal(apiVersion)),
      kind: Type.Optional(Type.Literal(kind)),
      metadata: Type.Unsafe<Pick<R.Metadata, 'name'> & Partial<R.Metadata>>({
        ...Metadata,
        required: Metadata.required.filter((field) => !serverFields.includes(field)),
        additionalProperties: false,
      }),
      spec: input(spec),
      status: Type.Optional(Type.Unknown({ description: 'not looked at' })),
    },
    { additionalProperties: false },
  );
}

export const ActionInput = input(Type.Object({ force: Type.Boolean({ default: false }) }));

export const MergePatch = Type.Unsafe<Record<string, unknown>>({
  type: 'object',
  description: 'a merge patch (RFC 7396) of the object: what is given is replaced, null takes away',
});

export const ListQuery = Type.Object(
  {
    limit: Type.Integer({ minimum: 1, maximum: 1000, default: 1000 }),
    continue: Type.Optional(Type.String({ maxLength: 1024 })),
    labelSelector: Type.Optional(
      Type.String({ maxLength: 1024, description: 'such as app=shop,tier!=test,owner,!old,zone in (a,b)' }),
    ),
    watch: Type.Boolean({ default: false, description: 'server-sent events, resumed by Last-Event-ID' }),
  },
  { additionalProperties: false },
);

/** Of lists that have neither labels nor watches. */
export const PageQuery = Type.Object(
  { limit: ListQuery.properties.limit, continue: ListQuery.properties.continue },
  { additionalProperties: false },
);

export type ProblemView = Static<typeof Problem>;

/** One message of a watch: the `data` of a server-sent event. */
export interface WatchMessage<T> {
  type: 'ADDED' | 'MODIFIED' | 'DELETED';
  object: T;
}

export interface ListView<T> {
  items: T[];
  metadata: { continue: string | null; resourceVersion: string };
}
