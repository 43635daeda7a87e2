/**
 * `npm run quickstart [-- [--once] [--data DIR] [PATH]]`: from nothing to a verified copy of a volume in use.
 *
 * Starts a master and an agent, mirrors PATH (or a sample volume that it makes and goes on writing to), takes a
 * snapshot, runs a drill and demands that its copy is verified; then stays up until Ctrl-C, or ends with --once. What it
 * started it stops. A second run with the same data goes on where the first one was.
 */
import { chmodSync, mkdirSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { optional, parseArguments, printUsageError, toggle, UsageError } from '../../proto/cli.ts';
import { messageOf } from '../../proto/errors.ts';
import { parseFolder } from '../../proto/value.ts';
import { ApiProblem, connect, explainProblem, follow, type Client } from '../../master/cli/client.ts';
import { liveLine, painter, span } from '../../master/cli/format.ts';
import { replicationLine } from '../../master/cli/progress.ts';
import type { Recovery, Replication } from '../../master/resources.ts';
import { start, type Running } from './programs.ts';
import { keepWriting, makeSample } from './sample.ts';
import { inspect, spaceWarning, type Source } from './source.ts';
import { agentActive, drill, endpoints, mirrored, replicationOf, snapshotOf } from './steps.ts';

const root = resolve(import.meta.dirname, '../..');
/** npm runs scripts in the project's folder; paths are meant from where the user stands. */
const here = process.env['INIT_CWD'] ?? process.cwd();
const paint = painter(process.stdout.isTTY, process.env);
const nodeName = 'this-node';

const { options, operands } = parseArguments(
  {
    name: 'npm run quickstart --',
    summary:
      'Mirror PATH (a directory, a raw image or a block device, in use meanwhile) and prove the copy with a drill.',
    operands: '[PATH]',
    maxOperands: 1,
    flags: {
      once: toggle('end after the drill: exit status 0 when the copy is verified, else 1 and the reason'),
      data: optional('DIR', 'where everything is kept (default: cdm-data in the project)', parseFolder),
    },
    notes: 'Without PATH a sample volume is made, and written to meanwhile.',
  },
  process.argv.slice(2),
);

function say(text = ''): void {
  process.stdout.write(`${text}\n`);
}

/** What the last line says; filled as it becomes known. */
const result = {
  http: null as string | null,
  replication: null as string | null,
  recovery: null as string | null,
  path: null as string | null,
  verified: false,
};

function prepare(): { data: string; given: string | undefined } {
  const wanted = options.data === undefined ? join(root, 'cdm-data') : resolve(here, options.data);
  try {
    mkdirSync(wanted, { recursive: true, mode: 0o700 });
    const data = realpathSync(wanted);
    for (const part of ['master', 'agent']) {
      mkdirSync(join(data, part), { recursive: true });
      chmodSync(join(data, part), 0o700);
    }
    return { data, given: operands[0] === undefined ? undefined : resolve(here, operands[0]) };
  } catch (error) {
    throw new UsageError(
      `${wanted} cannot be made: ${(error as Error).message}`,
      'Give a folder of yours with --data DIR.',
    );
  }
}

async function sourceFor(data: string, given: string | undefined, signal: AbortSignal): Promise<Source> {
  if (given !== undefined) return inspect(given, data);
  const directory = join(data, 'sample');
  const files = await makeSample(directory);
  signal.throwIfAborted();
  say(`No PATH given: ${directory} is a sample volume with ${files} files, and is written to all the time.`);
  return inspect(directory, data);
}

/** Starts what is needed, each into `running`, so that the caller can stop it whatever happens. */
async function bringUp(data: string, source: Source, running: Running[], stop: AbortController): Promise<Client> {
  const onFailure = (error: Error) => stop.abort(error);
  const master = join(data, 'master');
  rmSync(join(master, 'endpoints.json'), { force: true });
  const masterFlags = ['--data', master, '--http', '127.0.0.1:0', '--grpc', '127.0.0.1:0'];
  running.push(start(join(root, 'master/replicator-master'), masterFlags, join(data, 'master.log'), onFailure));
  const { http, grpc } = await endpoints(master, stop.signal);
  result.http = http;
  const client = connect(http, readFileSync(join(master, 'admin.token'), 'utf8').trim());
  // What earlier runs with this data mirrored goes on being mirrored.
  const { items } = await client.list<Replication>('/replications');
  const sources = new Set([source.path, ...items.map(({ spec }) => spec.source.path)]);
  const agentFlags = [
    ...['--name', nodeName, '--master', grpc, '--data', join(data, 'agent')],
    ...[...sources].flatMap((path) => ['--allow', path]),
    ...['--join-token-file', join(master, 'join.token'), '--ca-file', join(master, 'ca.pem')],
  ];
  running.push(start(join(root, 'agent/replicator-agent'), agentFlags, join(data, 'agent.log'), onFailure));
  await agentActive(client, nodeName, stop.signal);
  return client;
}

async function prove(client: Client, source: Source, startMs: number, signal: AbortSignal): Promise<void> {
  const replication = await replicationOf(client, nodeName, source);
  const { name } = replication.metadata;
  result.replication = name;
  say(`Mirroring the ${source.what} ${source.path} as replication ${name}:`);
  const { recoveryPoint } = (await mirrored(client, replication, startMs, paint, signal)).status;
  say(`The copy is complete: recovery point ${recoveryPoint?.sequence}, consistency ${recoveryPoint?.consistency}.`);
  const snapshot = await snapshotOf(client, name, signal);
  say(`Snapshot ${snapshot.metadata.name} keeps the point of ${snapshot.status.point?.sourceTime}.`);
  say('Drill: a usable copy of the newest data, beside the mirror, which goes on:');
  const onChange = (recovery: Recovery) => {
    result.recovery = recovery.metadata.name;
    result.path = recovery.status.tasks[0]?.path ?? null;
  };
  const { rtoSeconds, rpoSeconds } = (await drill(client, name, paint, onChange, signal)).status;
  result.verified = true;
  say(
    `${paint('Verified:', 'green')} ${result.path} was read whole and is what the source was ${span(rpoSeconds)} before;`,
  );
  say(`made in ${span(rtoSeconds)}.`);
}

function explain(data: string): void {
  const replctl =
    data === join(process.cwd(), 'cdm-data') ? 'npx replctl' : `npx replctl --data ${join(data, 'master')}`;
  const name = result.replication ?? '';
  say(`
Page               ${result.http}/
API                ${result.http}/api/v1   (docs: ${result.http}/docs, OpenAPI: ${result.http}/openapi.json)
Metrics            ${result.http}/metrics
Token              ${join(data, 'master/admin.token')}
Data and logs      ${data}

Try in another terminal, in ${process.cwd()}:
  ${replctl} get replications
  ${replctl} describe replication ${name}
  ${replctl} get points ${name}
  ${replctl} recover ${name} --type drill --wait
  ${replctl} delete recovery ${result.recovery}

Mirroring goes on. Ctrl-C stops everything; the same command goes on with the same data.`);
}

/** A live line with the age of the copy, until the signal. */
async function stayUp(client: Client, tally: { changes: number } | undefined, signal: AbortSignal): Promise<void> {
  const live = liveLine(process.stdout);
  let newest: { replication: Replication; atMs: number } | undefined;
  const show = () => {
    if (newest === undefined) return;
    const writes = tally === undefined ? '' : `  ${tally.changes} changes written`;
    live.show(replicationLine(newest.replication, paint, (performance.now() - newest.atMs) / 1000) + writes);
  };
  const ticker = setInterval(show, process.stdout.isTTY ? 500 : 10_000);
  try {
    for await (const replication of follow<Replication>(client, '/replications', result.replication ?? '', signal))
      newest = { replication, atMs: performance.now() };
    throw new Error(`Replication ${result.replication} was deleted: nothing is left to do.`);
  } finally {
    clearInterval(ticker);
    live.end();
  }
}

async function quickstart(running: Running[], stop: AbortController): Promise<void> {
  const startMs = Date.now();
  const { data, given } = prepare();
  const source = await sourceFor(data, given, stop.signal);
  const warning = spaceWarning(source, data);
  if (warning !== null) say(paint(warning, 'yellow'));
  const tally = given === undefined ? { changes: 0 } : undefined;
  if (tally !== undefined) {
    const writing = new AbortController();
    const done = keepWriting(source.path, tally, writing.signal).catch((error: unknown) => stop.abort(error));
    running.push({ stop: () => (writing.abort(), done) });
  }
  say('Starting a master and an agent ...');
  const client = await bringUp(data, source, running, stop);
  await prove(client, source, startMs, stop.signal);
  if (tally !== undefined) say(`Meanwhile ${tally.changes} changes were made to the sample volume.`);
  if (options.once) return;
  explain(data);
  await stayUp(client, tally, stop.signal);
}

class Interrupted extends Error {}

/** Stops in the order opposite to starting: nobody is left talking to nobody. A second Ctrl-C, later on, waits no more. */
async function main(): Promise<number> {
  const stop = new AbortController();
  const running: Running[] = [];
  let interruptedMs = Infinity;
  const interrupt = () => {
    // npm passes on the signal that a terminal has already sent to us: the same one twice.
    if (performance.now() - interruptedMs > 1000) process.exit(130);
    interruptedMs = Math.min(interruptedMs, performance.now());
    stop.abort(new Interrupted());
  };
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt).on('SIGHUP', interrupt);
  let failure: unknown;
  try {
    await quickstart(running, stop);
  } catch (error) {
    failure = stop.signal.aborted ? stop.signal.reason : error;
  }
  if (failure instanceof Interrupted) say('Stopping ...');
  for (const program of running.toReversed()) await program.stop();
  if (failure instanceof Interrupted) say('Everything is stopped; the data stays.');
  else if (failure instanceof UsageError) printUsageError('quickstart', failure);
  else if (failure !== undefined)
    process.stderr.write(
      `quickstart: ${failure instanceof ApiProblem ? explainProblem(failure.problem) : messageOf(failure)}\n`,
    );
  if (options.once) say(JSON.stringify(result));
  if (failure instanceof Interrupted) return options.once ? 130 : 0;
  return failure === undefined ? 0 : failure instanceof UsageError ? 2 : 1;
}

process.exitCode = await main();
