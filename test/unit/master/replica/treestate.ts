/** A tree on disk and a modelled one as the same kind of map, so that they can be compared whole. */
import { promises as fs } from 'node:fs';
import { lgetxattr, llistxattr } from '../../../../proto/libc.ts';
import { nodeTypes, type Node } from '../../../../proto/wire.ts';
import type { TreeModel } from './treemodel.ts';

/** What there is, by path: walked with plain calls, hard links named by the first path of theirs. */
export async function walk(root: string): Promise<Map<string, unknown>> {
  const found = new Map<string, unknown>();
  const inodes = new Map<bigint, string>();
  const visit = async (path: Buffer, name: string): Promise<void> => {
    const stat = await fs.lstat(path, { bigint: true });
    const type = Number(stat.mode >> 12n);
    const xattrs: string[] = [];
    for (const key of await llistxattr(path))
      xattrs.push(`${key.toString()}=${(await lgetxattr(path, key))?.toString()}`);
    const same = stat.isDirectory() ? undefined : inodes.get(stat.ino);
    inodes.set(stat.ino, same ?? name);
    found.set(name, {
      type,
      mode: Number(stat.mode & 0o7777n),
      owner: `${stat.uid}:${stat.gid}`,
      mtime: stat.mtimeNs,
      size: type === nodeTypes.file ? Number(stat.size) : 0,
      target: type === nodeTypes.symlink ? (await fs.readlink(path, { encoding: 'buffer' })).toString('latin1') : '',
      device: type === nodeTypes.character ? Number(stat.rdev) : 0,
      xattrs,
      content: type === nodeTypes.file ? (await fs.readFile(path)).toString('latin1') : '',
      same: same ?? name,
    });
    if (!stat.isDirectory()) return;
    const entries = await fs.readdir(path, { encoding: 'buffer' });
    for (const entry of entries.sort((a, b) => Buffer.compare(a, b))) {
      await visit(Buffer.concat([path, Buffer.from('/'), entry]), `${name}/${entry.toString('latin1')}`);
    }
  };
  await visit(Buffer.from(root), '');
  return found;
}

export function expected(model: TreeModel): Map<string, unknown> {
  const found = new Map<string, unknown>();
  const first = new Map<number, string>();
  const visit = (node: Node, name: string): void => {
    if (!first.has(node.slot)) first.set(node.slot, name);
    found.set(name, {
      type: node.type,
      mode: node.mode,
      owner: `${node.uid}:${node.gid}`,
      mtime: BigInt(node.mtimeSeconds) * 1_000_000_000n + BigInt(node.mtimeNanoseconds),
      size: node.sizeBytes,
      target: node.target.toString('latin1'),
      device: node.type === nodeTypes.character ? (node.deviceMajor << 8) | node.deviceMinor : 0,
      xattrs: node.xattrs.map(({ name: key, value }) => `${key.toString()}=${value.toString()}`),
      content: model.content.get(node.slot)?.toString('latin1') ?? '',
      same: first.get(node.slot),
    });
    if (node.type !== nodeTypes.directory) return;
    const children = model.children(node.slot).sort((a, b) => Buffer.compare(a.name, b.name));
    for (const child of children) visit(child.node, `${name}/${child.name.toString('latin1')}`);
  };
  visit(model.nodes.get(0) as Node, '');
  return found;
}
