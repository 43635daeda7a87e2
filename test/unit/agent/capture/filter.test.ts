import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Filter, type Patterns } from '../../../../agent/capture/filter.ts';
import { seeded, TreeMutator } from '../../../conformance/treemutator.ts';
import { mirrored, missingForFanotify } from '../../../conformance/treeplace.ts';
import { attach, sync } from '../../../conformance/capture.ts';
import { walkReplica } from '../../../conformance/treewalk.ts';

t.setTimeout(240_000);

function filter(patterns: Partial<Patterns>): (path: string) => boolean {
  const made = new Filter({ include: [], exclude: [], ...patterns });
  return (path) => {
    const names = path
      .replace(/\/$/, '')
      .split('/')
      .map((name) => Buffer.from(name));
    // As the walk does: what is below something that is left out is not asked for.
    return names.every((name, at) => made.wants(names.slice(0, at), name, at < names.length - 1 || path.endsWith('/')));
  };
}

t.test('exclude leaves out what matches and all below it', async (t) => {
  const wants = filter({
    exclude: ['*.tmp', '/cache/', 'node_modules/', 'a/**/z', '!keep.tmp', '#none', '\\#file', 'Case'],
  });
  const outcome: Record<string, boolean> = {
    'x.tmp': false, 'deep/x.tmp': false, 'keep.tmp': true, 'x.tmpx': true, 'cache/x': false, 'sub/cache/x': true, cache: true,
    'cache/': false, 'sub/node_modules/x/y': false, 'a/z': false, 'a/b/c/z': false, 'b/z': true, '#none': true, '#file': false,
    'new\nline.tmp': false, '...': true, '..a': true, ' ': true, Case: false, case: true,
  }; // prettier-ignore
  for (const [path, wanted] of Object.entries(outcome)) t.equal(wants(path), wanted, JSON.stringify(path));
});

t.test('include keeps what matches, and directories that lead there', async (t) => {
  const wants = filter({ include: ['/data/', 'etc/*/conf.d', '*.pdf'], exclude: ['/data/tmp'] });
  t.ok(['data/', 'data/x/y', 'etc/', 'etc/a/', 'etc/a/conf.d/x', 'some/where/a.pdf'].every(wants));
  t.notOk(['data/tmp/x', 'etc/a/other', 'some/where/a.txt', 'data.txt'].some(wants));
  const anchored = filter({ include: ['/srv/www/html/', '/srv/db-*/wal'] });
  t.ok(['srv/', 'srv/www/', 'srv/www/html/a', 'srv/db-1/', 'srv/db-1/wal/x'].every(anchored));
  t.notOk(['var/', 'srv/ftp/', 'srv/www/x', 'srv/www/logs/', 'srv/db-1/base/'].some(anchored), 'nothing else');
});

t.test('a pattern that cannot be read is named', async (t) => {
  t.throws(() => filter({ exclude: ['ok', 'two\nlines'] }), {
    code: 'SourceRefused',
    message: /source\.exclude\[1\].*two/,
  });
});

const missingGit = spawnSync('git', ['--version']).status !== 0 && 'needs git';
t.test('exclude agrees with git on random trees and patterns', { skip: missingGit }, async (t) => {
  const root = fs.mkdtempSync(join(tmpdir(), 'filter-'));
  t.teardown(() => fs.rmSync(root, { recursive: true, force: true }));
  const git = (...args: string[]): string =>
    execFileSync('git', ['-C', root, ...args], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  git('init', '-q');
  const next = seeded(11);
  const pick = (list: readonly string[]): string => list[next(list.length)] ?? '';
  const words = ['a', 'b', 'ab', 'a.c', '.d', 'A'];
  for (let at = 0; at < 300; at++) {
    const path = join(root, ...Array.from({ length: 1 + next(4) }, () => pick(words)));
    try {
      fs.mkdirSync(join(path, '..'), { recursive: true });
      fs.writeFileSync(path, '', { flag: 'wx' });
    } catch {
      // it is there, or something on the way is a file
    }
  }
  const files = execFileSync(
    'find',
    [root, '-path', `${root}/.git`, '-prune', '-o', '-type', 'f', '-printf', '%P\\n'],
    {
      encoding: 'utf8',
    },
  )
    .trimEnd()
    .split('\n');
  t.ok(files.length > 50);
  for (let round = 0; round < 60; round++) {
    const parts = [...words, '*', 'a*', '**', '?', '[ab]', '*.c'];
    const patterns = Array.from({ length: 1 + next(4) }, () => {
      const body = Array.from({ length: 1 + next(3) }, () => pick(parts)).join('/');
      return `${next(5) === 0 ? '!' : ''}${next(3) === 0 ? '/' : ''}${body}${next(4) === 0 ? '/' : ''}`;
    });
    fs.writeFileSync(join(root, '.git/patterns'), patterns.join('\n'));
    const kept = git('ls-files', '-z', '--others', `--exclude-from=${root}/.git/patterns`).split('\0').filter(Boolean);
    const wants = filter({ exclude: patterns });
    t.same(files.filter(wants).sort(), kept.sort(), patterns.join(' '));
  }
});

const noFanotify = await missingForFanotify();
for (const scanRatio of [1, 0]) {
  const skip = scanRatio === 0 && noFanotify;
  t.test(`a tree is mirrored without what is left out (scans: ${scanRatio})`, { skip }, async (t) => {
    const patterns = { include: ['*.db', '/all/'], exclude: ['cache/', '*.tmp'] };
    const wants = filter(patterns);
    const { root, source, replica } = await mirrored(t, () => undefined, { ...patterns, scanRatio, force: true });
    const expect = async (...paths: string[]): Promise<void> => {
      t.equal(await sync(source, replica), undefined);
      const has = [...walkReplica(replica).keys()].filter((path) => path !== '').map((path) => path.slice(1));
      t.same(has.sort(), paths.sort());
    };
    for (const path of ['all/cache', 'other/cache', 'other/deep']) fs.mkdirSync(`${root}/${path}`, { recursive: true });
    for (const path of [
      'all/x',
      'all/x.tmp',
      'all/cache/y',
      'other/1.db',
      'other/deep/2.db',
      'other/deep/text',
      'other/cache/3.db',
    ])
      fs.writeFileSync(`${root}/${path}`, path);
    await expect('all', 'all/x', 'other', 'other/1.db', 'other/deep', 'other/deep/2.db');
    fs.renameSync(`${root}/other/deep/text`, `${root}/other/deep/text.db`);
    fs.renameSync(`${root}/other/1.db`, `${root}/other/1`);
    await expect('all', 'all/x', 'other', 'other/deep', 'other/deep/2.db', 'other/deep/text.db');
    const { sentBytes } = replica;
    fs.renameSync(`${root}/other/deep`, `${root}/other/cache/deep`);
    await expect('all', 'all/x', 'other');
    fs.renameSync(`${root}/other/cache/deep`, `${root}/all/deep`);
    fs.renameSync(`${root}/all/x`, `${root}/all/x.tmp`);
    fs.writeFileSync(`${root}/all/deep/plain`, '');
    await expect('all', 'all/deep', 'all/deep/2.db', 'all/deep/text.db', 'all/deep/plain', 'other');
    t.ok(replica.sentBytes > sentBytes);
    fs.renameSync(`${root}/all`, `${root}/no-longer-all`);
    await expect(
      'no-longer-all',
      'no-longer-all/deep',
      'no-longer-all/deep/2.db',
      'no-longer-all/deep/text.db',
      'other',
    );
    t.ok(
      [...walkReplica(replica).keys()].every(
        (path) => path === '' || wants(`${path.slice(1)}/`) || wants(path.slice(1)),
      ),
    );
    if (scanRatio === 0) t.equal(source.counters.fullScans, 1);
  });
}

t.test('other patterns take out and bring in, in the next session', async (t) => {
  const { root, source, replica, place } = await mirrored(
    t,
    (root) => {
      fs.mkdirSync(`${root}/d`);
      for (const name of ['a.log', 'b.log', 'c']) fs.writeFileSync(`${root}/d/${name}`, name);
    },
    {},
  );
  await source.close();
  for (const [exclude, names] of [
    [['*.log'], ['', '/d', '/d/c']],
    [['a.*'], ['', '/d', '/d/b.log', '/d/c']],
    [['d'], ['']],
    [[], ['', '/d', '/d/a.log', '/d/b.log', '/d/c']],
  ] as const) {
    const next = place.open({ exclude, force: false });
    await attach(next, replica);
    t.equal(await sync(next, replica), undefined);
    t.same([...walkReplica(replica).keys()].sort(), names, exclude.join(' '));
    await next.close();
  }
  t.ok(fs.existsSync(`${root}/d/a.log`));
});

t.test('under a writer, the mirror is the tree without what is left out', async (t) => {
  const patterns = { include: [], exclude: ['n1*', '/n2*/n*', '*\\%00'] };
  const { root, source, replica } = await mirrored(t, () => undefined, patterns);
  const mutator = new TreeMutator(root, 77);
  const made = new Filter(patterns);
  const kept = (directory: Buffer[] = []): string[] => {
    const path = Buffer.concat([Buffer.from(root), ...directory.flatMap((name) => [Buffer.from('/'), name])]);
    return fs.readdirSync(path, { encoding: 'buffer', withFileTypes: true }).flatMap(({ name }) => {
      const isDirectory = fs.lstatSync(Buffer.concat([path, Buffer.from('/'), name])).isDirectory();
      if (!made.wants(directory, name, isDirectory)) return [];
      const here = [...directory, name].map((one) => `/${one.toString('latin1')}`).join('');
      return [here, ...(isDirectory ? kept([...directory, name]) : [])];
    });
  };
  for (let round = 0; round < 15; round++) {
    await mutator.change(30);
    t.equal(await sync(source, replica), undefined);
    t.same([...walkReplica(replica).keys()].filter(Boolean).sort(), kept().sort());
  }
});
