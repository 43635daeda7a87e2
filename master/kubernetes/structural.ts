/**
 * The schemas of the REST API as structural schemas of a CustomResourceDefinition (apiextensions.k8s.io/v1). Pure.
 *
 * What the REST API fills in is filled in by the API server: defaults stay, except null ones, which are left out as an
 * absent field means the same. What JSON Schema says and a structural schema cannot is put as CEL
 * (`x-kubernetes-validations`): patterns with a look-ahead, which RE2 has not. A choice between a text and an object has no
 * structural form; it is kept as it comes and checked by the master.
 */
export interface JsonSchema {
  type?: string | string[];
  properties?: Record<string, JsonSchema>;
  items?: JsonSchema;
  required?: string[];
  anyOf?: JsonSchema[];
  [keyword: string]: unknown;
}

const kept = [
  'description',
  'format',
  'enum',
  'minimum',
  'maximum',
  'minLength',
  'maxLength',
  'minItems',
  'maxItems',
  'minProperties',
  'maxProperties',
];

export function structural(schema: JsonSchema): JsonSchema {
  const alternatives = schema.anyOf?.filter(({ type }) => type !== 'null');
  if (alternatives?.length === 1 && alternatives[0]) {
    const { anyOf: _, ...outer } = schema;
    return { ...structural({ ...alternatives[0], ...outer }), nullable: true };
  }
  if (alternatives) return { ...pick(schema), 'x-kubernetes-preserve-unknown-fields': true };
  const types = [schema.type ?? []].flat().filter((type) => type !== 'null');
  const type = types[0] ?? typeof schema['const'];
  const nullable = Array.isArray(schema.type) && schema.type.includes('null');
  return {
    type,
    ...pick(schema),
    ...(type === 'integer' ? { format: 'int64' } : {}),
    ...(nullable ? { nullable: true } : {}),
    ...('const' in schema ? { enum: [schema['const']] } : {}),
    ...(schema.properties ? objectOf(schema) : {}),
    ...(schema.items ? { items: structural(schema.items) } : {}),
    ...(type === 'object' && !schema.properties
      ? { additionalProperties: structural(valuesOf(schema) ?? { type: 'string' }) }
      : {}),
    ...(typeof schema['pattern'] === 'string' ? matching(schema['pattern'], schema['description']) : {}),
  };
}

function pick(schema: JsonSchema): JsonSchema {
  const entries = Object.entries(schema).filter(([key]) => kept.includes(key));
  // An absent field is the same as null here.
  if (schema['default'] !== undefined && schema['default'] !== null) entries.push(['default', schema['default']]);
  return Object.fromEntries(entries);
}

function objectOf(schema: JsonSchema): JsonSchema {
  const properties = Object.entries(schema.properties ?? {});
  const needed = (name: string): boolean => {
    const field = schema.properties?.[name] ?? {};
    return !('default' in field || 'x-inferred' in field || isNullable(field));
  };
  const required = (schema.required ?? []).filter(needed);
  return {
    properties: Object.fromEntries(properties.map(([name, field]) => [name, structural(field)])),
    ...(required.length > 0 ? { required } : {}),
  };
}

export function isNullable({ type, anyOf }: JsonSchema): boolean {
  return (Array.isArray(type) && type.includes('null')) || anyOf?.some((one) => one.type === 'null') === true;
}

function valuesOf(schema: JsonSchema): JsonSchema | undefined {
  const patterns = Object.values((schema['patternProperties'] ?? {}) as Record<string, JsonSchema>);
  return patterns[0];
}

/** Paths are the one pattern with a look-ahead: what it excludes is said in words that RE2 has. */
function matching(pattern: string, description: unknown): JsonSchema {
  if (!pattern.includes('(?')) return { pattern };
  if (!pattern.startsWith('^(/(?!')) throw new Error(`pattern ${pattern} has no form without look-ahead`);
  const message = `must be ${typeof description === 'string' ? description : 'an absolute path'}`;
  return {
    pattern: `^(/[^/\\x00]+)${pattern.slice(-2)}`,
    'x-kubernetes-validations': [{ rule: "!self.matches('/[.]{1,2}(/|$)')", message }],
  };
}

/** All of it optional: a status is written by the master alone, and a newer master's may lie there. */
export function lenient(schema: JsonSchema): JsonSchema {
  const { required: _, enum: __, pattern: ___, ...rest } = schema;
  const map = (fields: Record<string, JsonSchema>): Record<string, JsonSchema> =>
    Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, lenient(field)]));
  return {
    ...rest,
    ...(rest.properties ? { properties: map(rest.properties) } : {}),
    ...(rest.items ? { items: lenient(rest.items) } : {}),
  };
}
