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
import { missingForLoop, run, unmountAfter } from '../loop.ts';
import { noise } from '../e2e/content.ts';
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
  /** Of the device, where growing is possible; what it grows by is written to at once. */
  grow?: () => void;
  /** Bytes that no filesystem uses: for those who write to the device itself. */
  raw: { offset: number; length: number };
  /** Makes another filesystem there; not mounted. */
  mkfs(): void;
  mount(): void;
  unmount(): void;
  /** Not mounted: takes the device away and brings it back, with other content in `raw`. */
  reattach?: () => void;
  /** Not mounted: puts other content (in `raw`) in the place of it, under the live device. */
  remap?: () => void;
  /** Its driver tells of discards and zeroes and does not count them: then all is compared. */
  uncountedDiscards?: true;
  /** Its filesystem discards what is freed. */
  discards?: true;
  /** Writes to other parts of the disk that it lies on. */
  beside?: () => void;
  /** Writes to `raw` by another way than the device: the disk that it is a part of. */
  around?: () => void;
  /** Writes to the folder until it is stopped. */
  write(seed: number): () => Promise<void>;
}

const rawBytes = 4 << 20;

export const arenas = {
  'ftrace, ext4 on a loop device': (t: Test) => device(t, 'ext4', 60),
  'ftrace, xfs on a loop device': (t: Test) => device(t, 'xfs', 316),
  'ftrace, ext4 on a partition': (t: Test) => partition(t, false),
  'ftrace, a disk with ext4 on a partition': (t: Test) => partition(t, true),
  'ftrace, ext4 on zram, told by bios': (t: Test) => zram(t),
  'ftrace, ext4 on device-mapper, told by bios': (t: Test) => mapped(t, 'ext4', 60),
  'ftrace, xfs on device-mapper, told by bios': (t: Test) => mapped(t, 'xfs', 316),
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
  if (name.includes('partition') && spawnSync('sh', ['-c', 'command -v addpart delpart resizepart']).status !== 0)
    return 'needs addpart, delpart and resizepart';
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

/** A filesystem on the device at `path`, `mebibytes` of it; behind that lies what it does not use. */
function formatted(t: Test, path: string, type: string, mebibytes: number, place: string, ...options: string[]) {
  const mountPoint = join(place, 'mounted');
  mkdirSync(mountPoint);
  const size = type === 'xfs' ? ['-f', '-d', `size=${mebibytes}m`] : ['-F'];
  const formed = {
    mountPoint,
    raw: { offset: mebibytes << 20, length: rawBytes },
    mkfs: () => void run(`mkfs.${type}`, '-q', ...size, path, ...(type === 'xfs' ? [] : [`${mebibytes}m`])),
    mount: () => void run('mount', ...options, path, mountPoint),
    unmount(): void {
      // What a writer has begun may still be ending.
      for (let tries = 0; tries < 600 && spawnSync('umount', [mountPoint]).status !== 0; tries++)
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
    },
    write: writer(mountPoint),
  };
  formed.mkfs();
  formed.mount();
  t.teardown(() => {
    spawnSync('fsfreeze', ['--unfreeze', mountPoint]);
    if (isMounted(mountPoint)) formed.unmount();
    if (isMounted(mountPoint)) spawnSync('umount', ['--lazy', mountPoint]);
  });
  return formed;
}

function isMounted(place: string): boolean {
  return fs.readFileSync('/proc/self/mounts', 'utf8').includes(` ${place} `);
}

/** Other bytes at the place, past the page cache of the device. */
export function overwrite(path: string, offset: number, length: number): void {
  const piece = pieces[0] as Buffer;
  const fd = fs.openSync(path, constants.O_WRONLY | (fs.statSync(path).isBlockDevice() ? constants.O_DIRECT : 0));
  try {
    for (let at = 0; at < length; at += piece.length) {
      const part = Math.min(piece.length, length - at);
      noise(part).copy(piece);
      fs.writeSync(fd, piece, 0, part, offset + at);
    }
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

function device(t: Test, type: string, mebibytes: number): Arena {
  const place = folder(t);
  const backing = sparse(join(place, 'backing'), mebibytes + (rawBytes >> 20));
  const path = loop(t, backing);
  const formed = formatted(t, path, type, mebibytes, place, '-o', 'discard');
  return {
    ...formed,
    method: 'ftrace',
    discards: true,
    path,
    content: () => readDirect(path),
    grow() {
      const { size } = fs.statSync(backing);
      truncateSync(backing, size + (1 << 20));
      run('losetup', '--set-capacity', path);
      overwrite(path, size + 8192, 100 << 10);
    },
    reattach() {
      run('losetup', '--detach', path);
      overwrite(backing, formed.raw.offset, 300 << 10);
      attachAgain(path, backing);
    },
  };
}

/** Another program may have looked at the free device just now. */
function attachAgain(path: string, backing: string): void {
  for (let tries = 0; spawnSync('losetup', [path, backing]).status !== 0; tries++) {
    if (tries === 100) throw new Error(`${path} is in use by another program`);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
  }
}

/** A driver without requests: the kernel tells of its writes by another event. */
function zram(t: Test): Arena {
  const place = folder(t);
  const number = fs.readFileSync('/sys/class/zram-control/hot_add', 'utf8').trim();
  t.teardown(() => removeZram(number));
  writeFileSync(`/sys/block/zram${number}/disksize`, '64M');
  const path = `/dev/zram${number}`;
  // A new ext4 zeroes its tables of inodes later, and zram counts zeroes as little as discards.
  const formed = formatted(t, path, 'ext4', 60, place, '-o', 'noinit_itable');
  return { ...formed, method: 'ftrace', path, content: () => readDirect(path), uncountedDiscards: true };
}

/** Stays where another mount namespace has a copy of the mount. */
function removeZram(number: string): void {
  for (let tries = 0; tries < 40; tries++) {
    try {
      return writeFileSync('/sys/class/zram-control/hot_remove', number);
    } catch {
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
    }
  }
}

/** As LVM makes it: two stretches of one disk. */
function mapped(t: Test, type: string, mebibytes: number): Arena {
  const place = folder(t);
  const wholeBytes = (mebibytes << 20) + rawBytes;
  let sectors = wholeBytes / 512;
  // Room for two of it, and for growth.
  const below = loop(t, sparse(join(place, 'backing'), 2 * (mebibytes + (rawBytes >> 20)) + 128));
  const name = `cdmr-test-${process.pid}`;
  const half = sectors / 2 + 24;
  const room = sectors + (32 << 11);
  let start = 8;
  const table = (): string =>
    `0 ${half} linear ${below} ${start + room / 2 + 4096}\\n${half} ${sectors - half} linear ${below} ${start}\\n`;
  const create = (): void => void run('sh', '-c', `printf '${table()}' | dmsetup create ${name}`);
  const reload = (): void => void run('sh', '-c', `printf '${table()}' | dmsetup load ${name} && dmsetup resume --noflush ${name}`); // prettier-ignore
  create();
  t.teardown(() => void spawnSync('dmsetup', ['remove', '--retry', name]));
  const path = fs.realpathSync(`/dev/mapper/${name}`);
  const formed = formatted(t, path, type, mebibytes, place, '-o', 'discard');
  return {
    ...formed,
    method: 'ftrace',
    discards: true,
    path,
    content: () => readDirect(path),
    grow() {
      const before = sectors;
      if (before > wholeBytes / 512 + 16 * 2048) return;
      sectors += 2048;
      reload();
      overwrite(path, before * 512 + 8192, 100 << 10);
    },
    reattach() {
      run('dmsetup', 'remove', '--retry', name);
      overwrite(below, (start + 4096) * 512, 8192);
      create();
    },
    remap() {
      const content = readDirect(path);
      start = start === 8 ? 8 + room : 8;
      // The content is there before it is mapped, all but for some of it.
      const other = `${name}-other`;
      run('sh', '-c', `printf '${table()}' | dmsetup create ${other}`);
      const there = fs.realpathSync(`/dev/mapper/${other}`);
      fs.writeFileSync(there, content);
      overwrite(there, formed.raw.offset + 65536, 200 << 10);
      run('blockdev', '--flushbufs', there);
      run('dmsetup', 'remove', '--retry', other);
      reload();
      run('blockdev', '--flushbufs', path);
    },
  };
}

/** The first of two, or both as one disk. By hand, as not every kernel knows every kind of table; not at multiples of a granule. */
function partition(t: Test, isWhole: boolean): Arena {
  const place = folder(t);
  const backing = sparse(join(place, 'backing'), 80);
  const whole = loop(t, backing);
  let sectors = 131072;
  // The kernel keeps partitions that were made by hand when the loop device is detached.
  const undivide = (): void => {
    for (const number of ['1', '2']) spawnSync('delpart', [whole, number]);
  };
  t.teardown(undivide);
  const divide = (): void => {
    undivide();
    run('addpart', whole, '1', '2049', String(sectors));
    run('addpart', whole, '2', '141200', '16384');
  };
  divide();
  const part = `${whole}p1`;
  const formed = formatted(t, part, 'ext4', 60, place);
  const path = isWhole ? whole : part;
  const raw = { offset: formed.raw.offset + (isWhole ? 2049 * 512 : 0), length: rawBytes };
  return {
    ...formed,
    ...{ method: 'ftrace', path, raw, content: () => readDirect(path) },
    ...(isWhole
      ? {}
      : {
          grow() {
            if (sectors > 131072 + 8192) return;
            sectors += 512;
            // Written to before we have seen it grow, it would be compared: other partitions' writes are told there as well.
            run('resizepart', whole, '1', String(sectors));
          },
          around: () => overwrite(whole, 2049 * 512 + formed.raw.offset + (1 << 20), 70 << 10),
        }),
    reattach() {
      undivide();
      run('losetup', '--detach', whole);
      overwrite(backing, 2049 * 512 + formed.raw.offset, 300 << 10);
      attachAgain(whole, backing);
      divide();
    },
    beside: () => overwrite(`${whole}p2`, 0, 3 << 16),
  };
}

/** An image with a filesystem, mounted by a loop device, on a host filesystem. */
function image(t: Test, host: 'xfs' | 'btrfs' | undefined): Arena {
  const place = folder(t);
  let below = place;
  if (host) {
    const backing = sparse(join(place, 'host'), 450);
    run(`mkfs.${host}`, '-q', backing);
    below = join(place, 'below');
    mkdirSync(below);
    const device = loop(t, backing);
    run('mount', device, below);
    unmountAfter(t, below);
  }
  const path = sparse(join(below, 'image'), 64);
  const device = loop(t, path);
  const formed = formatted(t, device, 'ext4', 60, place);
  return {
    ...formed,
    method: host ? 'extents' : 'scan',
    path,
    content: () => fs.readFileSync(path),
    grow() {
      const { size } = fs.statSync(path);
      // The arena's own filesystem is small.
      if (size > 72 << 20) return;
      truncateSync(path, size + (1 << 20));
      run('losetup', '--set-capacity', device);
      overwrite(device, size + 8192, 100 << 10);
    },
    reattach() {
      run('losetup', '--detach', device);
      overwrite(path, formed.raw.offset, 300 << 10);
      attachAgain(device, path);
    },
    around: () => overwrite(path, formed.raw.offset + (1 << 20), 70 << 10),
  };
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
    // From now on: it may be asked to end twice.
    const exited = once(child, 'exit');
    return async () => {
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
