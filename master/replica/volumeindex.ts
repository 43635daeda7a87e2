/**
 * What a replica knows of a volume at one commit without its bytes: hashes, size, position. `BlockIndex` and `TreeIndex`
 * are the two kinds. The head's index is at the newest commit; a base's index is at the epoch its bytes are at.
 *
 * Guarantees: `commit` moves hashes and position together or not at all (one SQLite transaction), so an index is always
 * that of a commit. It may be older than the journal after a crash; replaying the journal's epochs above `sequence`
 * brings it up to date, any number of times.
 */
import type { DatabaseSync } from 'node:sqlite';
import type { Data, Node, Nodes } from '../../proto/wire.ts';
import type { CommitRecord } from './frame.ts';

export interface VolumeIndex {
  readonly database: DatabaseSync;
  /** Of the newest commit in it; 0 = blank. */
  readonly sequence: number;
  readonly sizeBytes: number;
  readonly sourceId: string;
  /** The commit it stands at; undefined = blank. */
  readonly newest: CommitRecord | undefined;
  /** BLAKE3-128 over everything the volume is. */
  readonly digest: Buffer;
  /** Granules (Block) or nodes (Filesystem) whose bytes were found damaged: they match no offer until sent again. */
  readonly unknown: number;
  /** Bit i set: `first + i` of the object is lacking or different, the open epoch taken into account. */
  want(object: number, first: number, hashes: Buffer): Buffer;
  /** Notes content of the open epoch; its payload is not looked at. */
  stageData(data: Data): void;
  stageNodes(nodes: Nodes): void;
  /**
   * Digest that the volume will have when the open epoch closes. @throws ContentMismatch when a file staged in it does
   * not add up to its node
   */
  stagedDigest(sizeBytes: number): Buffer;
  /** Pages of 4 KiB that the open epoch holds in memory. */
  readonly stagedPages: number;
  /** What `unknown` will be when the open epoch closes. A recovery point needs 0. */
  stagedUnknown(sizeBytes: number): number;
  /** Closes the open epoch. */
  commit(commit: CommitRecord): void;
  /** Forgets the open epoch. */
  discard(): void;
  /** All nodes by slot (Filesystem; none for Block). */
  manifest(): Iterable<Node>;
  /** Its file holds something else than was stored: it is to be opened again, or made anew. */
  readonly damaged: boolean;
  /** What of it does not add up, where that cannot be seen in passing (Filesystem). Outside any epoch. */
  unsound(): Iterable<{ object: number; granule: number }>;
  /** At once, outside any epoch. */
  markUnknown(object: number, granule: number): void;
  close(): void;
}
