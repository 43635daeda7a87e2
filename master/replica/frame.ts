/** What stands in a journal frame: the wire's messages, and the commit record. Pure. */
import { decode, encode, type Commit, type Data, type Nodes } from '../../proto/wire.ts';

/**
 * Closes an epoch. With `point` it is a recovery point, else it only saves work already done.
 * `digest` is of the whole volume at this commit; the instants are on the master's clock, microseconds since the epoch.
 */
export interface CommitRecord extends Commit {
  digest: Buffer;
  committedUs: number;
  sourceId: string;
  generation: string;
}

/** `placed`: its bytes went straight into the image (placing.ts), and only what it says of them is kept. */
export type JournalRecord = { data: Data; placed?: boolean } | { nodes: Nodes } | { commit: CommitRecord };

const kinds = { data: 1, nodes: 2, commit: 3, placed: 4 } as const;
const none = Buffer.alloc(0);

export function encodeFrameMeta(record: JournalRecord): { kind: number; meta: Buffer; payload: Buffer } {
  if ('data' in record) {
    // Without its payload the message is not a valid Data by itself, so raw_bytes says what it will be.
    const { payload, ...rest } = record.data;
    const meta = encode('JournalData', { ...rest, payload: none });
    return record.placed ? { kind: kinds.placed, meta, payload: none } : { kind: kinds.data, meta, payload };
  }
  if ('nodes' in record) return { kind: kinds.nodes, meta: encode('Nodes', record.nodes), payload: none };
  return { kind: kinds.commit, meta: encode('JournalCommit', record.commit), payload: none };
}

/** Undefined when the bytes are no such record. `payload` is empty when it was not read, however long it is. */
export function decodeFrameMeta(
  kind: number,
  meta: Buffer,
  payload: Buffer,
  payloadLength: number,
): JournalRecord | undefined {
  try {
    if (kind === kinds.data) {
      const data = decode('JournalData', meta);
      if (data.compression === 0 && data.rawBytes !== payloadLength) return undefined;
      return { data: { ...data, payload } };
    }
    if (kind === kinds.placed) return { data: decode('JournalData', meta), placed: true };
    if (kind === kinds.nodes) return { nodes: decode('Nodes', meta) };
    if (kind === kinds.commit) return { commit: decode('JournalCommit', meta) };
    return undefined;
  } catch {
    return undefined;
  }
}
