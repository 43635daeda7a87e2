/**
 * `npm run bench`: ours and peers side by side, in turn, on the same data, over the real thing: agent and master as processes,
 * mutual TLS, hashes checked, durable at the end on both sides; what was copied is compared afterwards, and a copy that is
 * not the source ends the run. Ratios are what counts: absolute figures are those of this machine on this day.
 */
import { mkdirSync, mkdtempSync, realpathSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArguments, printUsageError, optional, toggle, UsageError, withDefault } from '../../proto/cli.ts';
import { parseChoice, parseSize, parseText } from '../../proto/value.ts';
import { bench } from './bench.ts';
import { cases } from './cases.ts';
import { peers } from './peers.ts';
import { emptyResults, newest, report, resultsFolder, save } from './results.ts';
import { contents, remove } from './volumes.ts';

const program = {
  name: 'npm run bench --',
  summary: 'Measure ours against peers, side by side.',
  flags: {
    case: optional('NAME', `one of ${Object.keys(cases).join(' ')} (default: all)`, parseChoice(...Object.keys(cases))),
    peer: optional('NAME', `one of ${Object.keys(peers).join(' ')} (default: all)`, parseChoice(...Object.keys(peers))),
    runs: withDefault('N', '5', 'runs of each, in turn', parseCount),
    size: withDefault('SIZE', '2GiB', 'of the image; a tree has a third of it', parseSize),
    content: withDefault('KIND', 'mixed', `of the image: ${contents.join(' ')}`, parseChoice(...contents)),
    json: optional('FILE', 'where the results go (default: test/bench/results, by commit)', parseText),
    report: toggle("measure nothing: write README's table and the plot from the newest results that are kept"),
  },
};

function parseCount(text: string): number {
  if (!/^[1-9]\d{0,2}$/.test(text)) throw new Error('is no number from 1 to 999');
  return Number(text);
}

const { options } = parseArguments(program, process.argv.slice(2));
if (options.report) {
  const found = newest();
  if (!found) printUsageError(program.name, new UsageError('No results are kept.', 'Run npm run bench first.'));
  else report(found);
} else {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'replicator-bench-')));
  const results = emptyResults();
  const path = options.json ?? join(resultsFolder, `${results.commit}.json`);
  try {
    for (const name of options.case === undefined ? Object.keys(cases) : [options.case]) {
      for (const peer of options.peer === undefined ? Object.keys(peers) : [options.peer]) {
        const own = join(folder, `${name}-${peer}`);
        mkdirSync(own);
        const result = await bench(name, peer, { ...options, folder: own }, (line) =>
          process.stdout.write(`${line}\n`),
        );
        remove(own);
        if (result) results.results.push(result);
        save(path, results);
        if (cases[name]?.theirs === undefined) break;
      }
    }
  } finally {
    remove(folder);
  }
  process.stdout.write(`${path}\n`);
}
