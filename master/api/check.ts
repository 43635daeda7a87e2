/**
 * Checks what was sent against a schema of schema.ts: fills defaults in, and says of each wrong field what would be
 * right. At most 64 faults are looked at; nothing of the values is repeated.
 */
import type { Static, TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import type { Validator } from 'typebox/compile';
import { Settings } from 'typebox/system';
import { invalid } from './problem.ts';
import type { FieldError } from './problem.ts';

type Plain = Record<string, unknown>;

// The default of 8 is used up by one object with a few unknown fields.
Settings.Set({ maxErrors: 64 });
const compiled = new WeakMap<TSchema, Validator>();

/** The value with its defaults. Changes the value it is given. @throws ApiProblem Invalid */
export function check<S extends TSchema>(schema: S, value: unknown, root = ''): Static<S> {
  if (value === undefined && 'required' in schema)
    throw invalid([{ path: root || 'body', message: 'is missing; send a JSON object' }]);
  fill(schema as Plain, value);
  let validator = compiled.get(schema);
  if (validator === undefined) compiled.set(schema, (validator = Compile(schema)));
  if (validator.Check(value)) return value as Static<S>;
  throw invalid(fieldErrors(schema as Plain, validator.Errors(value), root));
}

/** Query strings have no types: numbers and switches become what the schema says; what does not fit stays, and is refused. */
export function fromQuery(schema: TSchema, value: unknown): unknown {
  const properties = (schema as Plain)['properties'] as Record<string, Plain>;
  const convert = ([key, text]: [string, unknown]): [string, unknown] => {
    const type = properties[key]?.['type'];
    if (type === 'integer' && typeof text === 'string' && /^-?\d{1,15}$/.test(text)) return [key, Number(text)];
    if (type === 'boolean' && (text === 'true' || text === '1' || text === '')) return [key, true];
    if (type === 'boolean' && (text === 'false' || text === '0')) return [key, false];
    return [key, text];
  };
  return Object.fromEntries(Object.entries(value as Plain).map(convert));
}

function fill(schema: Plain, value: unknown): void {
  const items = schema['items'] as Plain | undefined;
  if (items !== undefined && Array.isArray(value)) for (const item of value) fill(items, item);
  const properties = schema['properties'] as Record<string, Plain> | undefined;
  if (properties === undefined || typeof value !== 'object' || value === null || Array.isArray(value)) return;
  const object = value as Plain;
  for (const [key, field] of Object.entries(properties)) {
    if (!Object.hasOwn(object, key) && 'default' in field) object[key] = structuredClone(field['default']);
    else if (Object.hasOwn(object, key)) fill(field, object[key]);
  }
}

interface Problem {
  keyword: string;
  schemaPath: string;
  instancePath: string;
  params: Plain;
  message: string;
}

function fieldErrors(schema: Plain, problems: Problem[], root: string): FieldError[] {
  const found = new Map<string, string>();
  const say = (path: string, message: string): void => {
    if (!found.has(path)) found.set(path, message);
  };
  for (const problem of problems) {
    // What is wrong with each branch helps nobody: the choice as a whole has a description.
    const branch = problem.schemaPath.indexOf('/anyOf');
    const schemaPath = branch < 0 ? problem.schemaPath : problem.schemaPath.slice(0, branch);
    const at = resolve(schema, schemaPath);
    const instance = branch < 0 ? problem.instancePath : cut(problem.instancePath, schemaPath);
    const path = [root, dotted(instance)].filter(Boolean).join('.') || 'body';
    const rule = typeof at?.['description'] === 'string' ? at['description'] : undefined;
    if (branch >= 0) say(path, `must be ${rule ?? 'one of the documented forms'}`);
    else if (problem.keyword === 'required') {
      for (const key of problem.params['requiredProperties'] as string[]) {
        const field = resolve(at ?? {}, `#/properties/${key}`)?.['description'];
        say(join(path, key), `is required${typeof field === 'string' ? `: ${field}` : ''}`);
      }
    } else if (problem.keyword === 'additionalProperties') {
      const known = Object.keys(at?.['properties'] ?? {}).join(', ');
      for (const key of problem.params['additionalProperties'] as string[])
        say(join(path, key), `is not known here; known are ${known}`);
    } else if (problem.keyword !== 'boolean') say(path, messageOf(problem, rule));
  }
  return [...found].map(([path, message]) => ({ path, message }));
}

function messageOf(problem: Problem, rule: string | undefined): string {
  switch (problem.keyword) {
    case 'enum':
      return `must be one of ${(problem.params['allowedValues'] as unknown[]).map(String).join(', ')}`;
    case 'pattern':
    case 'format':
      return `must be ${rule ?? 'of another form'}`;
    case 'minProperties':
    case 'maxProperties':
      return rule === undefined ? problem.message : `must have ${rule}`;
    case 'propertyNames':
      return 'has a key that is not allowed; keys are such as app or example.com/app';
    case 'type':
      return `must be of type ${String(problem.params['type'])}${rule === undefined ? '' : `: ${rule}`}`;
    default:
      return problem.message;
  }
}

/** The part of an instance path that a schema path above it stands for: as deep as it has properties and items. */
function cut(instancePath: string, schemaPath: string): string {
  const depth = (schemaPath.match(/\/(properties|patternProperties)\/[^/]+|\/items/g) ?? []).length;
  return instancePath
    .split('/')
    .slice(0, depth + 1)
    .join('/');
}
function resolve(schema: Plain, pointer: string): Plain | undefined {
  let at: unknown = schema;
  for (const part of pointer.split('/').slice(1))
    at = typeof at === 'object' && at !== null ? (at as Plain)[part] : undefined;
  return at as Plain | undefined;
}
function dotted(instancePath: string): string {
  const parts = instancePath.split('/').slice(1);
  const names = parts.map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'));
  return names.reduce((path, part) => join(path, part), '');
}
function join(path: string, part: string): string {
  if (/^\d+$/.test(part) && path !== '') return `${path}[${part}]`;
  const shown = part.length > 80 ? `${part.slice(0, 77)}...` : part;
  return path === '' || path === 'body' ? shown : `${path}.${shown}`;
}
