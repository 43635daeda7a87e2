/**
 * A folder of this node that a recovery writes, by the code that writes replicas (master/replica/treebase.ts): the nodes of the
 * point come, the folder is read and compared with them, the content that it lacks is put into place, and all is read again.
 *
 * Guarantees: begun only when nobody is seen to use the folder; nothing outside it is reached, also not by links that
 * somebody puts into it meanwhile; what is there already, also under another name, is not asked for; `settle` answers the digest of
 * what was read after everything was durable, and only when each file, name and attribute is as it is to be.
 * Failure: SourceInUse, TargetRefused with what to do. A crash leaves a folder of which the next attempt reads all again.
 */
import { promises as fs, constants } from 'node:fs';
import { dirname } from 'node:path';
import { ReplicationError } from '../proto/errors.ts';
import { goneNode } from '../proto/node.ts';
import { nodeTypes, type Data, type Node, type Nodes, type Offer } from '../proto/wire.ts';
import { removeIndex } from '../master/replica/indexdatabase.ts';
import { openWithin, TreeBase, withinName } from '../master/replica/treebase.ts';
import { TreeIndex } from '../master/replica/treeindex.ts';
import { folderInUse } from './folderuse.ts';
import { wantedOf } from './restoremarks.ts';
import { commitOf, scanFolder } from './treescan.ts';

const batchNodes = 500;

export type Progress = (bytesDone: number, bytesTotal: number) => Promise<void>;

export interface TreeWriterOptions {
  /** Resolved, and allowed to be written. */
  real: string;
  /** Slots of the point. */
  slots: number;
  /** Where its indexes are: names of ours alone. */
  indexPath: string;
  /** What an attempt before this one of the same recovery has left to do is done first. */
  goesOn: boolean;
  /** Called when it is ours, before anything of it changes. */
  begin: () => Promise<void>;
  /** Called before each change of the folder; what it throws stops the work there (tests). */
  step?: () => void;
}

export class TreeWriter {
  readonly #options: TreeWriterOptions;
  readonly #wanted: TreeIndex;
  #root: fs.FileHandle | undefined;
  #base: TreeBase | undefined;

  private constructor(options: TreeWriterOptions, wanted: TreeIndex, root: fs.FileHandle) {
    this.#options = options;
    this.#wanted = wanted;
    this.#root = root;
  }

  static async open(options: TreeWriterOptions): Promise<TreeWriter> {
    const { real, indexPath, goesOn, begin } = options;
    const why = await folderInUse(real);
    if (why !== undefined) throw new ReplicationError('SourceInUse', why);
    const root = await openFolder(real);
    try {
      await fs.mkdir(dirname(indexPath), { recursive: true, mode: 0o700 });
      const wantedPath = wantedOf(indexPath);
      await removeIndex(wantedPath);
      if (!goesOn) await removeIndex(indexPath);
      await begin();
      return new TreeWriter(options, new TreeIndex(wantedPath, { nodesAlone: true }), root);
    } catch (error) {
      await root.close();
      throw error;
    }
  }

  /** Of the point; all of them before `compare`. */
  nodes(nodes: Nodes): void {
    if (this.#base)
      throw new ReplicationError('BadMessage', 'MirrorRequest.nodes: after what the folder lacks was asked');
    this.#wanted.stageNodes(nodes);
  }

  /** Reads the folder. Then come the files whose content it lacks, at least in part. */
  async *compare(progress: Progress, signal: AbortSignal): AsyncGenerator<Node> {
    const { slots, indexPath } = this.#options;
    const wanted = this.#wanted;
    wanted.commit(commitOf(1, slots));
    const root = this.#root;
    if (!root) throw new ReplicationError('BadMessage', 'MirrorRequest.manifest came twice');
    await this.#finish();
    await removeIndex(indexPath);
    const index = new TreeIndex(indexPath);
    try {
      const staging = await openWithin(root);
      try {
        let done = 0;
        const total = wanted.contentBytes;
        await scanFolder({
          ...{ root, wanted, index, staging, stagingName: withinName, signal },
          progress: (bytes) => progress((done += bytes), Math.max(done, total)),
        });
      } finally {
        await staging.close();
      }
    } finally {
      index.close();
    }
    this.#root = undefined;
    const base = (this.#base = await TreeBase.within(root, indexPath, this.#options.step));
    await this.#removeSurplus(base);
    for (const node of wanted.nodes()) {
      if (node.type !== nodeTypes.file || node.sizeBytes === 0) continue;
      const own = base.index.node(node.slot);
      const isThere = own?.sizeBytes === node.sizeBytes && own.contentRoot.equals(node.contentRoot);
      if (!isThere || base.index.isUnknown(node.slot)) yield node;
    }
  }

  /** What a crash left half-way between its names would be read as gone. */
  async #finish(): Promise<void> {
    const { indexPath, real } = this.#options;
    const isThere = await fs.stat(indexPath).then(
      () => true,
      () => false,
    );
    if (!isThere) return;
    const root = await openFolder(real);
    // What it cannot do is found by the scan.
    const base = await TreeBase.within(root, indexPath, this.#options.step).catch((error: unknown) => {
      if (!(error instanceof ReplicationError)) throw error;
      return undefined;
    });
    await base?.close();
  }

  /** Files that nothing of the point is in make room first; directories may hold what is still to be moved. */
  async #removeSurplus(base: TreeBase): Promise<void> {
    const { slots } = this.#options;
    let nodes: Node[] = [];
    const write = async (): Promise<void> => {
      if (nodes.length > 0) await base.write({ nodes: { nodes } });
      nodes = [];
    };
    for (const node of base.index.nodes()) {
      if (node.slot < slots || node.type !== nodeTypes.file) continue;
      if (nodes.push(goneNode(node.slot)) >= batchNodes) await write();
    }
    await write();
    if (base.index.isOpen) await base.settle(commitOf(10, base.index.sizeBytes));
  }

  want({ object, first, hashes }: Offer): Buffer {
    return this.#written().index.want(object, first, hashes);
  }

  async write(data: Data): Promise<void> {
    await this.#written().write({ data });
  }

  /** All gets its names and its state and is read again. Answers the digest and the bytes read. */
  async settle(progress: Progress, signal: AbortSignal): Promise<{ digest: Buffer; readBytes: number }> {
    const base = this.#written();
    const { slots, real } = this.#options;
    for (const nodes of this.#differing(base.index)) await base.write({ nodes: { nodes } });
    await base.settle(commitOf(11, slots));
    if (base.withheld > 0)
      throw new ReplicationError(
        'TargetRefused',
        `${base.withheld} files in ${real} cannot have the owner, attributes, time or type that they are to have: run the agent as root, on a filesystem that has them`,
      );
    await base.seal();
    let told = Promise.resolve();
    const { bad, readBytes } = await base.verify(signal, (done, total) => {
      // One after the other; a line that breaks is told of by whoever sends next.
      told = told.then(() => progress(done, total)).catch(() => undefined);
    });
    await told;
    const [first] = bad;
    if (first)
      throw new ReplicationError(
        'TargetFailed',
        `${base.nameOf(first)} in ${real} is not what was written there${bad.length > 1 ? `, nor are ${bad.length - 1} others` : ''}: something else writes it; stop that`,
      );
    return { digest: base.index.digest, readBytes };
  }

  *#differing(own: TreeIndex): Generator<Node[]> {
    const { slots } = this.#options;
    let nodes: Node[] = [];
    // Read before anything is written: the epoch that gets them is not open yet where they are read from.
    for (const node of this.#wanted.nodes()) {
      if (own.isSame(node)) continue;
      nodes.push(node);
      if (nodes.length < batchNodes) continue;
      yield nodes;
      nodes = [];
    }
    for (const node of own.nodes()) {
      if (node.slot < slots) continue;
      nodes.push(goneNode(node.slot));
      if (nodes.length < batchNodes) continue;
      yield nodes;
      nodes = [];
    }
    if (nodes.length > 0) yield nodes;
  }

  #written(): TreeBase {
    if (!this.#base) throw new ReplicationError('BadMessage', 'the folder was not compared yet');
    return this.#base;
  }

  /** @param isDone nothing is to be gone on with */
  async close(isDone: boolean): Promise<void> {
    const { indexPath } = this.#options;
    await this.#root?.close();
    await this.#base?.close();
    this.#wanted.close();
    await removeIndex(wantedOf(indexPath));
    if (isDone) await removeIndex(indexPath);
  }
}

/** The folder that was allowed, not one that has its name by now by way of a link. */
async function openFolder(real: string): Promise<fs.FileHandle> {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
  const root = await fs.open(real, flags);
  if ((await fs.readlink(`/proc/self/fd/${root.fd}`)) === real) return root;
  await root.close();
  throw new ReplicationError('TargetRefused', `${real} is another folder than it was just now`);
}
