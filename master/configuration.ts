/**
 * The configuration file of the master (an example with every key: replicator-config.yaml): YAML, every key optional, unknown
 * ones refused by name. Flags of the command line come first, key by key; lists are added to.
 *
 * SIGHUP reads it again: `allow`, `tls`, `logLevel` and `requestsPerSecond` take effect at once, the others with the next start. A
 * file that is wrong changes nothing.
 */
import { readFile } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import Type from 'typebox';
import type { Static } from 'typebox';
import Value from 'typebox/value';
import { parseDocument } from 'yaml';
import { UsageError } from '../proto/cli.ts';
import { messageOf } from '../proto/errors.ts';
import { logLevels, type LogLevel } from '../proto/log.ts';
import { parseHostPort } from '../proto/value.ts';

const address = (description: string) => Type.Optional(Type.String({ description: `HOST:PORT ${description}` }));
const paths = (description: string) => Type.Optional(Type.Array(Type.String({ minLength: 1 }), { description }));
export const Configuration = Type.Object(
  {
    http: address('of the control API; TLS beyond the loopback (default 127.0.0.1:8080)'),
    grpc: address('of the agents (default 127.0.0.1:8443)'),
    advertise: paths('names and addresses that agents dial'),
    allow: paths('where recoveries may write, with all below'),
    stateCopy: Type.Optional(
      Type.String({
        description:
          "file that is kept a copy of this master's state, on other storage (secret: it holds the CA); see --take-over",
        minLength: 1,
      }),
    ),
    tls: Type.Optional(
      Type.Object(
        {
          certificateFile: Type.String({ description: 'PEM, with the chain' }),
          keyFile: Type.String({ description: 'PEM' }),
        },
        { additionalProperties: false, description: "of the control API; left out: of the master's own authority" },
      ),
    ),
    logLevel: Type.Optional(
      Type.Unsafe<LogLevel>({ type: 'string', enum: [...logLevels], description: 'default info' }),
    ),
    receivers: Type.Optional(
      Type.Object(
        {
          image: Type.Optional(Type.String({ description: "default: of the master's own pod", minLength: 1 })),
          nodeSelector: Type.Optional(
            Type.Record(Type.String(), Type.String(), {
              description: 'labels of the nodes that keep replicas, such as {disktype: ssd}',
            }),
          ),
        },
        { additionalProperties: false, description: 'pods beside the claims of the storage class kubernetes' },
      ),
    ),
    requestsPerSecond: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: 100_000,
        description: 'of one caller to the control API, with bursts of four times as many (default 100)',
      }),
    ),
    openReplicas: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: 100_000,
        description:
          'replicas whose files stay open while nobody needs them, about 7 files and half a MiB each (default 500)',
      }),
    ),
  },
  { additionalProperties: false },
);

export interface Tls {
  cert: string;
  key: string;
}
export interface Configured extends Omit<Static<typeof Configuration>, 'tls'> {
  tls?: Tls;
}
/** Keys that a running master takes over; the others want a restart. */
export const reloadable = ['allow', 'tls', 'logLevel', 'requestsPerSecond'] as const satisfies (keyof Configured)[];

/** @throws UsageError naming the file and the key */
export async function readConfiguration(path: string): Promise<Configured> {
  const wrong = (message: string, cure: string) => new UsageError(`--config ${path}: ${message}.`, cure);
  let value: unknown;
  try {
    const document = parseDocument(await readFile(path, 'utf8'));
    const [fault] = [...document.errors, ...document.warnings];
    if (fault) throw fault;
    value = document.toJS() ?? {};
  } catch (error) {
    throw wrong(messageOf(error).split('\n')[0] ?? '', 'Name a readable YAML file.');
  }
  if (!Value.Check(Configuration, value)) {
    const { key, message } = firstError(value);
    throw wrong(`${key} ${message}`, `Known keys: ${Object.keys(Configuration.properties).join(', ')}.`);
  }
  for (const key of ['http', 'grpc'] as const) {
    try {
      if (value[key] !== undefined) parseHostPort(value[key]);
    } catch (error) {
      throw wrong(`${key} ${messageOf(error)}`, 'Write HOST:PORT, such as 0.0.0.0:8080.');
    }
  }
  const { tls, ...rest } = value;
  if (!tls) return rest;
  try {
    const pair = { cert: await readFile(tls.certificateFile, 'utf8'), key: await readFile(tls.keyFile, 'utf8') };
    createSecureContext(pair);
    return { ...rest, tls: pair };
  } catch (error) {
    throw wrong(`tls: ${messageOf(error)}`, 'Name PEM files that can be read, of one pair.');
  }
}

function firstError(value: unknown): { key: string; message: string } {
  const first = Value.Errors(Configuration, value)[0];
  const key = (first?.instancePath ?? '').slice(1).replaceAll('/', '.') || 'the file';
  // What a closed object does not have is checked against the schema false.
  const isUnknown = first?.keyword === 'boolean' || first?.keyword === 'additionalProperties';
  return { key, message: isUnknown ? 'is not known' : (first?.message ?? 'is wrong') };
}
