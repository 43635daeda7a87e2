/** What programs do to files by calls that Node has no function for. Synchronous: done when it returns. */
import koffi from 'koffi';
import { systemError } from '../../proto/libc.ts';

const library = koffi.load('libc.so.6');
type Call = (...args: unknown[]) => number;
const syscall = library.func('long syscall(long number, long from, void *old, long to, void *new, long flags)') as Call;
const mmap = library.func('void *mmap(void *at, size_t length, int protection, int flags, int fd, int64_t offset)');
const munmap = library.func('int munmap(void *at, size_t length)') as Call;
const memcpy = library.func('void *memcpy(void *to, const void *from, size_t length)');
const renameat2 = process.arch === 'arm64' ? 276 : 316;
const AT_FDCWD = -100;
const RENAME_EXCHANGE = 2;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;

function cString(path: Buffer): Buffer {
  return Buffer.concat([path, Buffer.alloc(1)]);
}

/** Two names change places at one moment. */
export function exchange(a: Buffer, b: Buffer): void {
  if (syscall(renameat2, AT_FDCWD, cString(a), AT_FDCWD, cString(b), RENAME_EXCHANGE) < 0)
    throw systemError(koffi.errno(), 'renameat2');
}

/** As databases write: bytes of a shared mapping from the file's beginning; the file must be as long. */
export function writeMapped(fd: number, offset: number, bytes: Buffer): void {
  const length = offset + bytes.length;
  const at: unknown = mmap(null, length, PROT_READ_WRITE, MAP_SHARED, fd, 0);
  const address = koffi.address(at);
  if (BigInt.asIntN(64, BigInt(address)) === -1n) throw systemError(koffi.errno(), 'mmap');
  memcpy(BigInt(address) + BigInt(offset), bytes, bytes.length);
  munmap(at, length);
}

/** An extended attribute system.posix_acl_access, as setfacl -m u:UID:PERM makes it (linux/posix_acl_xattr.h). */
export function accessAcl(uid: number, permissions: number): Buffer {
  const entries = [
    [0x01, 7, 0xffffffff], // the owner
    [0x02, permissions, uid],
    [0x04, 5, 0xffffffff], // the group
    [0x10, 7, 0xffffffff], // the mask
    [0x20, 4, 0xffffffff], // others
  ] as const;
  const acl = Buffer.alloc(4 + 8 * entries.length);
  acl.writeUInt32LE(2, 0);
  for (const [index, [tag, bits, id]] of entries.entries()) {
    acl.writeUInt16LE(tag, 4 + 8 * index);
    acl.writeUInt16LE(bits, 6 + 8 * index);
    acl.writeUInt32LE(id, 8 + 8 * index);
  }
  return acl;
}
