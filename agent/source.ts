/**
 * A volume as the agent reads it: what may have changed, its content, and cuts. `BlockSource` and `TreeSource` are the
 * two kinds; the one loop in mirror.ts drives both.
 *
 * What every source guarantees: never too few. A granule or file that changed after the newest committed cut comes out
 * of the next `round` or cut; what cannot be proven complete makes `attach` or the next round read everything.
 * A source never writes to its volume.
 */
import assert from 'node:assert/strict';
import { zeroHash } from '../proto/granule.ts';
import { nodeHash } from '../proto/node.ts';
import { nodeTypes, type Consistency, type MirrorWelcome, type Node } from '../proto/wire.ts';
import type { Refusal } from './refusal.ts';

/**
 * One part of a round, in sending order. Content of a file comes before the node that names its content root.
 * `bytes` belongs to the source again after `release`; whoever takes a piece must release it, sent or not.
 */
export type Piece = ContentPiece | ZeroPiece | NodesPiece;

/** Granules `first` .. of one object that are not all zeros, at most 1 MiB. */
export interface ContentPiece {
  kind: 'content';
  object: number;
  first: number;
  /** 16 bytes per granule. */
  hashes: Buffer;
  /** Granules back to back; only the object's last one may be shorter than 64 KiB. */
  bytes: Buffer;
  /** Ask the replica first whether it has them; false: it is known to lack them. */
  offer: boolean;
  /** The source believes that the replica has exactly these: a replica that wants one of them was wrong (verify). */
  expectSame: boolean;
  release(): void;
}

/** Zeros cost nothing to send, so they are not offered, but for counting what was wrong (`expectSame`). */
export interface ZeroPiece {
  kind: 'zeros';
  object: number;
  first: number;
  count: number;
  /** Length of the last granule. */
  tailBytes: number;
  /** As in ContentPiece. */
  expectSame: boolean;
}

/**
 * States of files, directories, links; at most 500. With `offer` their slots are consecutive, ascending (slots that are
 * gone or free stand among them as type 0, whose hash is the zero hash).
 */
export interface NodesPiece {
  kind: 'nodes';
  nodes: Node[];
  /** As in ContentPiece; asked for by slot. */
  offer: boolean;
  expectSame: boolean;
}

/** A consistent view of the volume at one instant. */
export interface Cut {
  consistency: Consistency;
  /** The instant on the agent's clock, microseconds since the epoch; all that was written before it is in the cut. */
  agentUs: number;
  /** How long the filesystem stood still; 0 = not at all. */
  freezeUs: number;
  /** What differs from what the rounds before brought. */
  pieces(signal: AbortSignal): AsyncIterable<Piece>;
  /** After the pieces: undefined when the view held until the last byte was read, else why this is no cut. */
  broken(): Promise<Refusal | undefined>;
  release(): Promise<void>;
}

/** A cut that is to be one with those of other volumes: agent/groupcut.ts. */
export interface Hold {
  /** Everything is ready to stand still; returns when that is so of all. @throws NoConsistentCut */
  prepared(): Promise<void>;
  /** Stands still; answers when it may end, undefined: all stood still; else why this is no cut. Never throws. */
  frozen(): Promise<string | undefined>;
}

export interface SourceFacts {
  /** Block: size. Filesystem: bytes in use, for progress only. */
  sizeBytes: number;
  /** What makes this volume this volume: changes when it is formatted or replaced, not by a reboot. */
  sourceId: string;
}

/** Counters since the source was opened; they only grow. */
export interface SourceCounters {
  readBytes: number;
  skippedSameBytes: number;
  skippedZeroBytes: number;
  fullScans: number;
  fullScanReason: string;
  lostEvents: number;
}

export interface Source {
  readonly captureMethod: string;
  readonly captureReason: string;
  readonly counters: SourceCounters;
  /** Present facts. @throws SourceGone, SourceEmptied */
  facts(): Promise<SourceFacts>;
  /**
   * A new session with the replica at `welcome`; whatever was believed of the replica before is dropped unless it is
   * proven to be still so. `manifest` fetches the replica's nodes (Filesystem). Answers whether the next round is whole.
   */
  attach(welcome: MirrorWelcome, manifest: () => AsyncIterable<Node>): Promise<{ whole: boolean; reason: string }>;
  /**
   * What differs, as far as known, from the replica: read live, so it may be torn in time, and a cut must follow.
   * `whole`: everything, offered, whatever is believed. `total` is called with the bytes to go through, when known.
   * A source whose cuts need no round before them yields nothing when not `whole`.
   */
  round(
    whole: boolean,
    progress: (bytesDone: number, bytesTotal: number) => void,
    signal: AbortSignal,
  ): AsyncIterable<Piece>;
  /**
   * With `hold` the view is of a time in which the volume did not change, from `hold.frozen` on until that has answered.
   * @throws NoConsistentCut with what was tried and what would make it possible
   */
  cut(signal: AbortSignal, hold?: Hold): Promise<Cut>;
  /**
   * Proof that nothing changed since the newest cut that was committed: the agent's clock (us) up to which it holds,
   * undefined when there is no such proof (something changed, or it cannot be known).
   */
  unchangedUntil(): Promise<number | undefined>;
  /**
   * The work since the last call took time by the size of the volume, and at no pace of its own: twice as long without must
   * follow, so that it is not read all the time.
   */
  needsRest(): boolean;
  /** Known to be changed and not yet committed; undefined when the capture cannot say. */
  dirtyBytes(): number | undefined;
  /** The pieces so far only make sense with some that are to come: no commit may part them. */
  readonly isIndivisible: boolean;
  /** Between `prepare` and `committed` more pieces may be taken: they belong to the commit after. */
  readonly readsOn: boolean;
  /** `Commit.size_bytes` for what the pieces so far add up to. */
  commitSizeBytes(): number;
  /**
   * Before Commit `sequence` goes out: what must survive a crash of the agent is made durable. All pieces yielded so far
   * have been sent; none is under way.
   */
  prepare(sequence: number): Promise<void>;
  /** Commit `sequence` is durable at the replica, which has this digest now. */
  committed(sequence: number, point: boolean, digest: Buffer): Promise<void>;
  /** Nothing is read until the next call: descriptors that would keep the volume from being unmounted or detached are closed. */
  idle(): Promise<void>;
  close(): Promise<void>;
}

export function release(piece: Piece): void {
  if (piece.kind === 'content') piece.release();
}

/** Their first slot, and 16 bytes for each of them. */
export function nodeHashes(piece: NodesPiece): [number, Buffer] {
  const first = piece.nodes[0]?.slot ?? 0;
  piece.nodes.forEach((node, index) => assert.equal(node.slot, first + index, 'offered nodes have consecutive slots'));
  return [first, Buffer.concat(piece.nodes.map((node) => (node.type === nodeTypes.gone ? zeroHash : nodeHash(node))))];
}
