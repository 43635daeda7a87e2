/** The configuration file of the master: YAML, every key optional, unknown ones refused by name. */
import { readFile } from 'node:fs/promises';
import Type from 'typebox';
import type { Static } from 'typebox';
import Value from 'typebox/value';
import { parse } from 'yaml';
import { UsageError } from '../proto/cli.ts';
import { messageOf } from '../proto/errors.ts';

const address = Type.String({ description: 'HOST:PORT' });
const Configuration = Type.Object(
  {
    http: Type.Optional(address),
    grpc: Type.Optional(address),
    advertise: Type.Optional(Type.Array(Type.String())),
    allow: Type.Optional(Type.Array(Type.String())),
    tls: Type.Optional(
      Type.Object(
        { certificateFile: Type.String(), keyFile: Type.String() },
        { additionalProperties: false, description: 'PEM, of the control API' },
      ),
    ),
  },
  { additionalProperties: false },
);

export interface Configured extends Omit<Static<typeof Configuration>, 'tls'> {
  tls?: { cert: string; key: string };
}

/** @throws UsageError naming the file and the key */
export async function readConfiguration(path: string): Promise<Configured> {
  const wrong = (message: string, cure: string) => new UsageError(`--config ${path}: ${message}.`, cure);
  let value: unknown;
  try {
    value = parse(await readFile(path, 'utf8')) ?? {};
  } catch (error) {
    throw wrong(messageOf(error).split('\n')[0] ?? '', 'Name a readable YAML file.');
  }
  if (!Value.Check(Configuration, value)) {
    const first = Value.Errors(Configuration, value)[0];
    const key = first?.instancePath.slice(1).replaceAll('/', '.') ?? '';
    throw wrong(
      `${key || 'the file'} ${first?.message ?? 'is wrong'}`,
      `Known keys: ${Object.keys(Configuration.properties).join(', ')}.`,
    );
  }
  const { tls, ...rest } = value;
  if (!tls) return rest;
  try {
    return {
      ...rest,
      tls: { cert: await readFile(tls.certificateFile, 'utf8'), key: await readFile(tls.keyFile, 'utf8') },
    };
  } catch (error) {
    throw wrong(`tls: ${messageOf(error)}`, 'Name files that exist and can be read.');
  }
}
