import t from 'tap';
import { runSeed } from './run.ts';

/** Seeds that found something once, by what they found. */
const regressions: Record<string, number> = {
  'names of the journal and its folders are durable before a commit is acknowledged': 113,
  'a read ahead that fails while nobody waits for it is heard': 106,
  'a lost line gives back what was offered, so that the reading goes on': 137,
  'a volume shrunk by force needs nothing of what it has lost': 3064,
  'a scrub asks for nothing beyond the end of a volume that shrank': 1115,
  'a snapshot is deleted in one step': 107,
  'what a journal was opened with is durable before anything is said of it': 5212,
  'so is the commit that the process before had written and not synced': 5115,
};

for (const [what, seed] of Object.entries(regressions)) {
  t.test(`${what} (npm run sim -- ${seed})`, async (t) => t.same((await runSeed(seed)).violations, []));
}

t.test('a few seeds, each with faults, commits and recoveries', async (t) => {
  const total: Record<string, number> = {};
  for (let seed = 1; seed <= 5; seed++) {
    const { violations, counts } = await runSeed(seed);
    t.same(violations, [], `npm run sim -- ${seed}`);
    for (const [key, count] of Object.entries(counts)) total[key] = (total[key] ?? 0) + count;
  }
  for (const key of [
    'points',
    'acknowledged',
    'recovered',
    'powerLosses',
    'cuts',
    'silences',
    'lostWrites',
    'lostNames',
  ])
    t.ok((total[key] ?? 0) > 0, `${key} happened`);
});

t.test('a seed replays the same', async (t) => {
  const trace = async (): Promise<string[]> => {
    const lines: string[] = [];
    await runSeed(5, (line) => lines.push(line));
    return lines;
  };
  t.same(await trace(), await trace());
});
