/**
 * Nodes: the files, directories and links of a tree volume, and their hashes. Both sides compute them alike, so this is
 * part of the protocol: a change of the encoding below is a new protocol version.
 *
 * Rules of an epoch that the replica checks at its commit (ContentMismatch when broken):
 *   - A node is the whole new state of its slot; type 0 = gone. Of several for one slot the last one counts; otherwise the
 *     order inside an epoch means nothing.
 *   - A name that the epoch gives to one slot is lost by the slot that had it before. A slot without names is gone, and so is
 *     all that is in a directory that is gone or no directory any more, unless the epoch gives it another place.
 *   - Two nodes of one epoch never have the same name. Every parent is a directory at the commit, and leads to slot 0.
 *   - A file's content, known to the replica from this epoch or before it, adds up to its content root.
 * No content can be assumed in a slot that was gone or no regular file at the commit before: it starts as zeros.
 */
import { ReplicationError } from './errors.ts';
import { hash, zeroHash } from './granule.ts';
import { nodeTypes, type Name, type Node, type Xattr } from './wire.ts';

/** Slots of a volume at most; bounds the table of hashes that a hostile commit can ask for. */
export const maxSlots = 2 ** 28;
/** Size of a file at most: 16 TiB, the limit of ext4 with blocks of 4 KiB. */
export const maxFileBytes = 2 ** 44;

const empty = Buffer.alloc(0);

/**
 * The same node with nothing in it that its type does not have, names and attributes sorted bytewise. Symbolic links have
 * no permissions of their own on Linux: 0777. Directories and special files have no size.
 */
export function canonicalNode(node: Node): Node {
  const { type } = node;
  const isFile = type === nodeTypes.file;
  const isDevice = type === nodeTypes.character || type === nodeTypes.block;
  if (type === nodeTypes.gone) return goneNode(node.slot);
  return {
    slot: node.slot,
    type,
    mode: type === nodeTypes.symlink ? 0o777 : node.mode,
    uid: node.uid,
    gid: node.gid,
    mtimeSeconds: node.mtimeSeconds,
    mtimeNanoseconds: node.mtimeNanoseconds,
    sizeBytes: isFile ? node.sizeBytes : 0,
    target: type === nodeTypes.symlink ? node.target : empty,
    deviceMajor: isDevice ? node.deviceMajor : 0,
    deviceMinor: isDevice ? node.deviceMinor : 0,
    xattrs: isSorted(node.xattrs, compareXattrs) ? node.xattrs : [...node.xattrs].sort(compareXattrs),
    names: isSorted(node.names, compareNames) ? node.names : [...node.names].sort(compareNames),
    contentRoot: isFile ? node.contentRoot : empty,
  };
}

/** The canonical node, if it is one that a tree can hold. @throws BadMessage */
export function checkedNode(node: Node): Node {
  const bad = (field: string, what: string): never => {
    throw new ReplicationError('BadMessage', `Node.${field} of slot ${node.slot} ${what}`);
  };
  if (node.slot >= maxSlots) bad('slot', 'is out of range');
  if (node.sizeBytes > maxFileBytes) bad('size_bytes', 'is out of range');
  const state = canonicalNode(node);
  if (repeats(state.names, compareNames)) bad('names', 'holds a name twice');
  if (repeats(state.xattrs, compareXattrs)) bad('xattrs', 'holds an attribute twice');
  return state;
}

function repeats<T>(sorted: T[], compare: (a: T, b: T) => number): boolean {
  return sorted.some((item, at) => at > 0 && compare(sorted[at - 1] as T, item) === 0);
}

/** The state of a slot in which there is nothing. */
export function goneNode(slot: number): Node {
  return {
    slot,
    type: nodeTypes.gone,
    mode: 0,
    uid: 0,
    gid: 0,
    mtimeSeconds: 0,
    mtimeNanoseconds: 0,
    sizeBytes: 0,
    target: empty,
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: [],
    names: [],
    contentRoot: empty,
  };
}

/**
 * 16 bytes over the canonical state: what an Offer of object 0 holds for the slot. Never the zero hash, which stands for a
 * slot that is gone (and is the answer for one).
 *
 * Encoding, integers little-endian: slot u64, type u8, mode u16, uid u32, gid u32, mtime seconds i64, nanoseconds u32, size u64,
 * device major u32, minor u32, target, content root, number of xattrs u32, each name and value, number of names u32, each
 * parent u64 and name; byte strings have their length before them as u32.
 */
export function nodeHash(node: Node): Buffer {
  if (node.type === nodeTypes.gone) return zeroHash;
  return hash(encodeCanonical(canonicalNode(node)));
}

const fixedBytes = 8 + 1 + 2 + 4 + 4 + 8 + 4 + 8 + 4 + 4;

function encodeCanonical(node: Node): Buffer {
  let length = fixedBytes + 4 + node.target.length + 4 + node.contentRoot.length + 4 + 4;
  for (const { name, value } of node.xattrs) length += 8 + name.length + value.length;
  for (const { name } of node.names) length += 12 + name.length;
  const out = Buffer.allocUnsafe(length);
  let at = out.writeBigUInt64LE(BigInt(node.slot), 0);
  at = out.writeUInt8(node.type, at);
  at = out.writeUInt16LE(node.mode, at);
  at = out.writeUInt32LE(node.uid, at);
  at = out.writeUInt32LE(node.gid, at);
  at = out.writeBigInt64LE(BigInt(node.mtimeSeconds), at);
  at = out.writeUInt32LE(node.mtimeNanoseconds, at);
  at = out.writeBigUInt64LE(BigInt(node.sizeBytes), at);
  at = out.writeUInt32LE(node.deviceMajor, at);
  at = out.writeUInt32LE(node.deviceMinor, at);
  const bytes = (part: Buffer): void => {
    at = out.writeUInt32LE(part.length, at);
    at += part.copy(out, at);
  };
  bytes(node.target);
  bytes(node.contentRoot);
  at = out.writeUInt32LE(node.xattrs.length, at);
  for (const { name, value } of node.xattrs) {
    bytes(name);
    bytes(value);
  }
  at = out.writeUInt32LE(node.names.length, at);
  for (const { parent, name } of node.names) {
    at = out.writeBigUInt64LE(BigInt(parent), at);
    bytes(name);
  }
  return out;
}

export function compareNames(a: Name, b: Name): number {
  return a.parent - b.parent || Buffer.compare(a.name, b.name);
}

export function compareXattrs(a: Xattr, b: Xattr): number {
  return Buffer.compare(a.name, b.name);
}

export function sameNodes(a: Node, b: Node): boolean {
  return a.slot === b.slot && nodeHash(a).equals(nodeHash(b));
}

/** For messages. */
export function typeName(type: number): string {
  return Object.entries(nodeTypes).find(([, number]) => number === type)?.[0] ?? `type ${type}`;
}

function isSorted<T>(items: T[], compare: (a: T, b: T) => number): boolean {
  return items.every((item, at) => at === 0 || compare(items[at - 1] as T, item) <= 0);
}
