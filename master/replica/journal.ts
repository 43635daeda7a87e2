/**
 * The forward redo journal of a replica: everything received, in order, closed by commits.
 *
 * Guarantees: what was appended before a `sync` that returned survives; `open` answers only whole epochs, cut off after
 * the newest commit whose frames are all right (I3: a torn tail is a phantom that is sent again, never a hole).
 * Failure: a frame that is damaged in the middle ends the journal there; the caller sees a head that is older than its
 * index and rebuilds (ReplicaDamaged). Not done here: payload bytes are proven by their granule hashes when they are
 * applied or scrubbed, not by the frame; hashing them twice would cost as much as receiving them.
 *
 * On disk: segments `<first sequence, 16 digits>.log`, each a row of frames:
 *   0  magic "CDM1"   4  kind (1 data, 2 nodes, 3 commit, 4 placed)   8  meta length   12 payload length
 *   16 sequence of the epoch (u64)   24 BLAKE3-128 of bytes 0..23 and meta   40 meta   then payload
 * meta is the protobuf message Data (without payload), Nodes or JournalCommit; integers are little-endian.
 */
import type { Disk, DiskFile } from '../../proto/effects.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { hash } from '../../proto/granule.ts';
import { maxDataBytes, maxMessageBytes } from '../../proto/wire.ts';
import { decodeFrameMeta, encodeFrameMeta, type CommitRecord, type JournalRecord } from './frame.ts';

const headerBytes = 40;
const startBytes = 4096;
const none = Buffer.alloc(0);
const magic = 0x314d4443;

interface Segment {
  first: number;
  path: string;
  bytes: number;
  /** Newest commit in it; first - 1 when there is none yet. */
  last: number;
}

export class Journal {
  readonly #disk: Disk;
  readonly #folder: string;
  /** A segment is closed at the first commit beyond this size, so that old ones can be dropped whole. */
  readonly #segmentBytes: number;
  #segments: Segment[] = [];
  #file: DiskFile | undefined;
  /** End of the newest commit in the open segment; what is behind it belongs to the open epoch. */
  #committedBytes = 0;

  /** Newest commit of an epoch with placed content: its bytes are in the image already. 0 = none. */
  placedThrough = 0;
  /** The open epoch has placed content. */
  #placed = false;

  /** Something in the middle cannot be read any more: what is behind it is lost, and opening anew finds where it ends. */
  damaged = false;

  private constructor(disk: Disk, folder: string, segmentBytes: number) {
    this.#disk = disk;
    this.#folder = folder;
    this.#segmentBytes = segmentBytes;
  }

  /**
   * Opens and cuts off what is not committed. `onEpoch` is called for each commit in order with the records of its
   * epoch, payloads left empty (they are not read).
   */
  static async open(
    disk: Disk,
    folder: string,
    segmentBytes: number,
    onEpoch: (records: JournalRecord[], commit: CommitRecord) => void,
  ): Promise<Journal> {
    const journal = new Journal(disk, folder, segmentBytes);
    await disk.mkdir(folder);
    const names = (await disk.list(folder)).filter((name) => /^\d{16}\.log$/.test(name));
    let next: number | undefined;
    for (const name of names) {
      const segment = { first: Number(name.slice(0, 16)), path: `${folder}/${name}`, bytes: 0, last: 0 };
      segment.last = segment.first - 1;
      if (next !== undefined && segment.first !== next) {
        // A gap: everything from here on hangs in the air.
        await disk.remove(segment.path);
        continue;
      }
      await journal.#load(segment, onEpoch);
      next = segment.last + 1;
      journal.#segments.push(segment);
    }
    await disk.syncDirectory(folder);
    const open = journal.#segments.at(-1);
    if (open) {
      journal.#file = await disk.open(open.path, 'write');
      journal.#committedBytes = open.bytes;
      try {
        if ((await journal.#file.size()) > open.bytes) await journal.#file.truncate(open.bytes);
        // A process that died between writing and syncing leaves what can be read and is not yet durable, names too.
        await journal.#file.sync();
      } catch (error) {
        await journal.close();
        throw error;
      }
    }
    return journal;
  }

  async #load(segment: Segment, onEpoch: (records: JournalRecord[], commit: CommitRecord) => void): Promise<void> {
    const file = await this.#disk.open(segment.path, 'read');
    try {
      let epoch: JournalRecord[] = [];
      for await (const { record, sequence, end } of frames(file, () => false)) {
        if (sequence !== segment.last + 1) break;
        if ('commit' in record) {
          if (record.commit.sequence !== sequence) break;
          onEpoch(epoch, record.commit);
          if (epoch.some(isPlaced)) this.placedThrough = sequence;
          epoch = [];
          segment.last = sequence;
          segment.bytes = end;
        } else {
          epoch.push(record);
        }
      }
    } finally {
      await file.close();
    }
  }

  /** Newest commit, or undefined when the journal is empty. */
  get lastSequence(): number | undefined {
    return this.#segments.at(-1)?.last;
  }

  /** The journal can redo every epoch above this one; undefined when it is empty. */
  get baseSequence(): number | undefined {
    const first = this.#segments[0]?.first;
    return first === undefined ? undefined : first - 1;
  }

  get bytes(): number {
    return this.#segments.reduce((sum, segment) => sum + segment.bytes, 0);
  }

  /** Bytes of the open epoch so far. */
  get openBytes(): number {
    const open = this.#segments.at(-1);
    return open ? open.bytes - this.#committedBytes : 0;
  }

  /** Adds to the epoch `sequence`, which must be the newest commit + 1. Not durable until `sync`. */
  async append(sequence: number, record: JournalRecord): Promise<void> {
    const segment = await this.#segmentFor(sequence);
    const frame = encodeFrame(sequence, record);
    const length = frame.reduce((sum, part) => sum + part.length, 0);
    if (!this.#file) throw new Error('journal: append on a closed journal');
    await this.#file.write(frame, segment.bytes);
    segment.bytes += length;
    this.#placed ||= isPlaced(record);
  }

  /** Closes the epoch: data durable first, then the commit record, then that durable too (I1, I2). */
  async commit(commit: CommitRecord): Promise<void> {
    const segment = await this.#segmentFor(commit.sequence);
    await this.#file?.sync();
    await this.append(commit.sequence, { commit });
    await this.#file?.sync();
    segment.last = commit.sequence;
    this.#committedBytes = segment.bytes;
    if (this.#placed) this.placedThrough = commit.sequence;
    this.#placed = false;
  }

  /** Forgets the open epoch, durably: nothing of it may come back between the frames of the next one. */
  async discard(): Promise<void> {
    const open = this.#segments.at(-1);
    if (!open || !this.#file || open.bytes === this.#committedBytes) return;
    await this.#file.truncate(this.#committedBytes);
    await this.#file.sync();
    open.bytes = this.#committedBytes;
    this.#placed = false;
  }

  /** Starts anew with nothing in it. */
  async clear(): Promise<void> {
    await this.close();
    for (const { path } of this.#segments) await this.#disk.remove(path);
    await this.#disk.syncDirectory(this.#folder);
    this.#segments = [];
    this.#committedBytes = 0;
    this.placedThrough = 0;
    this.#placed = false;
  }

  /**
   * Records of the epochs above `after` up to and with `through`. `wants` says of each whether its payload is read; it is
   * left empty else. @throws PointGone, ReplicaDamaged
   */
  async *read(
    after: number,
    through: number,
    wants: (record: JournalRecord) => boolean = () => true,
  ): AsyncGenerator<JournalRecord> {
    if (after >= through) return;
    const base = this.baseSequence;
    if (base === undefined || base > after || (this.lastSequence ?? 0) < through) {
      throw new ReplicationError('PointGone', `the journal does not reach from ${after} to ${through}`);
    }
    let reached = after;
    for (const segment of [...this.#segments]) {
      if (segment.last <= after || segment.first > through) continue;
      const file = await this.#disk.open(segment.path, 'read');
      try {
        // What lies before was wanted earlier.
        const ours = (record: JournalRecord, sequence: number): boolean => sequence > after && wants(record);
        for await (const { record, sequence } of frames(file, ours)) {
          if (sequence <= after) continue;
          if (sequence > through) break;
          // The segment before ended early: what lies between is lost, and what comes after it means nothing alone.
          if (sequence !== reached + 1) break;
          yield record;
          if ('commit' in record) reached = sequence;
          if (reached === through) return;
        }
      } finally {
        await file.close();
      }
    }
    this.damaged = true;
    throw new ReplicationError('ReplicaDamaged', `the journal is damaged after epoch ${reached}`);
  }

  /** Whether `trim` would drop anything. */
  canTrim(sequence: number): boolean {
    const [oldest, next] = this.#segments;
    return oldest !== undefined && next !== undefined && oldest.last <= sequence;
  }

  /**
   * Drops whole segments that hold nothing above `sequence`; the newest one stays. Each is gone for good before the next one
   * goes, so that a crash leaves no gap.
   */
  async trim(sequence: number): Promise<void> {
    for (let [oldest] = this.#segments; oldest && this.canTrim(sequence); [oldest] = this.#segments) {
      await this.#disk.remove(oldest.path);
      await this.#disk.syncDirectory(this.#folder);
      this.#segments.shift();
    }
  }

  async close(): Promise<void> {
    await this.#file?.close();
    this.#file = undefined;
  }

  async #segmentFor(sequence: number): Promise<Segment> {
    const open = this.#segments.at(-1);
    const atCommit = open !== undefined && open.bytes === this.#committedBytes;
    if (open && !(atCommit && open.bytes >= this.#segmentBytes)) return open;
    const path = `${this.#folder}/${String(sequence).padStart(16, '0')}.log`;
    const file = await this.#disk.open(path, 'write');
    try {
      await file.truncate(0);
      await this.#disk.syncDirectory(this.#folder);
    } catch (error) {
      await file.close();
      throw error;
    }
    await this.#file?.close();
    this.#file = file;
    this.#committedBytes = 0;
    const segment = { first: sequence, path, bytes: 0, last: sequence - 1 };
    this.#segments.push(segment);
    return segment;
  }
}

function isPlaced(record: JournalRecord): boolean {
  return 'data' in record && record.placed === true;
}

function encodeFrame(sequence: number, record: JournalRecord): Buffer[] {
  const { kind, meta, payload } = encodeFrameMeta(record);
  const header = Buffer.alloc(headerBytes);
  header.writeUInt32LE(magic, 0);
  header.writeUInt32LE(kind, 4);
  header.writeUInt32LE(meta.length, 8);
  header.writeUInt32LE(payload.length, 12);
  header.writeBigUInt64LE(BigInt(sequence), 16);
  hash(header.subarray(0, 24), meta).copy(header, 24);
  return payload.length > 0 ? [header, meta, payload] : [header, meta];
}

/** Frames from the start of the file to its end or to the first one that is not right. */
async function* frames(
  file: DiskFile,
  wants: (record: JournalRecord, sequence: number) => boolean,
): AsyncGenerator<{ record: JournalRecord; sequence: number; end: number }> {
  const size = await file.size();
  // Header and meta of most frames come with one read.
  const start = Buffer.alloc(startBytes);
  for (let at = 0; at + headerBytes <= size;) {
    const head = start.subarray(0, Math.min(startBytes, size - at));
    await file.read(head, at);
    const kind = head.readUInt32LE(4);
    const metaLength = head.readUInt32LE(8);
    const payloadLength = head.readUInt32LE(12);
    const payloadAt = at + headerBytes + metaLength;
    const end = payloadAt + payloadLength;
    if (head.readUInt32LE(0) !== magic || metaLength > maxMessageBytes || payloadLength > maxDataBytes || end > size)
      return;
    const meta = Buffer.alloc(metaLength);
    if (headerBytes + metaLength <= head.length) head.copy(meta, 0, headerBytes, headerBytes + metaLength);
    else await file.read(meta, at + headerBytes);
    if (!hash(head.subarray(0, 24), meta).equals(head.subarray(24, headerBytes))) return;
    const record = decodeFrameMeta(kind, meta, none, payloadLength);
    if (!record) return;
    const sequence = Number(head.readBigUInt64LE(16));
    if (wants(record, sequence) && 'data' in record && payloadLength > 0) {
      record.data.payload = Buffer.alloc(payloadLength);
      await file.read(record.data.payload, payloadAt);
    }
    yield { record, sequence, end };
    at = end;
  }
}
