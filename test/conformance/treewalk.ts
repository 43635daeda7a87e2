/** What is in a tree, by an independent look: one line per name with everything that a file is, to be compared. */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { lgetxattr, llistxattr } from '../../proto/libc.ts';
import { nodeTypes, type Node } from '../../proto/wire.ts';
import type { ModelReplica } from './modelreplica.ts';

export type Lines = Map<string, string>;

interface Seen {
  path: string;
  stat: fs.BigIntStats;
  content: Buffer | undefined;
  target: string;
  xattrs: string[];
}

/** Each directory by way of its parent's descriptor, so that no path is too long. */
export async function walkSource(root: string): Promise<Lines> {
  const links = new Map<bigint, string[]>();
  const seen: Seen[] = [];
  const look = async (full: Buffer, path: string): Promise<void> => {
    const stat = fs.lstatSync(full, { bigint: true });
    const xattrs: string[] = [];
    for (const name of await llistxattr(full)) {
      if (name.toString().startsWith('trusted.SGI_')) continue; // XFS's ACLs once more
      xattrs.push(`${name.toString()}=${(await lgetxattr(full, name))?.toString('hex')}`);
    }
    const target = stat.isSymbolicLink() ? fs.readlinkSync(full, { encoding: 'buffer' }).toString('latin1') : '';
    seen.push({ path, stat, content: stat.isFile() ? fs.readFileSync(full) : undefined, target, xattrs });
    links.set(stat.ino, [...(links.get(stat.ino) ?? []), path]);
    if (!stat.isDirectory()) return;
    const fd = fs.openSync(full, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
    for (const name of fs.readdirSync(full, { encoding: 'buffer' })) {
      const child = Buffer.concat([Buffer.from(`/proc/self/fd/${fd}/`), name]);
      await look(child, `${path}/${name.toString('latin1')}`);
    }
    fs.closeSync(fd);
  };
  await look(Buffer.from(root), '');
  const lines: Lines = new Map();
  for (const { path, stat, content, target, xattrs } of seen) {
    lines.set(
      path,
      line(Number(stat.mode >> 12n), Number(stat.mode & 0o7777n), stat.uid, stat.gid, stat.mtimeNs, content, xattrs, {
        target,
        device: stat.isCharacterDevice() || stat.isBlockDevice() ? deviceText(stat.rdev) : '',
        links: (links.get(stat.ino) ?? []).sort().join('|'),
      }),
    );
  }
  return lines;
}

export function walkReplica(replica: ModelReplica): Lines {
  const lines: Lines = new Map();
  for (const [slot, node] of replica.nodes) {
    const paths = replica.paths(slot);
    const isDevice = node.type === nodeTypes.character || node.type === nodeTypes.block;
    const text = line(
      node.type,
      node.mode,
      BigInt(node.uid),
      BigInt(node.gid),
      BigInt(node.mtimeSeconds) * 1_000_000_000n + BigInt(node.mtimeNanoseconds),
      node.type === nodeTypes.file ? replica.bytes(slot, node.sizeBytes) : undefined,
      node.xattrs.map(({ name, value }) => `${name.toString()}=${value.toString('hex')}`),
      {
        target: node.target.toString('latin1'),
        device: isDevice ? `${node.deviceMajor}:${node.deviceMinor}` : '',
        links: paths.join('|'),
      },
    );
    for (const path of paths) lines.set(path, text);
  }
  return lines;
}

function line(
  type: Node['type'],
  mode: number,
  uid: bigint,
  gid: bigint,
  mtimeNs: bigint,
  content: Buffer | undefined,
  xattrs: string[],
  rest: Record<string, string>,
): string {
  const digest = content ? `${content.length}:${createHash('sha1').update(content).digest('hex')}` : '';
  return JSON.stringify({
    type,
    mode: mode.toString(8),
    uid: `${uid}`,
    gid: `${gid}`,
    mtimeNs: `${mtimeNs}`,
    digest,
    xattrs,
    ...rest,
  });
}

/** MAJOR:MINOR, as glibc's makedev puts them together. */
function deviceText(rdev: bigint): string {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xfff00n);
  return `${major}:${minor}`;
}

/** The first few lines that differ. */
export function differences(source: Lines, replica: Lines): string[] {
  const found: string[] = [];
  for (const [path, text] of source)
    if (replica.get(path) !== text) found.push(`${path}: ${text} is ${replica.get(path)}`);
  for (const path of replica.keys()) if (!source.has(path)) found.push(`${path}: only in the replica`);
  return found.slice(0, 5);
}
