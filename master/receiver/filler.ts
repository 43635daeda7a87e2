/**
 * Writes one recovery point to a blank volume of its own, from the parts that a master hands on; in a cluster the pod beside the
 * claim of a recovered copy.
 *
 * Guarantees: the call ends well only when the volume is the point, by its digest, durably; a tree is put together in a
 * folder of its own on the volume and gets its names there last, so that nobody takes half of one for the whole. What was
 * on the volume before goes: it is for this copy alone. The newest call has the volume. Nothing outside it is touched but
 * `work`, where the copy's index lies meanwhile.
 */
import { constants, promises as fs } from 'node:fs';
import type { Effects } from '../../proto/effects.ts';
import { ReplicationError, systemErrorCode } from '../../proto/errors.ts';
import { zeroHash } from '../../proto/granule.ts';
import { syncfs } from '../../proto/libc.ts';
import { Lock } from '../../proto/lock.ts';
import { nodeTypes, type Node } from '../../proto/wire.ts';
import { writeOrMark, type Base } from '../replica/base.ts';
import { BlockBase } from '../replica/blockbase.ts';
import type { JournalRecord } from '../replica/frame.ts';
import { removeIndex } from '../replica/indexdatabase.ts';
import { TreeBase } from '../replica/treebase.ts';
import { setState } from '../replica/treenode.ts';
import { at, chmodEntry, entryNames, isPrivileged, removeEntry, type Handle } from '../replica/treepath.ts';
import { readHello, type MirrorStream } from '../session.ts';
import { deviceDisk } from './devicedisk.ts';

export interface Filler {
  fill(stream: MirrorStream, signal: AbortSignal): Promise<void>;
}

interface Filling {
  base: Base;
  /** Brings what is whole to where it stays; answers how much of it the kernel has refused. */
  place: () => Promise<number>;
}

const directoryFlags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
const progressEveryMs = 500;
/** What mkfs.ext4 makes at the root. */
const found = Buffer.from('lost+found');
const ownFolder = '.cdm-recovery-';

/** @param volume a block device, or the folder at which the volume's filesystem is mounted */
export function openFiller(volume: string, work: string, effects: Effects): Filler {
  const lock = new Lock();
  let present: AbortController | undefined;
  const indexPath = `${work}/index.db`;

  async function begin(volumeMode: string, sizeBytes: number): Promise<Filling> {
    await removeIndex(indexPath);
    const isDevice = (await fs.stat(volume)).isBlockDevice();
    if (isDevice !== (volumeMode === 'Block'))
      throw new ReplicationError('TargetRefused', `${volume} is no volume of mode ${volumeMode}`);
    return isDevice ? beginBlock(sizeBytes) : beginTree();
  }

  async function beginBlock(sizeBytes: number): Promise<Filling> {
    const disk = deviceDisk(effects.disk);
    const bytes = (await disk.size(volume)) ?? 0;
    if (bytes < sizeBytes)
      throw new ReplicationError('TargetFull', `the volume has ${bytes} bytes and the point ${sizeBytes}`);
    return { base: await BlockBase.open(disk, volume, indexPath), place: async () => 0 };
  }

  async function beginTree(): Promise<Filling> {
    const folder = await fs.mkdtemp(`${volume}/${ownFolder}`);
    await using root = await fs.open(volume, directoryFlags);
    await using own = await fs.open(folder, directoryFlags);
    for await (const name of entryNames(root))
      if (!name.equals(found) && !folder.endsWith(`/${name.toString('latin1')}`)) await removeEntry(root, name, own);
    const base = await TreeBase.open(`${folder}/tree`, indexPath);
    return { base, place: () => placeTree(base, folder) };
  }

  async function placeTree(base: TreeBase, folder: string): Promise<number> {
    const { index } = base;
    await using root = await fs.open(volume, directoryFlags);
    let { withheld } = base;
    {
      await using tree = await fs.open(`${folder}/tree`, directoryFlags);
      if (!isPrivileged()) await tree.chmod(0o700);
      for (const { name, slot } of index.children(0)) {
        const node = index.node(slot);
        if (name.equals(found)) await fs.rmdir(at(root, found)).catch(ifAbsent);
        // A directory that its owner may not write cannot be moved to another parent.
        const isClosed = node?.type === nodeTypes.directory && !isPrivileged();
        if (isClosed) await chmodEntry(tree, name, 0o700);
        await fs.rename(at(tree, name), at(root, name));
        if (isClosed) await setState(root, name, node);
      }
    }
    const [top, isFound] = [index.node(0), index.slotOf(0, found) !== undefined];
    await base.close();
    await fs.rm(folder, { recursive: true });
    // It was not in the source; what is not empty, or not ours to remove, stays.
    if (!isFound) await fs.rmdir(at(root, found)).catch(() => undefined);
    if (top) withheld += Number(await topState(root, top));
    await syncfs(root.fd);
    return withheld;
  }

  async function run(stream: MirrorStream, signal: AbortSignal): Promise<void> {
    const { volumeMode, sizeBytes } = await readHello(stream);
    const { base, place } = await begin(volumeMode, sizeBytes);
    let whole: { sequence: number; digest: Buffer } | undefined;
    try {
      for await (const { data, nodes, commit, verify } of stream.receive) {
        signal.throwIfAborted();
        if (whole && !verify) throw new ReplicationError('BadMessage', 'the point had come whole already');
        const record: JournalRecord | undefined = data ? { data } : nodes && { nodes };
        if (record) await writeOrMark(base, record);
        else if (commit) {
          const { digest = none, sequence } = commit;
          const own = { committedUs: 0, sourceId: '', generation: '0' };
          await base.settle({ ...commit, ...own, digest: digest.length > 0 ? digest : zeroHash });
          if (digest.length === 0) continue;
          mustBe(base, digest, sequence);
          whole = { sequence, digest };
        } else if (verify && whole) await check(base, stream, signal);
        else throw new ReplicationError('BadMessage', 'MirrorRequest: no part of a point');
      }
      if (!whole) throw new ReplicationError('BadMessage', 'the point has not come whole');
      await base.sync();
      const withheld = await place();
      await stream.send({ committed: { ...whole, withheld } });
    } finally {
      await base.close();
      await removeIndex(indexPath);
    }
  }

  async function check(base: Base, stream: MirrorStream, signal: AbortSignal): Promise<void> {
    await base.sync();
    let toldMs = -Infinity;
    const { readBytes, bad } = await base.verify(signal, (bytesDone, bytesTotal) => {
      const nowMs = effects.clock.monotonicMs();
      if (nowMs - toldMs < progressEveryMs) return;
      toldMs = nowMs;
      stream.send({ verifyProgress: { bytesDone, bytesTotal } }).catch(() => undefined);
    });
    await stream.send({ verifyReady: { readBytes, badGranules: bad.length } });
  }

  return {
    async fill(stream, signal) {
      present?.abort(new ReplicationError('Fenced', 'the volume is filled by a newer call of its master'));
      const own = (present = new AbortController());
      const cancel = (): void => stream.cancel();
      own.signal.addEventListener('abort', cancel, { once: true });
      await lock.run(() => {
        own.signal.throwIfAborted();
        return run(stream, AbortSignal.any([signal, own.signal]));
      });
    },
  };
}

const none = Buffer.alloc(0);

function mustBe({ index }: Base, digest: Buffer, sequence: number): void {
  if (index.unknown === 0 && index.digest.equals(digest)) return;
  throw new ReplicationError(
    'ReplicaDamaged',
    `point ${sequence} does not have its digest any more; choose another point and run verify`,
  );
}

/** Of the volume's root, which is not always ours. Answers whether it is withheld. */
async function topState(root: Handle, top: Node): Promise<boolean> {
  try {
    return await setState(root, Buffer.from('.'), top);
  } catch (error) {
    if (!['EPERM', 'EACCES'].includes(systemErrorCode(error) ?? '')) throw error;
    return true;
  }
}

function ifAbsent(error: unknown): void {
  if (systemErrorCode(error) !== 'ENOENT') throw error;
}
