/** replica.json: the few facts about a replica that no commit carries. Replaced whole, atomically. */
import { ReplicationError } from '../../proto/errors.ts';
import type { Disk } from '../../proto/effects.ts';
import type { VolumeMode } from '../../proto/wire.ts';

/** Of the layout on disk; a newer one is refused, an older one would be converted here. */
const format = 1;

export interface ReplicaNote {
  format: number;
  volumeMode: VolumeMode;
  /** Newest generation that may write. */
  generation: string;
  /**
   * The base is on its way to this epoch: until it stands there its bytes may be ahead of its index, and no copy may be
   * made of it. Written before the first byte is.
   */
  applying?: number;
  /** When a point was drilled, by sequence, microseconds since the epoch. */
  drilled: Record<number, number>;
}

/** The stored note, or that of a blank replica, which is then stored. */
export async function readNote(disk: Disk, folder: string, volumeMode: VolumeMode): Promise<ReplicaNote> {
  const path = `${folder}/replica.json`;
  if ((await disk.size(path)) === undefined) {
    const note = { format, volumeMode, generation: '0', drilled: {} };
    await writeNote(disk, folder, note);
    return note;
  }
  const note = JSON.parse(await readText(disk, path)) as ReplicaNote;
  if (note.format > format) {
    throw new ReplicationError(
      'VersionMismatch',
      `${path} was written by a newer version (format ${note.format}); upgrade the master`,
    );
  }
  if (note.volumeMode !== volumeMode) {
    throw new ReplicationError('TargetRefused', `${path} is of a ${note.volumeMode} volume, not ${volumeMode}`);
  }
  return note;
}

export async function writeNote(disk: Disk, folder: string, note: ReplicaNote): Promise<void> {
  await writeText(disk, folder, 'replica.json', JSON.stringify(note, undefined, 2));
}

/** A small file replaced whole, durably. */
export async function writeText(disk: Disk, folder: string, name: string, text: string): Promise<void> {
  const path = `${folder}/${name}`;
  const file = await disk.open(`${path}.new`, 'write');
  try {
    await file.truncate(0);
    await file.write([Buffer.from(text)], 0);
    await file.sync();
  } finally {
    await file.close();
  }
  await disk.rename(`${path}.new`, path);
  await disk.syncDirectory(folder);
}

export async function readText(disk: Disk, path: string): Promise<string> {
  const file = await disk.open(path, 'read');
  try {
    const bytes = Buffer.alloc(await file.size());
    await file.read(bytes, 0);
    return bytes.toString('utf8');
  } finally {
    await file.close();
  }
}
