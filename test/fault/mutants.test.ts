/**
 * `npm run e2e -- mutants`: makes one mistake after the other (mutations.ts) in a copy of the program and runs the tests that must
 * notice. One that nobody notices is a hole in the tests, unless mutations.ts says why it makes no difference.
 *
 * REPLICATOR_MUTANTS=FROM-TO runs some of them, counted from 1. Without REPLICATOR_LONG none is run: only that each can be made.
 */
import { spawn, execFileSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { mutations, type Mutation } from './mutations.ts';

const root = join(import.meta.dirname, '../..');
const long = process.env['REPLICATOR_LONG'] !== undefined;
t.setTimeout(7_200_000);
const mostMs = 900_000;

/** Answers how it ended: undefined = well. */
async function failure(folder: string, test: string): Promise<string | undefined> {
  const env = {
    ...process.env,
    TAP_TIMEOUT: '900',
    REPLICATOR_SEED: '1',
    REPLICATOR_TRIES: test.includes('rot') ? '2' : '150',
  };
  delete (env as NodeJS.ProcessEnv)['REPLICATOR_LONG'];
  const child = spawn(process.execPath, [join(folder, 'test', test)], {
    cwd: folder,
    stdio: 'ignore',
    env,
    detached: true,
  });
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
  }, mostMs);
  const [status, signal] = (await once(child, 'close')) as [number | null, string | null];
  clearTimeout(timer);
  if (late) return `did not end within ${mostMs / 1000} s`;
  return status === 0 ? undefined : `status ${status ?? String(signal)}`;
}

/** Node's modules are shared, all else is of its own. */
function copy(folder: string): void {
  fs.mkdirSync(folder);
  const files = execFileSync('git', ['ls-files', '-z'], { cwd: root, encoding: 'utf8' })
    .split('\0')
    .filter((one) => one !== '');
  for (const file of files.filter((one) => fs.existsSync(join(root, one)))) {
    fs.mkdirSync(join(folder, file, '..'), { recursive: true });
    fs.copyFileSync(join(root, file), join(folder, file));
  }
  fs.symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
}

/** Answers which test noticed, or undefined. */
async function noticed(folder: string, { file, find, replace, tests }: Mutation): Promise<string | undefined> {
  const path = join(folder, file);
  const text = fs.readFileSync(path, 'utf8');
  fs.writeFileSync(
    path,
    text.replace(find, () => replace),
  );
  try {
    for (const test of tests) {
      const how = await failure(folder, test);
      if (how !== undefined) return `${test}: ${how}`;
    }
    return undefined;
  } finally {
    fs.writeFileSync(path, text);
  }
}

/** A change of the program may take the place of a mistake away. */
t.test('each mistake can be made: its place is there once, and so are its tests', async (t) => {
  const isFile = (path: string): boolean => fs.existsSync(join(root, path));
  for (const { file, find, replace, tests } of mutations) {
    const what = `${file}: ${JSON.stringify(find)}`;
    const places = isFile(file) ? fs.readFileSync(join(root, file), 'utf8').split(find).length - 1 : 0;
    t.equal(places, 1, `${what} is there once`);
    t.not(find, replace, `${what} is changed`);
    t.strictSame(
      tests.filter((test) => !isFile(join('test', test))),
      [],
      `${what}: its tests are there`,
    );
  }
});

t.test('each mistake is noticed', { skip: long ? false : 'npm run e2e -- mutants' }, async (t) => {
  const folder = join(fs.mkdtempSync(join(tmpdir(), 'mutants-')), 'program');
  t.teardown(() => fs.rmSync(join(folder, '..'), { recursive: true, force: true }));
  copy(folder);
  const [from, to] = (process.env['REPLICATOR_MUTANTS'] ?? `1-${mutations.length}`).split('-').map(Number);
  const chosen = mutations.slice((from ?? 1) - 1, to);
  for (const test of new Set(chosen.flatMap(({ tests }) => tests)))
    t.equal(await failure(folder, test), undefined, `${test} passes without a mistake`);
  for (const [at, mutation] of chosen.entries()) {
    const what = `${at + (from ?? 1)} ${mutation.file}: ${mutation.find.trim().slice(0, 70)} -> ${mutation.replace.trim().slice(0, 60)}`;
    const by = await noticed(folder, mutation);
    t.comment(`${what}: ${by ?? 'SURVIVED'}`);
    if (mutation.equal !== undefined) t.ok(true, `${what}: equal in effect, ${mutation.equal}`);
    else t.ok(by !== undefined, what);
  }
});
