/** Real volumes for the tests of block captures: a filesystem that writers use, mounted from what is replicated. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs, { constants, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { openTracefs, removeInstance } from '../../agent/capture/tracefs.ts';
import { messageOf } from '../../proto/errors.ts';
import { alignedPool } from '../../proto/libc.ts';
import { missingForLoop, run } from '../loop.ts';
import { startDriver, type Driver } from './csidriver.ts';

export type Method = 'ftrace' | 'extents' | 'csi-cbt' | 'scan';

export interface Arena {
  method: Method;
  /** What is replicated: a device or an image. */
  path: string;
  mountPoint: string;
  /** Its content at this moment, read past everything of ours. */
  content(): Buffer;
  /** Where its storage takes snapshots. */
  driver?: Promise<Driver>;
  /** Of the device, where growing is possible. */
  grow: ((mebibytes: number) => void) | undefined;
  /** Writes to the folder until it is stopped. */
  write(seed: number): () => Promise<void>;
}

export const arenas = {
  'ftrace, ext4 on a loop device': (t: Test) => device(t, 'ext4', 64),
  'ftrace, xfs on a loop device': (t: Test) => device(t, 'xfs', 320),
  'ftrace, ext4 on a partition': (t: Test) => partition(t),
  'ftrace, ext4 on zram, told by bios': (t: Test) => zram(t),
  'ftrace, ext4 on device-mapper, told by bios': (t: Test) => mapped(t, 'ext4', 64),
  'ftrace, xfs on device-mapper, told by bios': (t: Test) => mapped(t, 'xfs', 320),
  'extents, image on xfs': (t: Test) => image(t, 'xfs'),
  'extents, image on btrfs': (t: Test) => image(t, 'btrfs'),
  'csi-cbt, snapshots by a driver on xfs': (t: Test) => csi(t),
  'scan, image on a filesystem without reflinks': (t: Test) => image(t, undefined),
} satisfies Record<string, (t: Test) => Arena>;

/** Why the arena cannot be here, or false. */
export function missingFor(name: keyof typeof arenas): string | false {
  for (const type of ['ext4', 'xfs', 'btrfs']) {
    const missing = (type === 'ext4' || name.includes(type)) && missingForLoop(type);
    if (missing) return missing;
  }
  if (name.includes('partition') && spawnSync('sh', ['-c', 'command -v addpart']).status !== 0) return 'needs addpart';
  if (name.includes('zram') && !fs.existsSync('/sys/class/zram-control/hot_add')) return 'needs the zram module';
  if (name.includes('device-mapper') && spawnSync('dmsetup', ['version']).status !== 0)
    return 'needs device-mapper in the kernel and dmsetup';
  if (!name.startsWith('ftrace')) return false;
  try {
    openTracefs({ instance: 'cdmr-probe' }).close();
    removeInstance('cdmr-probe');
    return false;
  } catch (error) {
    return messageOf(error);
  }
}

/** In memory where that is possible: the tests are about the layers above. */
function folder(t: Test): string {
  const path = mkdtempSync(join(fs.existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'arena-'));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

function loop(t: Test, path: string, ...options: string[]): string {
  const device = run('losetup', '--find', '--show', ...options, path).trim();
  t.teardown(() => void spawnSync('losetup', ['--detach', device]));
  return device;
}

function sparse(path: string, mebibytes: number): string {
  writeFileSync(path, '');
  truncateSync(path, mebibytes << 20);
  return path;
}

function mounted(t: Test, device: string, place: string, ...options: string[]): string {
  mkdirSync(place);
  run('mount', ...options, device, place);
  t.teardown(() => {
    spawnSync('fsfreeze', ['--unfreeze', place]);
    spawnSync('umount', [place]);
  });
  return place;
}

function device(t: Test, type: string, mebibytes: number): Arena {
  const place = folder(t);
  const backing = sparse(join(place, 'backing'), mebibytes);
  run(`mkfs.${type}`, '-q', backing);
  const path = loop(t, backing);
  const mountPoint = mounted(t, path, join(place, 'mounted'), '-o', 'discard');
  const grow = (more: number): void => {
    truncateSync(backing, fs.statSync(backing).size + (more << 20));
    run('losetup', '--set-capacity', path);
  };
  return { method: 'ftrace', path, mountPoint, content: () => readDirect(path), grow, write: writer(mountPoint) };
}

/** A driver without requests: the kernel tells of its writes by another event. */
function zram(t: Test): Arena {
  const place = folder(t);
  const number = fs.readFileSync('/sys/class/zram-control/hot_add', 'utf8').trim();
  t.teardown(() => writeFileSync('/sys/class/zram-control/hot_remove', number));
  writeFileSync(`/sys/block/zram${number}/disksize`, '64M');
  const path = `/dev/zram${number}`;
  run('mkfs.ext4', '-q', path);
  const mountPoint = mounted(t, path, join(place, 'mounted'));
  return { method: 'ftrace', path, mountPoint, content: () => readDirect(path), grow: undefined, write: writer(mountPoint) }; // prettier-ignore
}

/** As LVM makes it: two stretches of one disk. */
function mapped(t: Test, type: string, mebibytes: number): Arena {
  const place = folder(t);
  const below = loop(t, sparse(join(place, 'backing'), 2 * mebibytes));
  const name = `cdmr-test-${process.pid}`;
  const sectors = mebibytes * 2048;
  const half = sectors / 2 + 24;
  const table = (end: number): string =>
    `0 ${half} linear ${below} ${sectors}\n${half} ${end - half} linear ${below} 8\n`;
  run('sh', '-c', `printf '${table(sectors)}' | dmsetup create ${name}`);
  t.teardown(() => void spawnSync('dmsetup', ['remove', '--retry', name]));
  const path = fs.realpathSync(`/dev/mapper/${name}`);
  run(`mkfs.${type}`, '-q', path);
  const mountPoint = mounted(t, path, join(place, 'mounted'), '-o', 'discard');
  let size = sectors;
  const grow = (more: number): void => {
    size += more * 2048;
    run('sh', '-c', `printf '${table(size)}' | dmsetup load ${name} && dmsetup resume --noflush ${name}`);
  };
  return { method: 'ftrace', path, mountPoint, content: () => readDirect(path), grow, write: writer(mountPoint) };
}

/** The first of two; the other one is written to now and then as well. */
function partition(t: Test): Arena {
  const place = folder(t);
  const backing = sparse(join(place, 'backing'), 80);
  const whole = loop(t, backing);
  // Not at a multiple of a granule. By hand, as not every kernel knows every kind of table.
  run('addpart', whole, '1', '2049', '131072');
  run('addpart', whole, '2', '133200', '16384');
  const path = `${whole}p1`;
  run('mkfs.ext4', '-q', path);
  const mountPoint = mounted(t, path, join(place, 'mounted'));
  const write = writer(mountPoint);
  return {
    ...{ method: 'ftrace', path, mountPoint, content: () => readDirect(path), grow: undefined },
    write(seed) {
      run('dd', 'if=/dev/urandom', `of=${whole}p2`, 'bs=64k', 'count=3', 'oflag=direct', 'status=none');
      return write(seed);
    },
  };
}

/** An image with a filesystem, mounted by a loop device, on a host filesystem. */
function image(t: Test, host: 'xfs' | 'btrfs' | undefined): Arena {
  const place = folder(t);
  let below = place;
  if (host) {
    const backing = sparse(join(place, 'host'), 450);
    run(`mkfs.${host}`, '-q', backing);
    below = mounted(t, loop(t, backing), join(place, 'below'));
  }
  const path = sparse(join(below, 'image'), 64);
  run('mkfs.ext4', '-q', path);
  const mountPoint = mounted(t, loop(t, path), join(place, 'mounted'));
  const method = host ? 'extents' : 'scan';
  return { method, path, mountPoint, content: () => fs.readFileSync(path), grow: undefined, write: writer(mountPoint) };
}

/** The image of before as a CSI driver's volume. */
function csi(t: Test): Arena {
  const arena = image(t, 'xfs');
  const snapshots = join(arena.path, '..', 'snapshots');
  mkdirSync(snapshots);
  const driver = startDriver(arena.path, snapshots, Math.random);
  t.teardown(async () => (await driver).close());
  return { ...arena, method: 'csi-cbt', driver };
}

function writer(mountPoint: string): Arena['write'] {
  return (seed) => {
    const path = new URL('fswriter.ts', import.meta.url).pathname;
    const argv = ['--disable-warning=ExperimentalWarning', path, mountPoint, String(seed)];
    const child = spawn(process.execPath, argv, { stdio: 'ignore' });
    return async () => {
      const exited = once(child, 'exit');
      child.kill('SIGKILL');
      await exited;
    };
  };
}

const pieces = alignedPool(1 << 20);

export function readDirect(path: string): Buffer {
  const piece = pieces[0] as Buffer;
  const fd = fs.openSync(path, constants.O_RDONLY | constants.O_DIRECT);
  const parts: Buffer[] = [];
  try {
    for (let at = 0; ; at += piece.length) {
      const length = fs.readSync(fd, piece, 0, piece.length, at);
      parts.push(Buffer.from(piece.subarray(0, length)));
      if (length < piece.length) return Buffer.concat(parts);
    }
  } finally {
    fs.closeSync(fd);
  }
}
