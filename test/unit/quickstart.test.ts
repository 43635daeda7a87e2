import t from 'tap';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { UsageError } from '../../proto/cli.ts';
import { parseName } from '../../proto/value.ts';
import { start } from '../quickstart/programs.ts';
import { keepWriting, makeSample } from '../quickstart/sample.ts';
import { inspect, nameFor, spaceWarning } from '../quickstart/source.ts';

const directory = mkdtempSync(join(tmpdir(), 'quickstart-'));
t.teardown(() => rmSync(directory, { recursive: true }));
const data = join(directory, 'volume', 'data');
mkdirSync(data, { recursive: true });
const image = join(directory, 'disk.img');
writeFileSync(image, '');
truncateSync(image, 2 ** 40);

t.test('PATH is told apart: directory, image of any size, and through a link', async (t) => {
  symlinkSync(image, join(directory, 'link'));
  t.match(inspect(data, directory), { volumeMode: 'Filesystem', what: 'directory' });
  t.match(inspect(join(directory, 'link'), data), { path: image, volumeMode: 'Block', what: 'raw image' });
  t.equal(spaceWarning(inspect(image, data), data), null, 'a sparse image needs what it stores');
  const huge = { ...inspect(image, data), storedBytes: 2 ** 60 };
  t.match(spaceWarning(huge, data), /MiB free.*--data/);
});

t.test('PATH that cannot be mirrored is refused with the cure', async (t) => {
  const locked = join(directory, 'locked');
  mkdirSync(locked);
  chmodSync(locked, 0);
  const refusals: [string, RegExp, RegExp][] = [
    ['/nowhere', /does not exist/, /sample volume/],
    ['/dev/null', /neither/, /sample volume/],
    [join(directory, 'volume'), /would copy itself/, /--data/],
  ];
  if (process.getuid?.() !== 0) refusals.push([locked, /cannot be read/, /root/]);
  for (const [path, message, cure] of refusals) {
    try {
      inspect(path, data);
      t.fail(`${path} was accepted`);
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      t.match(error.message, message);
      t.match(error.cure, cure);
    }
  }
});

t.test('a name is made from any path', async (t) => {
  for (const path of ['/', '/srv/Orders DB_1', '/x/---', `/x/${'a.'.repeat(100)}`, '/ü'])
    t.ok(parseName(nameFor(path)), path);
});

t.test(
  'the sample volume has thousands of files of many kinds, is kept, and changes while the writer runs',
  async (t) => {
    const sample = join(directory, 'sample');
    const files = await makeSample(sample);
    t.ok(files > 3000);
    t.equal(await makeSample(sample), files, 'a second run keeps it');
    t.ok(lstatSync(join(sample, 'media/dangling')).isSymbolicLink());
    t.equal(lstatSync(join(sample, 'media/hard-link')).nlink, 2);
    t.ok(
      readdirSync(join(sample, 'media'), 'buffer').some((name) => name.includes(0xff)),
      'a name that is not UTF-8',
    );
    const tally = { changes: 0 };
    const stop = new AbortController();
    const writing = keepWriting(sample, tally, stop.signal);
    while (!readdirSync(join(sample, 'incoming')).includes('order-1')) await new Promise(setImmediate);
    stop.abort();
    await writing;
    t.ok(tally.changes >= 4);
    t.match(readFileSync(join(sample, 'application.log'), 'utf8'), /order 0 booked/);
  },
);

t.test('a program that ends by itself is told with the end of its log; one that is stopped is not', async (t) => {
  const log = join(directory, 'log');
  const failure = await new Promise<Error>((told) => start('/bin/sh', ['-c', 'echo oh no; exit 7'], log, told));
  t.match(failure.message, /sh ended by itself \(exit status 7\)[^]*oh no/);
  const absent = await new Promise<Error>((told) => start('/nowhere/program', [], log, told));
  t.match(absent.message, /program ended by itself/);
  let told = false;
  await start('/bin/sleep', ['1000'], log, () => (told = true)).stop();
  t.notOk(told);
});

t.test('wrong usage: status 2, the cure, and with --once the last line is JSON all the same', async (t) => {
  const run = (...argv: string[]) =>
    spawnSync(process.execPath, [resolve(import.meta.dirname, '../quickstart/main.ts'), ...argv], { encoding: 'utf8' });
  const flag = run('--onec');
  t.equal(flag.status, 2);
  t.match(flag.stderr, /Did you mean --once/);
  const absent = run('--once', '--data', join(directory, 'new'), '/nowhere');
  t.equal(absent.status, 2);
  t.match(absent.stderr, /\/nowhere does not exist/);
  t.match(JSON.parse(absent.stdout.trim().split('\n').at(-1) ?? ''), { replication: null, verified: false });
});
