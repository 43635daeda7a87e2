/**
 * A tree volume's bytes: a directory that holds exactly the tree (nothing of ours in it, so it can be handed out as it is), a
 * TreeIndex, and a staging folder `<content path>.staging` beside the tree that is there only while it is needed.
 *
 * Guarantees: `write` puts content into files in place (or into the staging folder while they have no name yet), `settle` makes
 * it durable, commits the index together with the work that is left to do on the tree (treework.ts), and does that work. A crash
 * or a full disk in between leaves the index at the new commit and the work in it: whatever is called next, on this base or on
 * one opened again, finishes it first. Nothing outside the tree and its staging folder is touched (treepath.ts).
 * What the kernel refuses to this process is `withheld`: kept in the index, left out of the tree, no damage to `verify`.
 *
 * It works on the real filesystem, not through effects.ts: links, owners, attributes and descriptor-relative names have no
 * likeness on a simulated disk. Its crash tests stop it at every step instead. One call at a time.
 */
import { constants, promises as fs } from 'node:fs';
import { ReplicationError, systemErrorCode } from '../../proto/errors.ts';
import { syncfs } from '../../proto/libc.ts';
import { runBytes, unpack } from '../../proto/payload.ts';
import { diskFile, systemDisk } from '../../proto/system.ts';
import { granuleBytes } from '../../proto/granule.ts';
import type { Data, Node } from '../../proto/wire.ts';
import type { Base, Piece, Progress, Slice } from './base.ts';
import type { CommitRecord } from './frame.ts';
import { copyIndex, removeIndex } from './indexdatabase.ts';
import type { JournalRecord } from './frame.ts';
import { recordLimits, treeRecords } from './records.ts';
import { TreeFiles } from './treefiles.ts';
import { TreeIndex } from './treeindex.ts';
import { workPhases } from './treelog.ts';
import {
  at,
  Directories,
  entryNames,
  isMissing,
  isPrivileged,
  openFile,
  removeEntry,
  stagingSlot,
  type Handle,
} from './treepath.ts';
import { proveContent, verifyTree } from './treeverify.ts';
import { setState } from './treenode.ts';
import { stagedContent, type Work } from './treetask.ts';
import { attach, detach, restore } from './treework.ts';

const directoryFlags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
const maxUnnoted = 10_000;
/** The staging folder of a folder that is written where it is: what lies beside that may be another filesystem, and not ours. */
export const withinName: Buffer = Buffer.from('.cdm-replicator.restoring');

export class TreeBase implements Base {
  readonly index: TreeIndex;
  readonly indexPath: string;
  /** Undefined: the staging folder is in the tree. */
  readonly #contentPath: string | undefined;
  readonly #root: Handle;
  readonly #staging: Handle;
  readonly #step: () => void;
  #files: TreeFiles | undefined;
  #isClosed = false;
  readonly #loosened = new Set<number>();
  /** Not yet noted in the index: one transaction per node would cost one sync per node. */
  #withheld = new Map<number, boolean>();

  private constructor(
    contentPath: string | undefined,
    indexPath: string,
    root: Handle,
    staging: Handle,
    step: () => void,
  ) {
    this.#contentPath = contentPath;
    this.indexPath = indexPath;
    this.#root = root;
    this.#staging = staging;
    this.#step = step;
    this.index = new TreeIndex(indexPath, { keepsWork: true });
  }

  /**
   * Opens, made when absent, and finishes what a crash left.
   * @param step called before each change of the tree; what it throws stops the work there (tests)
   */
  static async open(contentPath: string, indexPath: string, step: () => void = () => undefined): Promise<TreeBase> {
    await fs.mkdir(contentPath, { recursive: true });
    const stagingPath = stagingPathOf(contentPath);
    await fs.mkdir(stagingPath, { recursive: true, mode: 0o700 });
    // A handle that is forgotten ends the program when it is collected.
    await using opened = new AsyncDisposableStack();
    const root = opened.use(await fs.open(contentPath, directoryFlags));
    const staging = opened.use(await fs.open(stagingPath, directoryFlags));
    const base = new TreeBase(contentPath, indexPath, root, staging, step);
    opened.move();
    return await base.#begun();
  }

  /**
   * Over a folder that is there, which `indexPath` tells of; what has the name of the staging folder in it is none of the tree.
   * After `seal` it can be verified and closed only. @param root is the base's to close
   */
  static async within(root: Handle, indexPath: string, step: () => void = () => undefined): Promise<TreeBase> {
    await using opened = new AsyncDisposableStack();
    opened.use(root);
    const staging = opened.use(await openWithin(root));
    const base = new TreeBase(undefined, indexPath, root, staging, step);
    opened.move();
    return await base.#begun();
  }

  async #begun(): Promise<this> {
    try {
      await this.#finish();
    } catch (error) {
      // Open all the same: it can be verified, and the next call tries again.
      if (!(error instanceof ReplicationError)) {
        await this.close();
        throw error;
      }
    }
    return this;
  }

  /** Of a base within its folder: takes the staging folder away, and gives the folder its time again. */
  async seal(): Promise<void> {
    await this.#closeFiles();
    await this.#clean();
    await fs.rmdir(at(this.#root, withinName));
    const node = this.index.node(0);
    if (node) await setState(this.#root, Buffer.from('.'), node);
    await this.sync();
  }

  /** Nodes of which something is kept in the index only. */
  get withheld(): number {
    return this.index.work.withheld;
  }

  async write(record: Exclude<JournalRecord, { commit: unknown }>): Promise<void> {
    await this.#begin();
    if ('data' in record) {
      await this.#writeData(record.data);
      this.index.stageData(record.data);
    } else {
      this.index.stageNodes(record.nodes);
    }
  }

  async #writeData(data: Data): Promise<void> {
    const raw = unpack(data);
    let at = 0;
    const runs = data.runs.map((run) => {
      const length = runBytes(run);
      const bytes = run.zero ? undefined : raw.subarray(at, (at += length));
      return { slot: run.object, bytes, position: run.first * granuleBytes, length };
    });
    await this.#openFiles().write(runs, this.#step);
  }

  /** A new epoch on top of what is committed: nothing may be left in the staging folder of one that was given up. */
  async #begin(): Promise<void> {
    if (this.index.isOpen) return;
    await this.#finish();
    await this.#closeFiles();
    await this.#clean();
  }

  #openFiles(): TreeFiles {
    this.#files ??= new TreeFiles(this.index, this.#root, this.#staging);
    return this.#files;
  }

  async #closeFiles(): Promise<void> {
    const files = this.#files;
    this.#files = undefined;
    await files?.close();
  }

  /** Commits of which several go into one settle. */
  async endEpoch(): Promise<void> {
    if (!this.index.isPending) return;
    this.index.endEpoch();
    for (const { slot, sizeBytes } of this.index.work.ended()) {
      this.#step();
      await this.#openFiles().end(slot, sizeBytes);
    }
  }

  async settle(commit: CommitRecord): Promise<void> {
    await this.#begin();
    await this.endEpoch();
    await this.#closeFiles();
    if (this.index.isOpen) await syncfs(this.#root.fd);
    this.#step();
    this.index.commit(commit);
    await this.#finish();
  }

  /** Does the work that the newest commit left in the index. */
  async #finish(): Promise<void> {
    const { index } = this;
    if (index.work.phase === workPhases.done) return;
    const [isAny] = index.work.changes();
    if (isAny) {
      const work = this.#work();
      if (index.work.phase === workPhases.detach) {
        await detach(work);
        await syncfs(this.#root.fd);
        this.#step();
        index.work.phase = workPhases.attach;
      }
      await attach(work);
      this.#noteWithheld();
      this.#loosened.clear();
      await syncfs(this.#root.fd);
      this.#step();
    }
    index.work.phase = workPhases.done;
    await this.#clean();
  }

  #noteWithheld(): void {
    this.index.work.setWithheld(this.#withheld);
    this.#withheld.clear();
  }

  #work(): Work {
    const { index } = this;
    return {
      root: this.#root,
      staging: this.#staging,
      changes: (which) => index.work.changes(which),
      change: (slot) => index.work.change(slot),
      node: (slot) => index.node(slot),
      slotOf: (parent, name) =>
        this.#contentPath === undefined && parent === 0 && name.equals(withinName)
          ? stagingSlot
          : index.slotOf(parent, name),
      loosened: this.#loosened,
      withhold: (slot, isWithheld) => {
        this.#withheld.set(slot, isWithheld);
        if (this.#withheld.size >= maxUnnoted) this.#noteWithheld();
      },
      step: this.#step,
    };
  }

  /** Empties the staging folder but for content whose node has not come yet. */
  async #clean(): Promise<void> {
    for await (const name of entryNames(this.#staging)) {
      const slot = /^n(\d+)$/.exec(name.toString('latin1'))?.[1];
      if (slot !== undefined && this.index.hasLooseContent(Number(slot))) continue;
      this.#step();
      await removeEntry(this.#staging, name, this.#staging);
    }
  }

  async sync(): Promise<void> {
    await syncfs(this.#root.fd);
  }

  async verify(
    signal: AbortSignal,
    progress: Progress,
  ): Promise<{ readBytes: number; bad: { object: number; granule: number }[] }> {
    await this.#giveUp();
    await this.#finish().catch((error: unknown) => {
      // What stands in the way of the work is found below.
      if (!(error instanceof ReplicationError)) throw error;
    });
    const directories = this.#directories();
    try {
      const loosened: Set<number> = directories.loosened;
      const result = await verifyTree(this.index, directories, loosened, signal, progress);
      this.index.markAllUnknown(result.bad);
      return result;
    } finally {
      await this.#restore(directories);
    }
  }

  async prove(from: Piece, signal: AbortSignal, isOver: () => boolean): Promise<Slice> {
    await this.#giveUp();
    await this.#finish();
    const directories = this.#directories();
    try {
      return await proveContent(this.index, directories, from, signal, isOver);
    } finally {
      await this.#restore(directories);
    }
  }

  nameOf({ object, granule }: Piece): string {
    const slot = object || granule;
    const path = JSON.stringify(this.index.path(slot).toString());
    return object === 0 ? `what ${path} is` : `byte ${granule * granuleBytes} of ${path}`;
  }

  /** An epoch that was begun and not committed is given again. */
  async #giveUp(): Promise<void> {
    await this.#closeFiles();
    this.index.discard();
  }

  /** Of the tree as it is committed. */
  #directories(): Directories {
    return new Directories(this.#root, this.#staging, async (slot) => this.index.node(slot)?.names[0]);
  }

  async #restore(directories: Directories): Promise<void> {
    try {
      await restore(directories, { root: this.#root, node: (slot) => this.index.node(slot) });
    } catch (error) {
      // What cannot be given back has been changed by somebody else; verify names it.
      if (!(error instanceof ReplicationError)) throw error;
    } finally {
      await directories.close();
    }
  }

  /** Attributes and links are made from the index, content is shared with this tree's files where the filesystem can. */
  async cloneTo(contentPath: string, indexPath: string, signal: AbortSignal, progress: Progress): Promise<TreeBase> {
    await this.#giveUp();
    await this.#finish();
    // A crash may have left what had only yet to be removed.
    await this.#clean();
    const wasThere = await refuseUnlessEmpty(contentPath);
    const unfinished = `${indexPath}.unfinished`;
    let copy: TreeBase | undefined;
    try {
      await copyIndex(this.index.database, this.indexPath, unfinished);
      copy = await TreeBase.open(contentPath, unfinished);
      await this.#copyTo(copy, stagingPathOf(contentPath), signal, progress);
      await copy.close();
      // Only now has it the name under which it is opened again: half a copy never looks like a whole one.
      await removeIndex(indexPath);
      await fs.rename(unfinished, indexPath);
      return await TreeBase.open(contentPath, indexPath);
    } catch (error) {
      await copy?.close();
      await removeIndex(unfinished);
      await fs.rm(stagingPathOf(contentPath), { recursive: true, force: true });
      await removeTree(contentPath, wasThere);
      throw error;
    }
  }

  async #copyTo(copy: TreeBase, stagingPath: string, signal: AbortSignal, progress: Progress): Promise<void> {
    const total = this.index.contentBytes;
    let done = 0;
    const source = this.#directories();
    const copyContent = async (parent: number, name: Buffer, slot: number): Promise<void> => {
      await source.with(parent, 'read', async (directory) => {
        const opened = await openFile(directory, name, constants.O_RDONLY, () => source.loosened.add(slot));
        await using file = opened.file;
        const from = `/proc/self/fd/${file.fd}`;
        let own = 0;
        await systemDisk.clone(from, `${stagingPath}/${stagedContent(slot).toString()}`, signal, (bytes) => {
          progress((done += bytes - own), total);
          own = bytes;
        });
      });
    };
    const fromNothing = (after: Node) => ({ slot: after.slot, before: undefined, after, fresh: true, damaged: false });
    const { index } = this;
    try {
      await attach({
        ...copy.#work(),
        *changes() {
          for (const node of index.nodes()) {
            if (!index.isSound(node)) {
              const path = JSON.stringify(index.path(node.slot).toString());
              throw new ReplicationError('ReplicaDamaged', `what the index says of ${path} has changed; run verify`);
            }
            yield fromNothing(node);
          }
        },
        change: (slot) => {
          const node = index.node(slot);
          return node && fromNothing(node);
        },
        content: async ({ slot, names: [name] }) => name && copyContent(name.parent, name.name, slot),
        step: () => signal.throwIfAborted(),
      });
      copy.#noteWithheld();
      for await (const name of entryNames(this.#staging)) {
        const slot = Number(name.toString('latin1').slice(1));
        await copyContent(stagingSlot, name, slot);
      }
    } catch (error) {
      if (systemErrorCode(error) !== 'ENOENT') throw error;
      throw new ReplicationError('ReplicaDamaged', 'a file of the replica is missing; run verify', { cause: error });
    } finally {
      await this.#restore(source);
    }
  }

  async *records(signal: AbortSignal, limits = recordLimits): AsyncGenerator<JournalRecord> {
    await this.#giveUp();
    await this.#finish();
    const source = this.#directories();
    const open = async ({ slot, names: [name] }: Node) => {
      if (!name) throw new ReplicationError('ReplicaDamaged', `slot ${slot} has no name; run verify`);
      const { file } = await source.with(name.parent, 'read', (directory) =>
        openFile(directory, name.name, constants.O_RDONLY, () => source.loosened.add(slot)),
      );
      const content = diskFile(file);
      return { read: (buffer: Buffer, at: number) => content.read(buffer, at), close: () => content.close() };
    };
    try {
      yield* treeRecords(this.index, open, signal, limits);
    } catch (error) {
      if (!isMissing(error)) throw error;
      throw new ReplicationError('ReplicaDamaged', 'a file of the replica is missing; run verify', { cause: error });
    } finally {
      await this.#restore(source);
    }
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.#closeFiles();
    await this.#root.close().catch(() => undefined);
    await this.#staging.close().catch(() => undefined);
    this.index.close();
    if (this.#contentPath !== undefined) await fs.rmdir(stagingPathOf(this.#contentPath)).catch(() => undefined); // stays when it is not empty
  }
}

/** Never by way of a link, and never one that is something else. */
export async function openWithin(root: Handle): Promise<Handle> {
  await fs.mkdir(at(root, withinName), { mode: 0o700 }).catch((error: unknown) => {
    if (systemErrorCode(error) !== 'EEXIST') throw error;
  });
  return fs.open(at(root, withinName), directoryFlags);
}

function stagingPathOf(contentPath: string): string {
  return `${contentPath}.staging`;
}

/** Answers whether the directory is there already. @throws TargetRefused */
async function refuseUnlessEmpty(contentPath: string): Promise<boolean> {
  for (const path of [contentPath, stagingPathOf(contentPath)]) {
    const entries = await fs.readdir(path).catch((error: unknown) => {
      if (systemErrorCode(error) === 'ENOENT') return [];
      if (systemErrorCode(error) === 'ENOTDIR') return [path];
      throw error;
    });
    const isLink = (await fs.lstat(path).catch(() => undefined))?.isSymbolicLink() ?? false;
    if (entries.length > 0 || isLink) {
      throw new ReplicationError('TargetRefused', `${path} is there and no empty directory; name another path`);
    }
  }
  return (await fs.stat(contentPath).catch(() => undefined)) !== undefined;
}

/** A base at this path as a whole: the tree, and what a broken-off settle left beside it. */
export async function removeTreeBase(contentPath: string): Promise<void> {
  await removeTree(contentPath);
  await removeTree(stagingPathOf(contentPath));
}

/** However deep, and whatever permissions it has. With `keep` only what is in it; no error when absent. */
export async function removeTree(path: string, keep = false): Promise<void> {
  // Beside what is not there nothing can be made either.
  const isThere = await fs.lstat(path).catch((error: unknown) => {
    if (!isMissing(error)) throw error;
  });
  if (!isThere) return;
  const spare = await fs.mkdtemp(`${stagingPathOf(path)}-`);
  try {
    await using tree = await fs.open(path, directoryFlags);
    await using trash = await fs.open(spare, directoryFlags);
    if (!isPrivileged()) await tree.chmod(0o700);
    for await (const name of entryNames(tree)) await removeEntry(tree, name, trash);
    if (!keep) await fs.rmdir(path);
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOENT') throw error;
  } finally {
    await fs.rm(spare, { recursive: true, force: true });
  }
}
