/**
 * What every verb of replctl has in common: the flags that say which master and how to print, and what a verb is given.
 *
 * Where the master is: --url, else `endpoints.json` of --data, else REPLICATOR_URL, else where `login` was, else `endpoints.json` of
 * ./cdm-data/master (where the quickstart keeps it) or /var/lib/replicator-master, else http://127.0.0.1:8080. The token
 * and the CA: --token-file and --ca-file, else `admin.token` and `ca.pem` of --data, else REPLICATOR_TOKEN_FILE, else
 * the session of `login` at this address, else those of the directory that the address came from. So a token of one master is never sent to another by accident.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { getCACertificates, setDefaultCACertificates } from 'node:tls';
import {
  nearest,
  optional,
  readArguments,
  withDefault,
  UsageError,
  type Arguments,
  type Flags,
  type Program,
} from '../../proto/cli.ts';
import { parseChoice, parseText } from '../../proto/value.ts';
import { ApiProblem, connect, type Client } from './client.ts';
import { keptLogin } from './keptlogin.ts';
import { painter, type Paint } from './format.ts';

export const outputs = ['table', 'wide', 'json', 'yaml', 'name'] as const;
export type Output = (typeof outputs)[number];

function parseUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !/^https?:$/.test(url.protocol))
    throw new Error('is not a URL such as http://127.0.0.1:8080');
  return text;
}
export const commonFlags = {
  url: optional('URL', "the master's address (or REPLICATOR_URL)", parseUrl),
  'token-file': optional('FILE', 'file that holds the bearer token (or REPLICATOR_TOKEN_FILE)', parseText),
  'ca-file': optional('FILE', 'certificates to trust for https', parseText),
  data: optional('DIR', "the master's data directory: address, token and CA are read from it", parseText),
  output: { ...withDefault('FORM', 'table', outputs.join('|'), parseChoice(...outputs)), short: 'o' },
};
type Common = typeof commonFlags;

export interface Session {
  readonly client: Client;
  readonly output: Output;
  readonly paint: Paint;
  print(text: string): void;
  /** Beside the result: progress, questions, hints. */
  note(text: string): void;
  /** Aborts when the user interrupts. */
  readonly signal: AbortSignal;
}
export interface Verb {
  readonly program: Program;
  /** Answers the exit status. @throws UsageError and whatever the client throws */
  run(argv: string[], signal: AbortSignal): Promise<number | { help: Program } | { version: Program }>;
}

export function verb<F extends Flags>(
  own: Omit<Program<F>, 'name'> & { name: string },
  work: (session: Session, args: Arguments<F & Common>) => Promise<number>,
): Verb {
  const program = { ...own, name: `replctl ${own.name}`, flags: { ...own.flags, ...commonFlags } };
  return {
    program,
    async run(argv, signal) {
      const args = readArguments(program, argv);
      if ('wants' in args) return args.wants === 'help' ? { help: program } : { version: program };
      const made = session(args.options, signal);
      try {
        return await work(made, args);
      } catch (error) {
        throw await hinted(made.client, error);
      }
    },
  };
}

/** What is not there may have been meant otherwise: its collection is asked for a name that is near. */
async function hinted(client: Client, error: unknown): Promise<unknown> {
  if (!(error instanceof ApiProblem) || error.problem.status !== 404) return error;
  const missing = /^there is no [a-z ]+ "([^"]+)"$/.exec(error.problem.detail)?.[1];
  const collection = /^(\/(?:[a-z]+|replications\/[^/]+\/snapshots))\/[^/]+/.exec(error.path);
  if (missing === undefined || collection === null) return error;
  const path = error.path.startsWith(`/replications/${missing}/`) ? '/replications' : (collection[1] ?? '');
  const names = await client.list<{ metadata: { name: string } }>(path).then(
    ({ items }) => items.map(({ metadata }) => metadata.name),
    () => [],
  );
  const near = nearest(missing, names);
  if (near !== undefined) error.problem.detail += `. Did you mean ${near}?`;
  return error;
}

type CommonOptions = Arguments<Common>['options'];

function session(options: CommonOptions, signal: AbortSignal): Session {
  return {
    client: open(options),
    output: options.output,
    paint: painter(process.stdout.isTTY, process.env),
    print: (text) => void process.stdout.write(text.endsWith('\n') ? text : `${text}\n`),
    note: (text) => void process.stderr.write(text.endsWith('\n') ? text : `${text}\n`),
    signal,
  };
}

function open(options: CommonOptions): Client {
  const kept = keptLogin();
  const url = options.url ?? (options.data === undefined ? (environmentUrl() ?? kept?.url) : undefined);
  const directory = options.data ?? (url === undefined ? defaultDirectories.find(hasEndpoints) : undefined);
  const login = kept?.url === url ? kept : undefined;
  if (options.data !== undefined && url === undefined && !hasEndpoints(options.data))
    throw new UsageError(
      `--data ${options.data}: there is no endpoints.json in it.`,
      'Give the directory that replicator-master was started with, and start the master first.',
    );
  const caFile = options['ca-file'] ?? beside(directory, 'ca.pem');
  const ca = caFile === undefined ? login?.ca : read(caFile, '--ca-file');
  if (ca !== undefined) setDefaultCACertificates([...getCACertificates('default'), ca]);
  const ownToken = beside(directory, 'admin.token');
  const environmentToken = process.env['REPLICATOR_TOKEN_FILE'] || undefined;
  const tokenFile =
    options['token-file'] ?? (options.data === undefined ? undefined : ownToken) ?? environmentToken ?? ownToken;
  const token = tokenFile === undefined ? (login?.token ?? '') : read(tokenFile, '--token-file').trim();
  return connect(url ?? (directory === undefined ? 'http://127.0.0.1:8080' : endpointOf(directory)), token);
}

const defaultDirectories = ['cdm-data/master', '/var/lib/replicator-master'];
const hasEndpoints = (directory: string) => existsSync(join(directory, 'endpoints.json'));

function environmentUrl(): string | undefined {
  const url = process.env['REPLICATOR_URL'] || undefined;
  try {
    return url === undefined ? undefined : parseUrl(url);
  } catch (error) {
    throw new UsageError(
      `REPLICATOR_URL=${url}: ${(error as Error).message}`,
      'Correct the variable, or give --url URL.',
    );
  }
}
function beside(directory: string | undefined, name: string): string | undefined {
  const path = directory === undefined ? undefined : join(directory, name);
  return path !== undefined && existsSync(path) ? path : undefined;
}
function endpointOf(directory: string): string {
  const path = join(directory, 'endpoints.json');
  try {
    const { http } = JSON.parse(readFileSync(path, 'utf8')) as { http: unknown };
    if (typeof http === 'string') return parseUrl(http);
  } catch {
    // Said below, with the cure.
  }
  throw new UsageError(`${path} does not name the master's address.`, 'Give --url URL, or start the master anew.');
}
function read(path: string, flag: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new UsageError(
      `${path} cannot be read: ${(error as Error).message}`,
      `Give ${flag} FILE, a file you may read.`,
    );
  }
}
