/**
 * What recoveries have written into volumes of this node, kept in the agent's data directory by volume.
 *
 * Guarantees: a mark is durable before the first byte of its volume is written, and says `writing` until the volume was read
 * whole and has the point's digest; so a volume that holds half of one is known as such after any crash. One of an older
 * generation writes no volume that a newer one of the same replica wrote. Marks go when the volume is mirrored as a source, when
 * a person says that it is right as it is (resync with force), or with their file.
 */
import { createHash } from 'node:crypto';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { removeIndex } from '../master/replica/indexdatabase.ts';
import { writeDurably } from '../proto/durable.ts';
import { ReplicationError, systemErrorCode } from '../proto/errors.ts';
import type { Restore } from '../proto/wire.ts';

export interface RestoreMark {
  /** Resolved. */
  path: string;
  state: 'writing' | 'written';
  /** As in Restore. */
  uid: string;
  name: string;
  replicaUid: string;
  fencingGeneration: string;
  /** Hex; of the point, once it was written. */
  digest: string;
  sequence: number;
}

export interface RestoreMarks {
  of(path: string): Promise<RestoreMark | undefined>;
  /** Before the first byte. @throws Fenced */
  begin(path: string, restore: Restore): Promise<void>;
  written(path: string, restore: Restore, sequence: number, digest: Buffer): Promise<void>;
  forget(path: string): Promise<void>;
  /** Where what is known of a folder in the making may lie; goes with the mark. */
  indexOf(path: string): string;
  /** Why it is no volume to be read now; undefined: it may be. */
  halfWritten(path: string): Promise<string | undefined>;
}

/** Beside the index of what a folder holds: of what it is to hold. */
export const wantedOf = (indexPath: string): string => `${indexPath}.wanted`;

export function restoreMarks(dataDir: string): RestoreMarks {
  const folder = `${dataDir}/restores`;
  const fileOf = (path: string): string =>
    `${folder}/${createHash('sha256').update(path).digest('hex').slice(0, 32)}.json`;

  const indexOf = (path: string): string => fileOf(path).replace(/json$/, 'db');

  async function of(path: string): Promise<RestoreMark | undefined> {
    try {
      return JSON.parse(await readFile(fileOf(path), 'utf8')) as RestoreMark;
    } catch (error) {
      if (systemErrorCode(error) === 'ENOENT') return undefined;
      throw error;
    }
  }

  async function write(mark: RestoreMark): Promise<void> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    await writeDurably(fileOf(mark.path), `${JSON.stringify(mark)}\n`, 0o600);
  }

  return {
    of,
    async begin(path, { uid, name, replicaUid, fencingGeneration }) {
      const before = await of(path);
      const isNewer = before && BigInt(before.fencingGeneration) > BigInt(fencingGeneration);
      if (before?.replicaUid === replicaUid && isNewer)
        throw new ReplicationError(
          'Fenced',
          `${path} was written by ${before.name} under generation ${before.fencingGeneration}; ${name} has ${fencingGeneration}`,
        );
      await write({ path, state: 'writing', uid, name, replicaUid, fencingGeneration, digest: '', sequence: 0 });
    },
    written: (path, { uid, name, replicaUid, fencingGeneration }, sequence, digest) =>
      write({
        ...{ path, state: 'written', uid, name, replicaUid, fencingGeneration },
        ...{ digest: digest.toString('hex'), sequence },
      }),
    indexOf,
    async forget(path) {
      await removeIndex(indexOf(path));
      await removeIndex(wantedOf(indexOf(path)));
      await rm(fileOf(path), { force: true });
    },
    async halfWritten(path) {
      const mark = await of(path);
      if (mark?.state !== 'writing') return undefined;
      return `${path} was being written by recovery ${mark.name} and is not whole: let that end or recover into it again; if it is right as it is, resync with force, or remove ${fileOf(path)}`;
    },
  };
}
