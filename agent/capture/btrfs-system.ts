/**
 * Subvolumes of btrfs, and mounts at no path: the calls of linux/btrfs.h and linux/mount.h, as promises with Node's errors.
 * Mounts by number, as glibc before 2.36 has no names for them.
 */
import { closeSync } from 'node:fs';
import { bind, cString } from '../../proto/libc.ts';

const ioctl = bind('int ioctl(int fd, unsigned long request, void *argument)', 'ioctl');
const fsopen = bind('long syscall(long number, void *type, long flags)', 'fsopen');
const fsconfig = bind('long syscall(long number, long fd, long command, void *key, void *value, long aux)', 'fsconfig');
const fsmount = bind('long syscall(long number, long fd, long flags, long attributes)', 'fsmount');
const [fsopenNumber, fsconfigNumber, fsmountNumber] = [430, 431, 432]; // the same on x86-64 and arm64
const CLOEXEC = 1;
const FSCONFIG_SET_STRING = 1;
const FSCONFIG_CMD_CREATE = 6;

/**
 * Mounts a filesystem at no path: it is reached by way of the descriptor that is answered (O_PATH) and goes with the last descriptor
 * below it. CAP_SYS_ADMIN, Linux 5.2.
 */
export async function mountDetached(type: string, options: Record<string, string>): Promise<number> {
  const context = await fsopen([fsopenNumber, cString(type), CLOEXEC]);
  try {
    for (const [key, value] of Object.entries(options))
      await fsconfig([fsconfigNumber, context, FSCONFIG_SET_STRING, cString(key), cString(value), 0]);
    await fsconfig([fsconfigNumber, context, FSCONFIG_CMD_CREATE, null, null, 0]);
    return await fsmount([fsmountNumber, context, CLOEXEC, 0]);
  } finally {
    closeSync(context);
  }
}

const BTRFS_IOC_SNAP_DESTROY = 0x5000940f;
const BTRFS_IOC_SNAP_CREATE_V2 = 0x50009417;
const BTRFS_IOC_INO_LOOKUP = 0xd0009412;
const BTRFS_SUBVOL_RDONLY = 2n;
/** All three structures; each begins with a u64 that is 0 where nothing else is said. */
const btrfsArgumentBytes = 4096;

/** Makes the read-only subvolume `name` in the directory, as the subvolume is now; both descriptors of the same filesystem. */
export async function btrfsSnapshot(directoryFd: number, name: string, subvolumeFd: number): Promise<void> {
  const argument = Buffer.alloc(btrfsArgumentBytes);
  argument.writeBigInt64LE(BigInt(subvolumeFd), 0);
  argument.writeBigUInt64LE(BTRFS_SUBVOL_RDONLY, 16);
  argument.write(name, 56);
  await ioctl([directoryFd, BTRFS_IOC_SNAP_CREATE_V2, argument]);
}

/** Removes the subvolume `name` of the directory with all that is in it; its blocks are given back later. */
export async function btrfsRemoveSubvolume(directoryFd: number, name: string): Promise<void> {
  const argument = Buffer.alloc(btrfsArgumentBytes);
  argument.write(name, 8);
  await ioctl([directoryFd, BTRFS_IOC_SNAP_DESTROY, argument]);
}

/** The subvolume that the open file or directory is in, and the way of an inode below it ('' = its root). CAP_SYS_ADMIN. */
export async function btrfsPlace(fd: number, ino: bigint): Promise<{ subvolume: bigint; path: Buffer }> {
  const argument = Buffer.alloc(btrfsArgumentBytes);
  argument.writeBigUInt64LE(ino, 8);
  await ioctl([fd, BTRFS_IOC_INO_LOOKUP, argument]);
  const end = argument.indexOf(0, 16);
  return { subvolume: argument.readBigUInt64LE(0), path: argument.subarray(16, end < 0 ? undefined : end) };
}
