/**
 * `npm run bench`: ours and peers side by side, in turn, on the same data, over the real thing: agent and master as processes,
 * mutual TLS, hashes checked, durable at the end on both sides; what was copied is compared afterwards, and a copy that is
 * not the source ends the run. Ratios are what counts: absolute figures are those of this machine on this day.
 */
import { mkdirSync, mkdtempSync, realpathSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArguments, printUsageError, optional, toggle, UsageError, withDefault } from '../../proto/cli.ts';
import { parseChoice, parseSize, parseText } from '../../proto/value.ts';
import { ageOfPgbench } from './age.ts';
import { bench } from './bench.ts';
import { cases } from './cases.ts';
import { drawFlames } from './flame.ts';
import { benchGranule, granuleSizes } from './granuledurable.ts';
import { benchManyFiles, followerNames, manyFilesPeers, manyFilesTable, type ManyFilesResult } from './manyfiles.ts';
import { peers } from './peers.ts';
import { emptyResults, kept, report, resultsFolder, save, type Result } from './results.ts';
import { Missing } from './subject.ts';
import { contents, remove } from './volumes.ts';

const manyFiles = 'many-files';
const age = 'age-pgbench';
const granule = 'granule-durable';
const names = [...Object.keys(cases), age, granule];

const program = {
  name: 'npm run bench --',
  summary:
    'Measure ours against peers, side by side. Not among them: diskrsync and kopia, which the Go module proxy did not give where this was written.',
  flags: {
    case: optional(
      'NAME',
      `one of ${names.join(' ')} (default: all), or ${manyFiles} (with --files, beside ${manyFilesPeers.join(', ')})`,
      parseChoice(...names, manyFiles),
    ),
    peer: optional(
      'NAME',
      `one of ${Object.keys(peers).join(' ')} (default: all); of ${manyFiles} also ${followerNames.join(', ')} or none (default: ${manyFilesPeers.join(', ')})`,
      parseChoice(...Object.keys(peers), ...followerNames, 'none'),
    ),
    runs: withDefault('N', '5', 'runs of each, in turn', parseCount),
    size: withDefault('SIZE', '2GiB', 'of the image; a tree has a third of it', parseSize),
    seconds: withDefault('N', '600', 'of age-pgbench: how long it is mirrored, over all runs', parseCount),
    'round-trip': withDefault('MS', '50', 'of the wan cases', parseCount),
    mbit: withDefault('N', '100', 'megabits a second of the line of the wan cases', parseCount),
    content: withDefault('KIND', 'mixed', `of the image: ${contents.join(' ')}`, parseChoice(...contents)),
    files: withDefault('N', '1000000', `of ${manyFiles}`, parseCount),
    'file-bytes': withDefault('SIZE', '10KiB', `of ${manyFiles}, on average`, parseSize),
    'take-over': toggle(`of ${manyFiles}: rsync begins with our copy, it makes no first one`),
    json: optional('FILE', 'where the results go (default: test/bench/results, by commit)', parseText),
    profile: optional(
      'FOLDER',
      'CPU profiles of agent and master go there (.cpuprofile), each with its flame graph (.svg)',
      parseText,
    ),
    report: toggle("measure nothing: write README's table and the plot from the newest results that are kept"),
  },
};

function parseCount(text: string): number {
  if (!/^[1-9]\d{0,7}$/.test(text)) throw new Error('is no number from 1 to 99999999');
  return Number(text);
}

const { options } = parseArguments(program, process.argv.slice(2));
if (options.profile !== undefined)
  process.env['REPLICATOR_NODE_FLAGS'] = `--cpu-prof --cpu-prof-dir=${resolve(options.profile)}`;
if (options.report) {
  if (!report()) printUsageError(program.name, new UsageError('No results are kept.', 'Run npm run bench first.'));
} else if (options.case === manyFiles) {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'replicator-bench-')));
  // All that is made lies in it, also what is left when this is cut off.
  process.env['TMPDIR'] = folder;
  const { files, runs, 'file-bytes': meanBytes, 'take-over': takeOver } = options;
  const check = files <= 100_000;
  const beside = options.peer === undefined ? manyFilesPeers : [options.peer].filter((name) => name !== 'none');
  const say = (line: string): unknown => process.stdout.write(`${line}\n`);
  const results: ManyFilesResult[] = [];
  // Hours with a million files: what is done by then counts.
  const stopped = (): never => {
    say(`cut off\n${manyFilesTable(results)}`);
    remove(folder);
    process.exit(1);
  };
  process.once('SIGINT', stopped).once('SIGTERM', stopped);
  try {
    await benchManyFiles({ folder, files, meanBytes, runs, check, peers: beside, takeOver }, say, results);
    say(manyFilesTable(results));
  } finally {
    remove(folder);
  }
} else {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'replicator-bench-')));
  const results = emptyResults();
  const line = { roundTripMs: options['round-trip'], bitsPerSecond: options.mbit * 1e6 };
  const path = options.json ?? join(resultsFolder, `${results.commit}.json`);
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  const keep = (result: Result): void => {
    results.results.push(result);
    save(path, kept(path, results));
  };
  try {
    for (const name of options.case === undefined ? names : [options.case]) {
      if (name === granule) {
        for (const size of granuleSizes) {
          await benchGranule(size, options.runs, say).then(keep, (error: unknown) => {
            if (!(error instanceof Missing)) throw error;
            say(`${name}: skipped, ${error.message}`);
          });
        }
        continue;
      }
      if (name === age) {
        await ageOfPgbench(options, say).then(keep, (error: unknown) => {
          if (!(error instanceof Missing)) throw error;
          say(`${name}: skipped, ${error.message}`);
        });
        continue;
      }
      for (const peer of options.peer === undefined ? Object.keys(peers) : [options.peer]) {
        const own = join(folder, `${name}-${peer}`);
        mkdirSync(own);
        const result = await bench(name, peer, { ...options, line, folder: own }, say);
        remove(own);
        if (result) keep(result);
        if (cases[name]?.theirs === undefined) break;
      }
    }
  } finally {
    remove(folder);
  }
  process.stdout.write(`${path}\n`);
}
if (options.profile !== undefined)
  for (const path of drawFlames(resolve(options.profile))) process.stdout.write(`${path}\n`);
