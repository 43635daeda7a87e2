/** replica.json: the few facts about a replica that no commit carries. Replaced whole, atomically. */
import { messageOf, ReplicationError } from '../../proto/errors.ts';
import { hash } from '../../proto/granule.ts';
import type { Disk } from '../../proto/effects.ts';
import type { VolumeMode } from '../../proto/wire.ts';

const known = ['format', 'volumeMode', 'generation', 'applying', 'placing', 'drilled'] as const;

/** Of the layout on disk; a newer one is refused, an older one would be converted here. */
export const format = 2;

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
  /**
   * The first copy goes straight into the image (placing.ts): what epochs from `epoch` on have written lies in these
   * windows. Written before the first byte is; absent once there is a point.
   */
  placing?: { epoch: number; windows: number[] } | undefined;
  /** When a point was drilled, by sequence, microseconds since the epoch. */
  drilled: Record<number, number>;
}

/**
 * The stored note, or that of a blank replica, which is then stored.
 * @returns why it cannot be believed, and a blank one in its place, when bits of it have changed
 */
export async function readNote(
  disk: Disk,
  folder: string,
  volumeMode: VolumeMode,
): Promise<{ note: ReplicaNote; damage?: string }> {
  const path = `${folder}/replica.json`;
  if ((await disk.size(path)) === undefined) {
    const note = { format, volumeMode, generation: '0', drilled: {} };
    await writeNote(disk, folder, note);
    return { note };
  }
  let note: ReplicaNote;
  try {
    note = unseal(await readText(disk, path), known);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return { note: { format, volumeMode, generation: '0', drilled: {} }, damage: `${path}: ${messageOf(error)}` };
  }
  if (note.format > format) {
    throw new ReplicationError(
      'VersionMismatch',
      `${path} was written by a newer version (format ${note.format}); upgrade the master`,
    );
  }
  if (note.volumeMode !== volumeMode) {
    throw new ReplicationError('TargetRefused', `${path} is of a ${note.volumeMode} volume, not ${volumeMode}`);
  }
  return { note };
}

export async function writeNote(disk: Disk, folder: string, note: ReplicaNote): Promise<void> {
  await writeText(disk, folder, 'replica.json', seal(note));
}

/** JSON with a hash of it as its last field, `sum`. */
export function seal(value: object): string {
  return JSON.stringify({ ...value, sum: sumOf(value) }, undefined, 2);
}

/** @param known the fields that there may be. @throws SyntaxError when the text is not what was sealed */
export function unseal<T extends object>(text: string, known: readonly (keyof T & string)[]): T {
  const parsed = JSON.parse(text) as (T & { sum?: string }) | null;
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed))
    throw new SyntaxError('it holds no fields');
  const { sum, ...value } = parsed;
  if (sum !== undefined && sum !== sumOf(value))
    throw new SyntaxError('its sum is another one than that of its fields');
  // Those of before there were sums have none; or its name has changed.
  const foreign = Object.keys(value).find((key) => !known.some((one) => one === key));
  if (sum === undefined && foreign !== undefined) throw new SyntaxError(`there is no field ${JSON.stringify(foreign)}`);
  return value as unknown as T;
}

function sumOf(value: object): string {
  return hash(Buffer.from(JSON.stringify(value))).toString('hex');
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
