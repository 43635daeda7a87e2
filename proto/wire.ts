/**
 * Encoding of the messages of replicator.proto (messages.ts), and the checks at the boundary.
 *
 * Guarantees: what `decode` returns keeps the sizes, ranges and shapes that the rest of the program relies on; everything
 * else is refused as BadMessage naming the field. `bytes` fields are slices of the received buffer, not copies.
 */
import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import protobuf from 'protobufjs';
import { granuleBytes, hashBytes, isZeroHash } from './granule.ts';
import { ReplicationError } from './errors.ts';
import { holdKinds } from './holdwire.ts';
import type { Data, Messages, Node, Offer } from './messages.ts';

export type * from './messages.ts';

export const protocolVersion = 1;
export const protocolOldest = 1;

/** Granules of one Data message at most: 1 MiB of payload keeps messages in the size that measured best. */
export const maxDataBytes = 1 << 20;
/** Hashes of one Offer at most: 4096 granules, 256 MiB of volume. */
export const maxOfferGranules = 4096;
/** 64 TiB: the level of a replica's index that is in memory takes a millionth of it. */
export const maxVolumeBytes = 2 ** 46;
/** A gRPC message of either direction is never larger. */
export const maxMessageBytes = 4 << 20;

const root = protobuf.parse(readFileSync(new URL('./replicator.proto', import.meta.url), 'utf8')).root;

/** What is set when a field is absent on the wire, as proto3 says; `bytes` as an empty Buffer. */
const defaults: protobuf.IConversionOptions = { defaults: true, longs: Number };

function lookup(kind: keyof Messages): protobuf.Type {
  return root.lookupType(kind === 'JournalData' ? 'Data' : kind);
}

export function encode<K extends keyof Messages>(kind: K, message: Messages[K]): Buffer {
  const type = lookup(kind);
  const bytes = type.encode(type.fromObject(message)).finish();
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** What grpc-js asks of a message that it puts into a frame: a Buffer, or parts that are copied there and nowhere before. */
export interface Encoded {
  readonly length: number;
  readonly byteLength: number;
  /** Absent: it is a Buffer itself. */
  readonly parts?: readonly Uint8Array[];
  copy(target: Uint8Array, at: number): number;
}

/** As `encode`, but the payload of a Data is not copied: it must stay as it is until the message has been written. */
export function encodeParts<K extends keyof Messages>(kind: K, message: Messages[K]): Encoded {
  const { data, ...rest } = message as Messages['MirrorRequest'];
  if (kind !== 'MirrorRequest' || !data) return encode(kind, message);
  const { payload, ...described } = data;
  // A length-delimited field is its tag, its length, its bytes; fields may stand in any order.
  const body = lengthDelimited('Data', 'payload', payload.length);
  const description = encode('Data', { ...described, payload: none });
  const envelope = lengthDelimited('MirrorRequest', 'data', description.length + body.length + payload.length);
  const parts = [encode('MirrorRequest', rest), envelope, description, body, payload];
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  return {
    length,
    byteLength: length,
    parts,
    copy(target, at) {
      let end = at;
      for (const part of parts) {
        target.set(part, end);
        end += part.length;
      }
      return length;
    },
  };
}

const none = Buffer.alloc(0);
const lengthDelimitedWire = 2;

function lengthDelimited(kind: 'MirrorRequest' | 'Data', field: string, length: number): Uint8Array {
  const tag = ((lookup(kind).fields[field]?.id ?? 0) << 3) | lengthDelimitedWire;
  return new protobuf.Writer().uint32(tag).uint32(length).finish();
}

/** @throws ReplicationError BadMessage */
export function decode<K extends keyof Messages>(kind: K, bytes: Uint8Array): Messages[K] {
  const type = lookup(kind);
  let message: unknown;
  try {
    // A Buffer, so that bytes fields become slices of it.
    message = type.toObject(type.decode(Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes)), defaults);
  } catch (error) {
    throw new ReplicationError('BadMessage', `${kind}: not a message of this protocol`, { cause: error });
  }
  if (!isExact(message)) checkNumbers(kind, message);
  check(kind, message as never);
  return message as Messages[K];
}

/** Every integer must be exact in a double, whatever the field. */
function isExact(value: unknown): boolean {
  if (typeof value === 'number') return Math.abs(value) <= Number.MAX_SAFE_INTEGER;
  if (typeof value !== 'object' || value === null || Buffer.isBuffer(value)) return true;
  if (Array.isArray(value)) return value.every(isExact);
  for (const key in value) if (!isExact((value as Record<string, unknown>)[key])) return false;
  return true;
}

/** Names the one that is not: paths are made only for that, as this is done for every message. */
function checkNumbers(path: string, value: unknown): void {
  if (typeof value === 'number') {
    if (!Number.isFinite(value) || Math.abs(value) > Number.MAX_SAFE_INTEGER) bad(path, 'is out of range');
  } else if (Array.isArray(value)) {
    value.forEach((item, index) => checkNumbers(`${path}[${index}]`, item));
  } else if (typeof value === 'object' && value !== null && !Buffer.isBuffer(value)) {
    for (const [key, item] of Object.entries(value)) checkNumbers(`${path}.${key}`, item);
  }
}

function bad(path: string, what: string): never {
  throw new ReplicationError('BadMessage', `${path} ${what}`);
}

const snapshotActions: ReadonlySet<string> = new Set(['service', 'take', 'open', 'close', 'remove', 'list', 'find']);
const groupAnswers: ReadonlySet<string> = new Set(['ready', 'prepared', 'frozen', 'held', 'failed']);

const checks: { [K in keyof Messages]?: (message: Messages[K]) => void } = {
  JoinRequest(message) {
    text('JoinRequest.name', message.name, 63);
    text('JoinRequest.token', message.token, 256);
    if (message.csrDer.length > 16384) bad('JoinRequest.csr_der', 'is longer than 16384 bytes');
  },
  MirrorRequest(message) {
    oneKind('MirrorRequest', message, ['hello', 'offer', 'data', 'nodes', 'commit', 'manifest', 'verify', 'group']);
    if (message.offer) checkOffer(message.offer);
    if (message.data) checkData(message.data);
    if (message.nodes) message.nodes.nodes.forEach(checkNode);
    if ((message.commit?.sizeBytes ?? 0) > maxVolumeBytes) bad('Commit.size_bytes', `is more than ${maxVolumeBytes}`);
    if (message.hello) text('MirrorHello.source_id', message.hello.sourceId, 1024);
    if (message.commit) text('Commit.group_cut', message.commit.groupCut, 64);
    if (message.group) {
      if (!groupAnswers.has(message.group.step)) bad('GroupAnswer.step', 'is no step');
      text('GroupAnswer.message', message.group.message, 4096);
    }
  },
  MirrorReply(message) {
    oneKind('MirrorReply', message, [
      'welcome',
      'received',
      'want',
      'committed',
      'nodes',
      'manifestEnd',
      'verifyReady',
      'verifyProgress',
      'group',
      'restore',
      'refusal',
    ]);
    if (message.restore) text('RestoreHello.uid', message.restore.uid, 256);
    if (message.refusal) text('Refusal.message', message.refusal.message, 4096);
    if (message.nodes) message.nodes.nodes.forEach(checkNode);
  },
  AgentMessage(message) {
    oneKind('AgentMessage', message, ['hello', 'ping', 'inventory', 'report', 'event', 'looked', 'log', 'probed']);
    if (message.hello) text('AgentHello.kubelet', message.hello.kubelet, 4095);
    if (message.probed) {
      if (!['reached', 'unreachable', 'failed'].includes(message.probed.outcome))
        bad('Probed.outcome', 'is no outcome');
      text('Probed.message', message.probed.message, 1024);
    }
    if (message.log) text('Log.text', message.log.text, 512 << 10);
    if (message.event) {
      if (!['FATAL', 'ERROR', 'WARNING', 'INFO', 'TRACE'].includes(message.event.level))
        bad('AgentEvent.level', 'is no level');
      text('AgentEvent.message', message.event.message, 4096);
      text('AgentEvent.code', message.event.code, 64);
    }
    message.report?.troubles.forEach((trouble) => {
      text('Trouble.message', trouble.message, 4096);
      if (!/^[A-Z][A-Za-z]{1,63}$/.test(trouble.reason)) bad('Trouble.reason', 'is not a CamelCase word');
    });
  },
  MasterMessage(message) {
    oneKind('MasterMessage', message, ['welcome', 'pong', 'assignments', 'renew', 'look', 'logRequest', 'probe']);
    if (message.look) text('Look.path', message.look.path, 4095);
    if (message.probe && (isIP(message.probe.address) === 0 || message.probe.port < 1 || message.probe.port > 65_535))
      bad('Probe', 'names no address and port');
  },
  SnapshotRequest(message) {
    if (!snapshotActions.has(message.action)) bad('SnapshotRequest.action', 'is no action');
    if (message.keep.length > 16) bad('SnapshotRequest.keep', 'names more than 16');
    for (const name of [message.name, ...message.keep])
      if (name !== '' && !/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(name))
        bad('SnapshotRequest.name', 'is no name of an object');
  },
  SnapshotReply(message) {
    if (message.path !== '' && !message.path.startsWith('/')) bad('SnapshotReply.path', 'is not absolute');
    if (message.names.length > 1000) bad('SnapshotReply.names', 'are more than 1000');
  },
  HoldRequest: (message) => oneKind('HoldRequest', message, holdKinds.requests),
  HoldReply: (message) => oneKind('HoldReply', message, holdKinds.replies),
  Data: checkData,
  Nodes(message) {
    message.nodes.forEach(checkNode);
  },
  Node: checkNode,
};

function check<K extends keyof Messages>(kind: K, message: Messages[K]): void {
  (checks[kind] as ((message: Messages[K]) => void) | undefined)?.(message);
}

function text(path: string, value: string, maxLength: number): void {
  if (value.length > maxLength) bad(path, `is longer than ${maxLength} characters`);
}

function oneKind(path: string, message: object, kinds: readonly string[]): void {
  const set = kinds.filter((kind) => kind in message);
  if (set.length !== 1) bad(path, `has ${set.length} kinds set instead of one`);
}

function checkOffer(offer: Offer): void {
  if (offer.hashes.length % hashBytes !== 0) bad('Offer.hashes', `is not a multiple of ${hashBytes} bytes`);
  if (offer.hashes.length > maxOfferGranules * hashBytes)
    bad('Offer.hashes', `holds more than ${maxOfferGranules} hashes`);
}

function checkData(data: Data): void {
  let granules = 0;
  let rawBytes = 0;
  for (const run of data.runs) {
    if (run.count < 1) bad('Run.count', 'is less than 1');
    if (run.tailBytes < 1 || run.tailBytes > granuleBytes) bad('Run.tail_bytes', `is not 1 to ${granuleBytes}`);
    if ((run.first + run.count - 1) * granuleBytes > maxVolumeBytes)
      bad('Run.first', `is beyond ${maxVolumeBytes} bytes`);
    if (run.zero) continue;
    granules += run.count;
    rawBytes += (run.count - 1) * granuleBytes + run.tailBytes;
  }
  if (rawBytes > maxDataBytes) bad('Data.runs', `name more than ${maxDataBytes} bytes of content`);
  if (rawBytes !== data.rawBytes) bad('Data.raw_bytes', `is ${data.rawBytes} for runs of ${rawBytes} bytes`);
  if (data.hashes.length !== granules * hashBytes)
    bad('Data.hashes', `holds ${data.hashes.length} bytes for ${granules} granules`);
  for (let at = 0; at < granules; at++) {
    // The zero hash means "hole" in every index: content may never claim it.
    if (isZeroHash(data.hashes, at)) bad('Data.hashes', 'names the hash of zeros for content; send a zero run');
  }
  if (data.compression > 2) bad('Data.compression', 'is not 0, 1 or 2');
  if (data.compression === 0 && data.payload.length !== data.rawBytes) bad('Data.payload', 'is not raw_bytes long');
}

/** Types a node can have, S_IFMT >> 12; 0 = gone. */
export const nodeTypes = {
  gone: 0,
  fifo: 1,
  character: 2,
  directory: 4,
  block: 6,
  file: 8,
  symlink: 10,
  socket: 12,
} as const;
const knownTypes: ReadonlySet<number> = new Set(Object.values(nodeTypes));

function checkNode(node: Node): void {
  if (!knownTypes.has(node.type)) bad('Node.type', `${node.type} is no file type`);
  if (node.mode > 0o7777) bad('Node.mode', 'has more than permission bits');
  if (node.uid > 0xffffffff || node.gid > 0xffffffff) bad('Node.uid', 'is out of range');
  if (node.mtimeNanoseconds > 999_999_999) bad('Node.mtime_nanoseconds', 'is out of range');
  if (node.target.length > 4095 || node.target.includes(0)) bad('Node.target', 'is no link target');
  if (node.slot === 0 && (node.type !== nodeTypes.directory || node.names.length > 0))
    bad('Node.slot', '0 must be the root directory');
  if (node.slot > 0 && node.type !== nodeTypes.gone && node.names.length === 0) bad('Node.names', 'is empty');
  if (node.type === nodeTypes.directory && node.names.length > 1)
    bad('Node.names', 'has more than one for a directory');
  for (const { name } of node.names) {
    if (name.length < 1 || name.length > 255 || name.includes(0) || name.includes(0x2f) || isDots(name))
      bad('Name.name', 'is no file name');
  }
  for (const { name } of node.xattrs) {
    if (name.length < 1 || name.length > 255 || name.includes(0)) bad('Xattr.name', 'is no attribute name');
  }
  if (node.contentRoot.length !== (node.type === nodeTypes.file ? hashBytes : 0))
    bad('Node.content_root', 'has the wrong length');
}

function isDots(name: Buffer): boolean {
  return (name.length === 1 && name[0] === 0x2e) || (name.length === 2 && name[0] === 0x2e && name[1] === 0x2e);
}
