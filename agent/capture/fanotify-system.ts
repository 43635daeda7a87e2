/**
 * The calls of fanotify(7) that Node has no function for. All are quick and synchronous: a group is read without waiting, and the
 * directories whose handles are opened are in the kernel's memory, for something just happened in them.
 *
 * Needs CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH (open_by_handle_at), Linux 5.9, and a filesystem with an id and handles:
 * who wants to know calls `openGroup` and `openHandle` and hears why not.
 */
import koffi from 'koffi';
import fs from 'node:fs';
import { systemError } from '../../proto/libc.ts';

const library = koffi.load('libc.so.6');
type Call = (...args: (number | bigint | Uint8Array | null)[]) => number;
const init = library.func('int fanotify_init(unsigned int flags, unsigned int event_flags)') as Call;
const mark = library.func(
  'int fanotify_mark(int fd, unsigned int flags, uint64_t mask, int dirfd, const char *path)',
) as Call;
const openByHandle = library.func('int open_by_handle_at(int mount_fd, void *handle, int flags)') as Call;
const nameToHandle = library.func(
  'int name_to_handle_at(int dirfd, void *path, void *handle, void *mount_id, int flags)',
) as Call;

const FAN_CLOEXEC = 0x1;
const FAN_NONBLOCK = 0x2;
const FAN_REPORT_DFID_NAME = 0xc00;
const FAN_MARK_ADD = 0x1;
const FAN_MARK_FILESYSTEM = 0x100;
/** MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, and all of that for directories too. */
const mask = 0x2n | 0x4n | 0x8n | 0x40n | 0x80n | 0x100n | 0x200n | 0x40000000n;
const AT_EMPTY_PATH = 0x1000;
const O_PATH_DIRECTORY = 0o10000000 | fs.constants.O_DIRECTORY;
const maxHandleBytes = 128;
const EAGAIN = 'EAGAIN';

function check(result: number, syscall: string): number {
  if (result < 0) throw systemError(koffi.errno(), syscall);
  return result;
}

/** A group with a mark on the whole filesystem of the open directory; its queue has the kernel's bound (16,384 by default). */
export function openGroup(directoryFd: number): number {
  const fd = check(init(FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME, 0), 'fanotify_init');
  try {
    check(mark(fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, mask, directoryFd, null), 'fanotify_mark');
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
  return fd;
}

/** The mark goes, without an event, with the filesystem that it was on. */
export function hasMark(group: number): boolean {
  return fs.readFileSync(`/proc/self/fdinfo/${group}`, 'latin1').includes('\nfanotify sdev:');
}

/** Bytes of whole events; 0 when there are none now. */
export function readGroup(group: number, buffer: Buffer): number {
  try {
    return fs.readSync(group, buffer, 0, buffer.length, null);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === EAGAIN) return 0;
    throw error;
  }
}

/**
 * The directory as a descriptor (O_PATH), undefined when it is no more.
 * @param handle as events bring it, latin1
 */
export function openHandle(mountFd: number, handle: string): number | undefined {
  try {
    return check(openByHandle(mountFd, Buffer.from(handle, 'latin1'), O_PATH_DIRECTORY), 'open_by_handle_at');
  } catch (error) {
    if (['ESTALE', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
}

/** The handle of an open directory, as events bring it. */
export function handleOf(fd: number): string {
  const handle = Buffer.alloc(8 + maxHandleBytes);
  handle.writeUInt32LE(maxHandleBytes, 0);
  check(nameToHandle(fd, Buffer.from('\0'), handle, Buffer.alloc(4), AT_EMPTY_PATH), 'name_to_handle_at');
  return handle.toString('latin1', 0, 8 + handle.readUInt32LE(0));
}
