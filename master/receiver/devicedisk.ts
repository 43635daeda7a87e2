/**
 * A block device as the image file of a block volume. Guarantees: a volume that is smaller than the device, or becomes so, leaves
 * zeros behind it. Failure: one that is larger is TargetFull.
 */
import type { Disk, DiskFile } from '../../proto/effects.ts';
import { ReplicationError } from '../../proto/errors.ts';

/** Devices take holes in whole sectors. */
const sectorBytes = 4096;

export function deviceDisk(disk: Disk): Disk {
  return { ...disk, open: async (path, mode) => asImage(await disk.open(path, mode), path) };
}

async function asImage(device: DiskFile, path: string): Promise<DiskFile> {
  const deviceBytes = await device.size();
  let sizeBytes = deviceBytes;
  return {
    read: (buffer, position) => device.read(buffer, position),
    write: (buffers, position) => device.write(buffers, position),
    zero: (position, length) => device.zero(position, length),
    nextData: (position) => device.nextData(position),
    nextHole: (position) => device.nextHole(position),
    ...(device.startSync && {
      startSync: (position: number, length: number) => device.startSync?.(position, length),
    }),
    async truncate(size) {
      if (size > deviceBytes)
        throw new ReplicationError('TargetFull', `${path} has ${deviceBytes} bytes, the volume ${size}`);
      const end = Math.min(sizeBytes, Math.ceil(size / sectorBytes) * sectorBytes);
      if (end > size) await device.write([Buffer.alloc(end - size)], size);
      if (sizeBytes > end) await device.zero(end, sizeBytes - end);
      sizeBytes = size;
    },
    size: () => Promise.resolve(sizeBytes),
    sync: () => device.sync(),
    close: () => device.close(),
  };
}
