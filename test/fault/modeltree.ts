/** A filesystem as a trace of it is understood: inodes, what was done to them, and how to make it for real. */
import fs from 'node:fs';
import { lsetxattr, mknod, utimensat } from '../../proto/libc.ts';

export type Kind = 'directory' | 'file' | 'other';

export interface Inode {
  id: number;
  kind: Kind;
  /** S_IFMT bits and permissions, as mknod takes them. */
  mode: number;
  uid: number;
  gid: number;
  mtimeNs: bigint;
  bytes: Buffer;
  size: number;
  target: Buffer;
  device: [number, number];
  xattrs: Map<string, Buffer>;
  entries: Map<string, Inode>;
}

export type Change =
  | { kind: 'data'; inode: number; at: number; bytes: Buffer }
  | { kind: 'size'; inode: number; size: number }
  | { kind: 'attribute'; inode: number; set: (inode: Inode) => void }
  | { kind: 'make'; directory: number; name: string; inode: number; as: Partial<Inode> & { kind: Kind } }
  | { kind: 'link'; directory: number; name: string; inode: number }
  | { kind: 'remove'; directory: number; name: string }
  | { kind: 'rename'; directory: number; name: string; to: number; toName: string };

export interface Operation {
  change: Change;
  call: string;
  /** Position in the trace at which it is durable whatever happens; Infinity = never within it. */
  durableAt: number;
}

export class Tree {
  readonly inodes = new Map<number, Inode>();
  readonly root: Inode;

  constructor() {
    this.root = this.#make(0, { kind: 'directory', mode: 0o40700 });
  }

  #make(id: number, as: Partial<Inode> & { kind: Kind }): Inode {
    const inode: Inode = {
      mode: 0,
      uid: 0,
      gid: 0,
      mtimeNs: 0n,
      size: 0,
      bytes: Buffer.alloc(0),
      target: Buffer.alloc(0),
      device: [0, 0],
      xattrs: new Map(),
      entries: new Map(),
      ...as,
      id,
    };
    this.inodes.set(id, inode);
    return inode;
  }

  /** Answers whether all that it rests on is there. */
  apply(change: Change, nowNs: bigint): boolean {
    switch (change.kind) {
      case 'data': {
        const inode = this.inodes.get(change.inode);
        if (!inode) return false;
        const end = change.at + change.bytes.length;
        if (end > inode.bytes.length) inode.bytes = Buffer.concat([inode.bytes], Math.max(end, 2 * inode.bytes.length));
        change.bytes.copy(inode.bytes, change.at);
        inode.size = Math.max(inode.size, end);
        inode.mtimeNs = nowNs;
        return true;
      }
      case 'size': {
        const inode = this.inodes.get(change.inode);
        if (!inode) return false;
        inode.bytes = Buffer.concat([inode.bytes.subarray(0, Math.min(inode.size, change.size))], change.size);
        inode.size = change.size;
        inode.mtimeNs = nowNs;
        return true;
      }
      case 'attribute': {
        const inode = this.inodes.get(change.inode);
        if (inode) change.set(inode);
        return inode !== undefined;
      }
      case 'make': {
        const directory = this.inodes.get(change.directory);
        if (!directory || directory.entries.has(change.name)) return false;
        directory.entries.set(change.name, this.#make(change.inode, change.as));
        directory.mtimeNs = nowNs;
        return true;
      }
      case 'link': {
        const [directory, inode] = [this.inodes.get(change.directory), this.inodes.get(change.inode)];
        if (!directory || !inode || directory.entries.has(change.name)) return false;
        directory.entries.set(change.name, inode);
        directory.mtimeNs = nowNs;
        return true;
      }
      case 'remove': {
        const directory = this.inodes.get(change.directory);
        const entry = directory?.entries.get(change.name);
        if (!directory || !entry || entry.entries.size > 0) return false;
        directory.entries.delete(change.name);
        directory.mtimeNs = nowNs;
        return true;
      }
      case 'rename': {
        const [from, to] = [this.inodes.get(change.directory), this.inodes.get(change.to)];
        const inode = from?.entries.get(change.name);
        if (!from || !to || !inode) return false;
        if ((to.entries.get(change.toName)?.entries.size ?? 0) > 0) return false;
        from.entries.delete(change.name);
        to.entries.set(change.toName, inode);
        from.mtimeNs = to.mtimeNs = nowNs;
        return true;
      }
    }
  }
}

export const isName = ({ kind }: Change): boolean =>
  kind === 'make' || kind === 'link' || kind === 'remove' || kind === 'rename';

/** Makes what is below `root` at `path`. */
export async function materialize(root: Inode, path: string): Promise<void> {
  const made = new Map<number, Buffer>();
  const put = async (inode: Inode, at: Buffer): Promise<void> => {
    const first = made.get(inode.id);
    if (first && inode.kind !== 'directory') return fs.linkSync(first, at);
    made.set(inode.id, at);
    if (inode.kind === 'directory') {
      fs.mkdirSync(at, { recursive: true });
      for (const [name, entry] of inode.entries) {
        // SQLite's index of its log is made anew from it.
        if (name.endsWith('.db-shm')) continue;
        await put(entry, Buffer.concat([at, Buffer.from('/'), Buffer.from(name, 'latin1')]));
      }
    } else if (inode.kind === 'file') fs.writeFileSync(at, inode.bytes.subarray(0, inode.size));
    else if (inode.target.length > 0) fs.symlinkSync(inode.target, at);
    else await mknod(at, inode.mode, ...inode.device);
    if (inode.id === 0) return;
    fs.lchownSync(at, inode.uid, inode.gid);
    for (const [name, value] of inode.xattrs) await lsetxattr(at, Buffer.from(name, 'latin1'), value);
    if (inode.target.length === 0) fs.chmodSync(at, inode.mode & 0o7777);
    const seconds = inode.mtimeNs / 1_000_000_000n;
    const nanoseconds = inode.mtimeNs - seconds * 1_000_000_000n;
    const floored =
      nanoseconds < 0n ? { s: seconds - 1n, n: nanoseconds + 1_000_000_000n } : { s: seconds, n: nanoseconds };
    await utimensat(at, { seconds: Number(floored.s), nanoseconds: Number(floored.n) });
  };
  await put(root, Buffer.from(path));
}
