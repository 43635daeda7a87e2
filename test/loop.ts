/** Real filesystems for tests: an image in the temporary directory, its loop device, its mount; all taken down with the test. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';

export interface LoopMount {
  directory: string;
  image: string;
  device: string;
  mountPoint: string;
}

/** Why there can be no loop mount here, or false. */
export function missingForLoop(type: string): string | false {
  if (process.getuid?.() !== 0) return 'needs root';
  for (const program of [`mkfs.${type}`, 'losetup', 'mount']) {
    if (spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0) return `needs ${program}`;
  }
  return spawnSync('losetup', ['--find']).status === 0 ? false : 'needs a free loop device';
}

export function run(program: string, ...args: string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

/** A loop device over a new sparse image, with partitions if the image gets a table. */
export function loopDevice(t: Pick<Test, 'teardown'>, sizeMiB: number): { image: string; device: string } {
  const directory = mkdtempSync(join(tmpdir(), 'loop-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const image = join(directory, 'image');
  writeFileSync(image, '');
  truncateSync(image, sizeMiB * 2 ** 20);
  const device = run('losetup', '--find', '--show', '--partscan', image).trim();
  t.teardown(() => void spawnSync('losetup', ['--detach', device]));
  return { image, device };
}

export async function loopMount(
  t: Pick<Test, 'teardown'>,
  type: string,
  sizeMiB: number,
  options: string[] = [],
): Promise<LoopMount> {
  const directory = mkdtempSync(join(tmpdir(), `loop-${type}-`));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const image = join(directory, 'image');
  writeFileSync(image, '');
  truncateSync(image, sizeMiB * 2 ** 20);
  run(`mkfs.${type}`, '-q', ...options, image);
  const device = run('losetup', '--find', '--show', image).trim();
  t.teardown(() => void spawnSync('losetup', ['--detach', device]));
  const mountPoint = join(directory, 'mounted');
  mkdirSync(mountPoint);
  run('mount', device, mountPoint);
  unmountAfter(t, mountPoint);
  return { directory, image, device, mountPoint };
}

/** What lies in an image file, mounted; as a virtual machine or a local volume has it. */
export function mountImage(t: Pick<Test, 'teardown'>, image: string, mountPoint: string): void {
  mkdirSync(mountPoint, { recursive: true });
  const device = run('losetup', '--find', '--show', image).trim();
  t.teardown(() => void spawnSync('losetup', ['--detach', device]));
  run('mount', device, mountPoint);
  unmountAfter(t, mountPoint);
}

/**
 * After it the volume is as it will stay, also where another mount namespace (of a test beside this one) has the filesystem
 * too: then umount(8) writes nothing, and of ext4 the superblock stays as the last thaw left it, which no cut brings.
 */
export function unmountWhole(mountPoint: string): void {
  run('mount', '-o', 'remount,ro', mountPoint);
  run('umount', mountPoint);
}

/** Nothing that a failed test left stands in the way: no freeze, no process that is still ending. */
export function unmountAfter(t: Pick<Test, 'teardown'>, mountPoint: string): void {
  t.teardown(() => {
    spawnSync('fsfreeze', ['--unfreeze', mountPoint]);
    if (spawnSync('umount', [mountPoint]).status !== 0) spawnSync('umount', ['--lazy', mountPoint]);
  });
}

export function missingForTmpfs(): string | false {
  if (process.getuid?.() !== 0) return 'needs root';
  return spawnSync('sh', ['-c', 'command -v mount']).status === 0 ? false : 'needs mount';
}

export function tmpfsMount(t: Test): string {
  const mountPoint = mkdtempSync(join(tmpdir(), 'tmpfs-'));
  t.teardown(() => rmSync(mountPoint, { recursive: true, force: true }));
  run('mount', '-t', 'tmpfs', '-o', 'size=64m', 'none', mountPoint);
  unmountAfter(t, mountPoint);
  return mountPoint;
}
