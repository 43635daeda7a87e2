/**
 * Calls of the C library that Node has no function for, as promises.
 *
 * Guarantees: no call blocks the event loop (they run on libuv's pool, at most `maxCalls` at once, more wait their turn);
 * a failure rejects with an error shaped like Node's own (`code` 'ENOENT', `errno`, `syscall`, `path`; EOPNOTSUPP has the
 * code 'ENOTSUP', as everywhere in Node); buffers stay alive until their call has ended. Paths are bytes or UTF-8 strings,
 * names and values of attributes are bytes. Works with glibc 2.28, x86-64 and arm64.
 *
 * A descriptor must stay open until its call has ended; unlike Node's own calls these do not hold it. Below an `await using`
 * that means `return await`: a bare `return` closes the file first.
 *
 * A call that hangs in the kernel (a dead NFS server, a freeze) keeps one thread of the pool: what can hang for long runs in
 * a process of its own (agent/guard-main.ts). Calls cannot be cancelled. Nothing here opens files: callers open with
 * node:fs, below a root by way of /proc/self/fd/N/name.
 */
import koffi from 'koffi';
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { getSystemErrorMessage, getSystemErrorName } from 'node:util';

export type Path = string | Uint8Array;

const maxCalls = 64; // koffi itself refuses more than 256
const library = koffi.load('libc.so.6');
type Argument = number | bigint | Uint8Array | BigInt64Array | null;
interface Native {
  (...args: Argument[]): number;
  async(...args: (Argument | ((error: Error | null, result: number) => void))[]): void;
}

let running = 0;
const waiting: (() => void)[] = [];

/** Error like Node's for a positive errno. */
export function systemError(errno: number, syscall: string, path?: Path): NodeJS.ErrnoException {
  const known = getSystemErrorName(-errno);
  const code = known.startsWith('Unknown') ? (nameOfErrno(errno) ?? `E${errno}`) : known;
  const where = path === undefined ? '' : ` '${Buffer.from(path).toString()}'`;
  const message = `${code}: ${known === code ? getSystemErrorMessage(-errno) : 'system error'}, ${syscall}${where}`;
  return Object.assign(new Error(message), {
    code,
    errno: -errno,
    syscall,
    ...(where ? { path: where.slice(2, -1) } : {}),
  });
}

function nameOfErrno(errno: number): string | undefined {
  return Object.entries(koffi.os.errno).find(([, value]) => value === errno)?.[0];
}

/** The function as a promise; negative results reject. `path` is for the error only. */
export function bind(prototype: string, syscall: string): (args: Argument[], path?: Path) => Promise<number> {
  const native = library.func(prototype) as Native;
  return async (args, path) => {
    if (running >= maxCalls) await new Promise<void>((resolve) => waiting.push(resolve));
    else running++;
    try {
      return await new Promise<number>((resolve, reject) => {
        native.async(...args, (error: Error | null, result: number) => {
          const errno = koffi.errno(); // this call's own only here
          assert(args.length >= 0); // holds the buffers until the kernel is done with them
          if (error) reject(error);
          else if (result < 0) reject(systemError(errno, syscall, path));
          else resolve(result);
        });
      });
    } finally {
      const next = waiting.shift();
      if (next) next();
      else running--;
    }
  };
}

export function cString(bytes: Path): Buffer {
  const buffer = Buffer.from(bytes);
  if (buffer.includes(0)) throw systemError(koffi.os.errno['EINVAL'] ?? 22, 'path with a zero byte');
  return Buffer.concat([buffer, Buffer.alloc(1)]);
}

function hasCode(error: unknown, ...codes: string[]): boolean {
  return error instanceof Error && 'code' in error && codes.includes(String(error.code));
}

// ---- ioctl: request numbers of linux/fs.h, the same on x86-64 and arm64. Not declared variadic: koffi cannot call those
// asynchronously, and for integers and pointers both ABIs pass them alike.
const ioctlNumber = bind('int ioctl(int fd, unsigned long request, intptr_t argument)', 'ioctl');
const ioctlBuffer = bind('int ioctl(int fd, unsigned long request, void *argument)', 'ioctl');
const FICLONE = 0x40049409;
const FICLONERANGE = 0x4020940d;
const FIFREEZE = 0xc0045877;
const FITHAW = 0xc0045878;
const BLKGETSIZE64 = 0x80081272;
const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_IMMUTABLE_FL = 0x10;
const FS_APPEND_FL = 0x20;
const FS_IOC_FIEMAP = 0xc020660b;

/**
 * At once, on this thread: for what the kernel answers from memory. Negative: koffi.errno() says why, until the next call.
 * @param request of an ioctl that takes a pointer; unsigned
 */
export function ioctlNow(fd: number, request: number, buffer: Uint8Array): number {
  return (ioctlSync ??= library.func('int ioctl(int fd, unsigned long request, void *argument)') as Native)(
    fd,
    request,
    buffer,
  );
}
let ioctlSync: Native | undefined;

/** Makes the destination share all blocks of the source. Rejects with ENOTSUP, EXDEV, EINVAL or ENOTTY where that cannot be. */
export async function ficlone(destFd: number, srcFd: number): Promise<void> {
  await ioctlNumber([destFd, FICLONE, srcFd]);
}

/** Offsets and length in bytes, multiples of the filesystem's block; length 0 = to the end of the source. */
export async function ficloneRange(
  destFd: number,
  srcFd: number,
  srcOffset: number,
  length: number,
  destOffset: number,
): Promise<void> {
  const range = new BigInt64Array([BigInt(srcFd), BigInt(srcOffset), BigInt(length), BigInt(destOffset)]);
  await ioctlBuffer([destFd, FICLONERANGE, range]);
}

/** Of the filesystem that holds the open file. Flushes it; EBUSY when it is frozen already. Only the guard calls this. */
export async function fifreeze(fd: number): Promise<void> {
  await ioctlNumber([fd, FIFREEZE, 0]);
}

/** EINVAL when it is not frozen. */
export async function fithaw(fd: number): Promise<void> {
  await ioctlNumber([fd, FITHAW, 0]);
}

/** linux/ioprio.h: the class "best effort" and its lowest level; what is idle only would never be read beside a busy workload. */
const lowestIoPriority = (2 << 13) | 7;
const syscallNumbers: Partial<Record<string, number>> = { x64: 251, arm64: 30 };

/**
 * Reads and writes of this process give way to others', where the disk's scheduler looks at that (bfq, mq-deadline). Of the threads
 * there are: call it when the pool of threads has begun. Answers whether the kernel took it.
 */
export function lowerIoPriority(): boolean {
  const number = syscallNumbers[process.arch];
  if (number === undefined) return false;
  const set = library.func('long syscall(long number, int which, int who, int priority)') as Native;
  return readdirSync('/proc/self/task').every((thread) => set(number, 1, Number(thread), lowestIoPriority) === 0);
}

const mountCall = library.func(
  'int mount(const void *source, const void *target, const void *type, unsigned long flags, const void *data)',
) as Native;

/** mount(2) of a filesystem of the kernel's own; mount(8) does it for root alone, this with CAP_SYS_ADMIN. False when it cannot be. */
export function mountVirtual(type: string, target: string): boolean {
  const MS_NOSUID_NODEV_NOEXEC = 14;
  const name = cString(type);
  return mountCall(name, cString(target), name, MS_NOSUID_NODEV_NOEXEC, null) === 0;
}

/** Bytes of an open block device; ENOTTY for anything else. */
export async function blkgetsize64(fd: number): Promise<number> {
  const size = new BigInt64Array(1);
  await ioctlBuffer([fd, BLKGETSIZE64, size]);
  return Number(size[0]);
}

const fcntl = bind('int fcntl(int fd, int command, intptr_t argument)', 'fcntl');
const F_SETLEASE = 1024;
const F_WRLCK = 1;
const F_UNLCK = 2;

/**
 * Whether anybody else has the regular file open, a loop device over it too: a write lease is given only when not, fcntl(2). It is
 * given back at once. False where the filesystem has no leases (NFS), or the file is another user's and CAP_LEASE is lacking.
 */
export async function hasOtherUsers(fd: number): Promise<boolean> {
  try {
    await fcntl([fd, F_SETLEASE, F_WRLCK]);
  } catch (error) {
    return hasCode(error, 'EAGAIN');
  }
  await fcntl([fd, F_SETLEASE, F_UNLCK]);
  return false;
}

/** chattr +i and -i: nobody can change, move or remove the file. EPERM without CAP_LINUX_IMMUTABLE, ENOTTY or ENOTSUP where there is none. */
export async function setImmutable(fd: number, on: boolean): Promise<void> {
  // The kernel reads and writes an int, whatever the request's name says.
  const flags = Buffer.alloc(8);
  await ioctlBuffer([fd, FS_IOC_GETFLAGS, flags]);
  const before = flags.readInt32LE(0);
  const after = on ? before | FS_IMMUTABLE_FL : before & ~FS_IMMUTABLE_FL;
  if (after === before) return;
  flags.writeInt32LE(after, 0);
  await ioctlBuffer([fd, FS_IOC_SETFLAGS, flags]);
}

const getFlags = library.func('int ioctl(int fd, unsigned long request, void *argument)') as Native;
const inodeFlags = Buffer.alloc(8);

/** chattr +i or +a of an open file or directory; false too where there are none. Synchronous: from memory, 1 us. */
export function isImmutableOrAppendOnly(fd: number): boolean {
  if (getFlags(fd, FS_IOC_GETFLAGS, inodeFlags) < 0) return false;
  return (inodeFlags.readInt32LE(0) & (FS_IMMUTABLE_FL | FS_APPEND_FL)) !== 0;
}

const fiemapHeaderBytes = 32;
const fiemapExtentBytes = 56;
const fiemapExtents = 512;

/**
 * Where the bytes of an open file lie: linux/fiemap.h, in ascending order; holes are left out. What is not written to the disk
 * yet is written first. Rejects with ENOTSUP or ENOTTY where the filesystem cannot tell.
 */
export async function* fiemap(fd: number): AsyncGenerator<FileExtent> {
  const FIEMAP_FLAG_SYNC = 1;
  const buffer = Buffer.alloc(fiemapHeaderBytes + fiemapExtents * fiemapExtentBytes);
  for (let start = 0n; ;) {
    buffer.fill(0);
    buffer.writeBigUInt64LE(start, 0);
    buffer.writeBigUInt64LE(0xffffffffffffffffn - start, 8);
    buffer.writeUInt32LE(start === 0n ? FIEMAP_FLAG_SYNC : 0, 16);
    buffer.writeUInt32LE(fiemapExtents, 24);
    await ioctlBuffer([fd, FS_IOC_FIEMAP, buffer]);
    const extents = parseExtents(buffer);
    yield* extents;
    const last = extents.at(-1);
    if (!last || last.flags & FIEMAP_EXTENT_LAST) return;
    start = BigInt(last.logical) + BigInt(last.length);
  }
}

export interface FileExtent {
  logical: number;
  length: number;
  physical: number;
  /** FIEMAP_EXTENT_* */
  flags: number;
}

const FIEMAP_EXTENT_LAST = 1;

/** What the kernel has put into a struct fiemap: as many as it says, up to the last one of the file. */
export function parseExtents(buffer: Buffer): FileExtent[] {
  const extents: FileExtent[] = [];
  const count = Math.min(buffer.readUInt32LE(20), Math.floor((buffer.length - fiemapHeaderBytes) / fiemapExtentBytes));
  for (let i = 0; i < count; i++) {
    const at = fiemapHeaderBytes + i * fiemapExtentBytes;
    const [logical = 0, physical = 0, length = 0] = [0, 8, 16].map((offset) =>
      Number(buffer.readBigUInt64LE(at + offset)),
    );
    const flags = buffer.readUInt32LE(at + 40);
    extents.push({ logical, length, physical, flags });
    if (flags & FIEMAP_EXTENT_LAST) break;
  }
  return extents;
}

// ---- ranges of open files

const fallocate = bind('int fallocate(int fd, int mode, int64_t offset, int64_t length)', 'fallocate');
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 0x10;

/** The range becomes a hole, the size stays. ENOTSUP where the filesystem cannot. */
export async function fallocatePunch(fd: number, offset: number, length: number): Promise<void> {
  await fallocate([fd, PUNCH_HOLE | KEEP_SIZE, offset, length]);
}

/** The range reads as zeros and stays allocated, the size stays. ENOTSUP where the filesystem cannot. */
export async function fallocateZero(fd: number, offset: number, length: number): Promise<void> {
  await fallocate([fd, ZERO_RANGE | KEEP_SIZE, offset, length]);
}

const syncRange = bind(
  'int sync_file_range(int fd, int64_t offset, int64_t length, unsigned int flags)',
  'sync_file_range',
);
const SYNC_FILE_RANGE_WRITE = 2;

/** Writing of dirty pages begins; nothing is promised of when it ends, or of what reads them back. ESPIPE, EINVAL, ENOSYS: not here. */
export async function startWriteback(fd: number, offset: number, length: number): Promise<void> {
  await syncRange([fd, offset, length, SYNC_FILE_RANGE_WRITE]);
}

const lseek = bind('int64_t lseek(int fd, int64_t offset, int whence)', 'lseek');

/**
 * Start of the first data at or after the position, undefined when there is none. Moves the descriptor's file position, which
 * nothing of ours uses. Rejects with EINVAL or ENOTSUP where holes are not known (block devices).
 */
export async function seekData(fd: number, position: number): Promise<number | undefined> {
  return seek(fd, position, 3);
}

/** Start of the first hole at or after the position; the end of the file counts; undefined when the position is not within it. */
export async function seekHole(fd: number, position: number): Promise<number | undefined> {
  return seek(fd, position, 4);
}

async function seek(fd: number, position: number, whence: number): Promise<number | undefined> {
  try {
    return await lseek([fd, position, whence]);
  } catch (error) {
    if (hasCode(error, 'ENXIO')) return undefined;
    throw error;
  }
}

const copyRange = bind(
  'intptr_t copy_file_range(int in, void *inOffset, int out, void *outOffset, size_t length, unsigned int flags)',
  'copy_file_range',
);

/** Bytes copied, perhaps fewer than asked; 0 at the end of the source. EXDEV, EINVAL, ENOSYS, ENOTSUP: read and write instead. */
export async function copyFileRange(
  srcFd: number,
  srcOffset: number,
  destFd: number,
  destOffset: number,
  length: number,
): Promise<number> {
  const offsets = [BigInt64Array.of(BigInt(srcOffset)), BigInt64Array.of(BigInt(destOffset))] as const;
  return copyRange([srcFd, offsets[0], destFd, offsets[1], length, 0]);
}

const syncfsCall = bind('int syncfs(int fd)', 'syncfs');

/** Everything written to the filesystem that holds the open file is durable. */
export async function syncfs(fd: number): Promise<void> {
  await syncfsCall([fd]);
}

// ---- extended attributes; the functions on paths never follow a link in the last component

const lget = bind('intptr_t lgetxattr(void *path, void *name, void *value, size_t size)', 'lgetxattr');
const fget = bind('intptr_t fgetxattr(int fd, void *name, void *value, size_t size)', 'fgetxattr');
const llist = bind('intptr_t llistxattr(void *path, void *list, size_t size)', 'llistxattr');
const flist = bind('intptr_t flistxattr(int fd, void *list, size_t size)', 'flistxattr');
const lset = bind('int lsetxattr(void *path, void *name, void *value, size_t size, int flags)', 'lsetxattr');
const fset = bind('int fsetxattr(int fd, void *name, void *value, size_t size, int flags)', 'fsetxattr');
const lremove = bind('int lremovexattr(void *path, void *name)', 'lremovexattr');
const fremove = bind('int fremovexattr(int fd, void *name)', 'fremovexattr');

/** Undefined when there is no such attribute. */
export async function lgetxattr(path: Path, name: Path): Promise<Buffer | undefined> {
  const [where, what] = [cString(path), cString(name)];
  return sized((buffer) => lget([where, what, buffer, buffer?.length ?? 0], path));
}

export async function fgetxattr(fd: number, name: Path): Promise<Buffer | undefined> {
  const what = cString(name);
  return sized((buffer) => fget([fd, what, buffer, buffer?.length ?? 0]));
}

/** Names, sorted bytewise; empty also where the filesystem has no attributes. */
export async function llistxattr(path: Path): Promise<Buffer[]> {
  const where = cString(path);
  return names(await sized((buffer) => llist([where, buffer, buffer?.length ?? 0], path)));
}

export async function flistxattr(fd: number): Promise<Buffer[]> {
  return names(await sized((buffer) => flist([fd, buffer, buffer?.length ?? 0])));
}

/** Creates or replaces. */
export async function lsetxattr(path: Path, name: Path, value: Uint8Array): Promise<void> {
  await lset([cString(path), cString(name), value, value.length, 0], path);
}

export async function fsetxattr(fd: number, name: Path, value: Uint8Array): Promise<void> {
  await fset([fd, cString(name), value, value.length, 0]);
}

/** No error when there is no such attribute. */
export async function lremovexattr(path: Path, name: Path): Promise<void> {
  await lremove([cString(path), cString(name)], path).catch(unlessGone);
}

export async function fremovexattr(fd: number, name: Path): Promise<void> {
  await fremove([fd, cString(name)]).catch(unlessGone);
}

const flistSync = library.func('intptr_t flistxattr(int fd, void *list, size_t size)') as Native;
const listed = Buffer.alloc(64);

/** On this thread. The label that SELinux gives every file by itself does not count. */
export function hasXattrs(fd: number): boolean {
  const length = flistSync(fd, listed, listed.length);
  if (length < 0) return koffi.errno() !== koffi.os.errno['EOPNOTSUPP'];
  return length > 0 && listed.toString('latin1', 0, length) !== 'security.selinux\0';
}

function unlessGone(error: unknown): void {
  if (!hasCode(error, 'ENODATA')) throw error;
}

/** Calls once for the length and once for the bytes, and anew when they grew between (ERANGE). */
async function sized(call: (buffer: Buffer | null) => Promise<number>): Promise<Buffer | undefined> {
  for (;;) {
    try {
      const length = await call(null);
      if (length === 0) return Buffer.alloc(0);
      const buffer = Buffer.alloc(length);
      return buffer.subarray(0, await call(buffer));
    } catch (error) {
      if (hasCode(error, 'ENODATA', 'ENOTSUP')) return undefined;
      if (!hasCode(error, 'ERANGE')) throw error;
    }
  }
}

function names(list: Buffer | undefined): Buffer[] {
  const found: Buffer[] = [];
  for (let at = 0; list && at < list.length;) {
    const end = list.indexOf(0, at);
    found.push(list.subarray(at, end));
    at = end + 1;
  }
  return found.sort((a, b) => Buffer.compare(a, b));
}

// ---- times and nodes

const AT_FDCWD = -100;
const AT_SYMLINK_NOFOLLOW = 0x100;
const UTIME_OMIT = 0x3ffffffen;
const utimensatCall = bind('int utimensat(int dirfd, void *path, void *times, int flags)', 'utimensat');
const futimensCall = bind('int futimens(int fd, void *times)', 'futimens');

/** Whole seconds since the epoch (may be negative) and 0 .. 999,999,999 nanoseconds. */
export interface Time {
  seconds: number;
  nanoseconds: number;
}

/** Sets the times to the nanosecond, of a link itself too; a time that is not given stays. */
export async function utimensat(path: Path, mtime: Time | undefined, atime?: Time): Promise<void> {
  await utimensatCall([AT_FDCWD, cString(path), times(mtime, atime), AT_SYMLINK_NOFOLLOW], path);
}

export async function futimens(fd: number, mtime: Time | undefined, atime?: Time): Promise<void> {
  await futimensCall([fd, times(mtime, atime)]);
}

const futimensSync = library.func('int futimens(int fd, void *times)') as Native;

/** On this thread. @throws as the promise rejects */
export function futimensNow(fd: number, mtime: Time): void {
  if (futimensSync(fd, times(mtime, undefined)) < 0) throw systemError(koffi.errno(), 'futimens');
}

function times(mtime: Time | undefined, atime: Time | undefined): BigInt64Array {
  const pair = (time: Time | undefined): [bigint, bigint] =>
    time ? [BigInt(time.seconds), BigInt(time.nanoseconds)] : [0n, UTIME_OMIT];
  return BigInt64Array.of(...pair(atime), ...pair(mtime));
}

// glibc before 2.33 has no mknod to link to, so by number.
const mknodatNumber = process.arch === 'arm64' ? 33 : 259;
const mknodCall = bind('long syscall(long number, long dirfd, void *path, long mode, long device)', 'mknodat');

/** @param mode type and permissions (S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK | bits; the umask applies). Never follows a link. */
export async function mknod(path: Path, mode: number, major = 0, minor = 0): Promise<void> {
  const device = ((minor & ~0xff) << 12) | (major << 8) | (minor & 0xff); // new_encode_dev of linux/kdev_t.h
  await mknodCall([mknodatNumber, AT_FDCWD, cString(path), mode, device >>> 0], path);
}

const clockCall = library.func('int clock_gettime(int clock, void *time)') as Native;
const clockTime = new BigInt64Array(2);

/** Wall clock in milliseconds with fraction. Synchronous: 1 us; Date.now() has no fraction, performance.now() no steps. */
export function realtimeMs(): number {
  assert.equal(clockCall(0, clockTime), 0);
  return Number(clockTime[0]) * 1000 + Number(clockTime[1]) / 1e6;
}

// The part of the global that is needed; TypeScript has it only in its browser library.
declare const WebAssembly: { Memory: new (pages: { initial: number; maximum: number }) => { buffer: ArrayBuffer } };

/**
 * Memory for O_DIRECT, in slices of a multiple of 4096 bytes that are each aligned to 4096. Ordinary Buffers are not aligned and
 * give EINVAL. One allocation whatever the number of slices, freed when none is referred to: it reserves about 10 GiB of
 * address space (not memory), so take one pool per purpose and share it out, not one per volume or read.
 */
export function alignedPool(bytes: number, sliceBytes: number = bytes): Buffer[] {
  assert(sliceBytes > 0 && sliceBytes % 4096 === 0 && bytes % sliceBytes === 0, 'slices of whole pages');
  const pages = Math.ceil(bytes / 65536);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
  return Array.from({ length: bytes / sliceBytes }, (_, at) => Buffer.from(memory.buffer, at * sliceBytes, sliceBytes));
}
