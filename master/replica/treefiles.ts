/**
 * The files into which the content of open epochs goes: those of the tree in place, and `n<slot>` in the staging folder for
 * files that are not in the tree yet. The tree is still as it was committed, so this is where they are looked for.
 *
 * Failure: a file of the tree that is not there is ReplicaDamaged, unless its slot is known to be damaged, then it is made
 * anew in the staging folder.
 */
import { constants, promises as fs } from 'node:fs';
import { ReplicationError } from '../../proto/errors.ts';
import { diskFile } from '../../proto/system.ts';
import { nodeTypes, type Node } from '../../proto/wire.ts';
import { minBatch, writeFiles } from './treebatches.ts';
import type { TreeIndex } from './treeindex.ts';
import { at, Directories, isMissing, lstatEntry, openFile, type Handle, type OpenFile } from './treepath.ts';
import { stagedContent } from './treetask.ts';

const openAtOnce = 64;

export interface ContentRun {
  slot: number;
  bytes: Buffer | undefined;
  position: number;
  length: number;
}

type StagedRun = ContentRun & { bytes: Buffer };

export class TreeFiles {
  readonly #index: TreeIndex;
  readonly #staging: Handle;
  readonly #directories: Directories;
  /** Open files, the one used last at the end. */
  readonly #open = new Map<number, Handle>();
  /** Sizes on the disk of the files that were written. */
  readonly #sizes = new Map<number, number>();

  constructor(index: TreeIndex, root: Handle, staging: Handle) {
    this.#index = index;
    this.#staging = staging;
    this.#directories = new Directories(root, staging, async (slot) => index.committedNode(slot)?.names[0]);
  }

  /**
   * Each with its bytes, or undefined for a hole, which does not make the file longer.
   * @param step called before each
   */
  async write(runs: Iterable<ContentRun>, step: () => void): Promise<void> {
    let batch: StagedRun[] = [];
    const writeBatch = async (): Promise<void> => {
      const some = batch;
      batch = [];
      await this.#writeStaged(some);
    };
    try {
      for (const run of runs) {
        step();
        const { slot, bytes } = run;
        if (bytes && !this.#open.has(slot) && !this.#inTree(slot)) {
          batch.push({ ...run, bytes });
          continue;
        }
        // One of them may be of the same file.
        await writeBatch();
        await this.#writeOne(run);
      }
    } finally {
      await writeBatch();
    }
  }

  /** Into the staging folder, opened and closed at once: there are many of them, and hardly any comes again. */
  async #writeStaged(batch: StagedRun[]): Promise<void> {
    if (batch.length < minBatch) {
      for (const run of batch) await this.#writeOne(run);
      return;
    }
    const files = batch.map((run) => ({ ...run, name: stagedContent(run.slot).toString('latin1') }));
    const before = await writeFiles(this.#staging, files);
    batch.forEach(({ slot, position, length }, index) => {
      this.#sizes.set(slot, Math.max(before[index] ?? 0, position + length));
    });
  }

  async #writeOne({ slot, bytes, position, length }: ContentRun): Promise<void> {
    const file = diskFile(await this.#file(slot));
    if (!bytes) return file.zero(position, length);
    await file.write([bytes], position);
    this.#sizes.set(slot, Math.max(this.#sizes.get(slot) ?? 0, position + length));
  }

  async #file(slot: number): Promise<Handle> {
    let file = this.#open.get(slot);
    if (!file) {
      const opened = await this.#openFile(slot);
      file = opened.file;
      this.#sizes.set(slot, opened.sizeBytes);
    }
    this.#open.delete(slot);
    this.#open.set(slot, file);
    for (const [other, handle] of this.#open) {
      if (this.#open.size <= openAtOnce) break;
      this.#open.delete(other);
      await handle.close();
    }
    return file;
  }

  async #openFile(slot: number): Promise<OpenFile> {
    const inTree = this.#inTree(slot);
    if (inTree && !(await lstatEntry(this.#staging, stagedContent(slot)))) {
      for (const { parent, name } of inTree.names) {
        const file = await this.#openIn(parent, name).catch((error: unknown) => {
          if (!isMissing(error)) throw error;
          return undefined;
        });
        if (file) return file;
      }
      if (!this.#index.wasDamaged(slot)) {
        const path = JSON.stringify(this.#index.path(slot).toString());
        throw new ReplicationError('ReplicaDamaged', `file ${path} of the replica is missing. Run verify`);
      }
    }
    return openFile(this.#staging, stagedContent(slot), constants.O_RDWR | constants.O_CREAT, () => undefined);
  }

  #openIn(parent: number, name: Buffer): Promise<OpenFile> {
    return this.#directories.with(parent, 'read', (directory) =>
      // Its permissions are set again when the epoch is settled, as its time is.
      openFile(directory, name, constants.O_RDWR, () => undefined),
    );
  }

  /** The committed file that the slot's content goes into; undefined = into the staging folder. */
  #inTree(slot: number): Node | undefined {
    const node = this.#index.committedNode(slot);
    return node?.type === nodeTypes.file && !this.#index.work.isFresh(slot) ? node : undefined;
  }

  /** The epoch leaves a file of that size in the slot; undefined = none. */
  async end(slot: number, sizeBytes: number | undefined): Promise<void> {
    if (sizeBytes === undefined) {
      await this.#open.get(slot)?.close();
      this.#open.delete(slot);
      // Whatever comes next is to be looked at, not taken for what was committed.
      this.#sizes.set(slot, NaN);
      await fs.rm(at(this.#staging, stagedContent(slot)), { force: true });
      return;
    }
    const isDamaged = this.#index.wasDamaged(slot);
    const present = this.#sizes.get(slot) ?? (isDamaged ? undefined : this.#inTree(slot)?.sizeBytes);
    if (present === sizeBytes) return;
    const file = await this.#file(slot);
    await file.truncate(sizeBytes);
    this.#sizes.set(slot, sizeBytes);
  }

  async close(): Promise<void> {
    for (const file of this.#open.values()) await file.close();
    this.#open.clear();
    await this.#directories.close();
  }
}
