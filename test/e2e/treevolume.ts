/**
 * Directory trees of tests: tens of thousands of real files and everything else that a tree may hold, a writer that goes on
 * in it, and rsync as the judge of whether two are the same.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { lsetxattr, mknod } from '../../proto/libc.ts';
import { TreeMutator } from '../conformance/treemutator.ts';
import { run } from '../loop.ts';
import { noise, writeSparse } from './content.ts';

export const missingRsync = spawnSync('rsync', ['--version'], { stdio: 'ignore' }).status !== 0 && 'needs rsync';
const hasAcls = spawnSync('setfacl', ['--version'], { stdio: 'ignore' }).status === 0;
const modules = resolve(import.meta.dirname, '../../node_modules');

/** The files of this project's dependencies, without the few large ones: about 24,000 of 115 MB. */
export function copyRealFiles(directory: string): void {
  run('rsync', '-a', '--max-size=64k', `${modules}/`, `${directory}/`);
}

/** What else a tree may hold. `live` is for the writer. */
export async function addOddities(directory: string): Promise<void> {
  const path = (name: string): string => join(directory, 'odd', name);
  const latin = (name: string): Buffer => Buffer.concat([Buffer.from(`${path('')}/`), Buffer.from(name, 'latin1')]);
  fs.mkdirSync(path('empty/within/empty'), { recursive: true });
  fs.mkdirSync(join(directory, 'live'));
  fs.writeFileSync(path('one'), 'one inode, three names\n');
  fs.linkSync(path('one'), path('two'));
  fs.linkSync(path('one'), path('empty/three'));
  fs.symlinkSync('nowhere', path('dangling'));
  fs.symlinkSync('../..', path('upwards'));
  fs.symlinkSync(path('one'), path('absolute'));
  fs.writeFileSync(path('a\nline'), 'names have newlines');
  fs.writeFileSync(latin('not \xff\xfe UTF-8'), 'names are bytes');
  fs.symlinkSync(Buffer.from('to \xff', 'latin1'), latin('link \xe9'));
  fs.writeFileSync(path('n'.repeat(255)), 'as long as names get');
  fs.writeFileSync(path(' -rf *;$(x)\\%00'), '');
  fs.writeFileSync(path('old'), 'from before the epoch');
  fs.utimesSync(path('old'), -1.5, -86_400.25);
  await mknod(path('fifo'), 0o010640);
  await mknod(path('socket'), 0o140600);
  writeSparse(path('sparse'), (1 << 30) + 12_345, [0, 100 << 20, 1 << 30]);
  fs.writeFileSync(path('large'), noise((5 << 20) + 77));
  fs.writeFileSync(path('run-me'), '#!/bin/sh\n', { mode: 0o700 });
  fs.chmodSync(path('run-me'), 0o6755);
  fs.writeFileSync(path('read-only'), 'read only', { mode: 0o400 });
  await lsetxattr(Buffer.from(path('one')), 'user.note', noise(300));
  if (hasAcls) {
    run('setfacl', '-m', 'u:12345:rw,g:54321:r', path('old'));
    run('setfacl', '-d', '-m', 'u:12345:rwx', path('empty'));
  }
  if (process.getuid?.() === 0) {
    await mknod(path('null'), 0o020666, 1, 3);
    fs.chownSync(path('large'), 12_345, 54_321);
    fs.lchownSync(path('dangling'), 4_000_000_000, 7);
    await lsetxattr(Buffer.from(path('upwards')), 'trusted.note', Buffer.from('on a link'));
  }
  // Longer than most programs expect, and still what rsync can handle.
  const deep = path(Array<string>(18).fill('d'.repeat(200)).join('/'));
  fs.mkdirSync(deep, { recursive: true });
  fs.writeFileSync(join(deep, 'bottom'), 'deep');
}

export interface TreeWriter {
  /** Ends it; the tree is as it will stay when this returns. */
  stop(): Promise<void>;
  readonly rounds: number;
}

/** Changes `live` at random, appends to a log, and now and then moves, links or removes what was there from the start. */
export function startTreeWriter(directory: string, next: () => number, pauseMs = 300): TreeWriter {
  const mutator = new TreeMutator(join(directory, 'live'), Math.floor(next() * 2 ** 31));
  const among = (list: string[]): string => list[Math.floor(next() * list.length)] ?? '';
  const packages = (): string[] =>
    fs
      .readdirSync(directory)
      .filter((name) => !['live', 'odd', 'log', 'mine', 'lost+found'].includes(name) && !name.startsWith('@'));
  const large: (() => void)[] = [
    () => fs.renameSync(join(directory, among(packages())), join(directory, `moved-${rounds}`)),
    () => fs.renameSync(join(directory, among(packages())), join(directory, 'odd', `taken-${rounds}`)),
    () => fs.rmSync(join(directory, among(packages())), { recursive: true }),
    () => void run('cp', '-a', join(directory, among(packages())), join(directory, `copied-${rounds}`)),
    () => fs.chmodSync(join(directory, among(packages())), 0o750),
    () => fs.truncateSync(join(directory, 'log'), 10),
  ];
  let rounds = 0;
  let stopped = false;
  const work = (async () => {
    for (; !stopped; rounds++) {
      fs.appendFileSync(join(directory, 'log'), `round ${rounds}\n`.repeat(1 + Math.floor(next() * 3000)));
      await mutator.change(1 + Math.floor(next() * 8));
      if (next() < 0.3 && packages().length > 0) large[Math.floor(next() * large.length)]?.();
      await sleep(pauseMs * (0.5 + next()));
    }
  })();
  work.catch(() => undefined); // told by `stop`
  return {
    async stop() {
      stopped = true;
      await work;
    },
    get rounds() {
      return rounds;
    },
  };
}

/** What rsync would have to do, reading everything, to make the copy the source; nothing when they are the same. */
export function rsyncDifferences(source: string, copy: string, what = ['-aHAXSnc', '--numeric-ids']): string[] {
  const flags = [...what, '--delete', '--itemize-changes'];
  const { status, stdout, stderr } = spawnSync('rsync', [...flags, `${source}/`, `${copy}/`], {
    encoding: 'latin1',
    maxBuffer: 1 << 28,
  });
  if (status !== 0) throw new Error(`rsync ended with status ${status}: ${stderr}`);
  return stdout.split('\n').filter((line) => line !== '');
}

/** All entries below. */
export function countEntries(directory: string): number {
  return Number(run('sh', '-c', 'find "$1" -mindepth 1 -printf x | wc -c', 'sh', directory));
}

/** Bytes that are stored, holes not counted. */
export function storedBytes(directory: string): number {
  return Number(run('du', '--summarize', '--block-size=1', directory).split('\t')[0]);
}
