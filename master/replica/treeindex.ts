/**
 * Index of a tree volume: the state of every node by slot, who has which name, and the hashes of the content of every file.
 * The digest is over one hash per slot (nodeHash, zero for a slot that is gone), and those cover the content by its root.
 * The rules of an epoch are in proto/node.ts.
 *
 * Guarantees: an epoch is staged inside an open SQLite transaction and in temporary tables, so memory stays bounded however
 * large it is, and `discard` leaves no trace. The digest depends on the state alone, not on how it came about.
 * A slot is unknown (its hash matches no offer) while its node or content was found damaged, or while its content is ahead
 * of its node because a progress commit came between them.
 *
 * For a base it also keeps the work: what the commit changes, so that the tree can be brought there after a crash
 * (treebase.ts).
 */
import type { DatabaseSync } from 'node:sqlite';
import assert from 'node:assert/strict';
import { ReplicationError } from '../../proto/errors.ts';
import { granuleCount, hashBytes, isZeroHash, unknownHash, zeroHash } from '../../proto/granule.ts';
import { checkedNode, compareNames, maxFileBytes, maxSlots, nodeHash } from '../../proto/node.ts';
import { rollBack, transaction } from '../../proto/sqlite.ts';
import { encode, nodeTypes, type Data, type Name, type Node, type Nodes } from '../../proto/wire.ts';
import type { CommitRecord } from './frame.ts';
import { asBuffer, HashPages, pageHashes } from './hashpages.ts';
import { openIndexDatabase, readPosition, writePosition } from './indexdatabase.ts';
import { Rows } from './rows.ts';
import { TreeContent } from './treecontent.ts';
import { toNode, TreeLog } from './treelog.ts';
import { unknowns, UnknownSlots } from './unknownslots.ts';
import type { VolumeIndex } from './volumeindex.ts';

const isDirectory = (node: Node | undefined): boolean => node?.type === nodeTypes.directory;
const isFile = (node: Node | undefined): boolean => node?.type === nodeTypes.file;

/** Staged pages of node hashes in memory: 4 MiB. */
const maxStagedPages = 1024;
/** Staged nodes in memory while an epoch ends: some 10 MiB. */
const maxStagedNodes = 10_000;
const batchRows = 1000;

const tables = `
  CREATE TABLE IF NOT EXISTS node (slot INTEGER PRIMARY KEY, state BLOB NOT NULL, size INTEGER NOT NULL) STRICT;
  CREATE TABLE IF NOT EXISTS name (parent INTEGER NOT NULL, name BLOB NOT NULL, slot INTEGER NOT NULL,
    PRIMARY KEY (parent, name)) STRICT, WITHOUT ROWID;
  CREATE TEMP TABLE staged (slot INTEGER PRIMARY KEY, state BLOB NOT NULL, hash BLOB NOT NULL) STRICT;
  CREATE TEMP TABLE touched (slot INTEGER PRIMARY KEY) STRICT;
  CREATE TEMP TABLE lost (slot INTEGER PRIMARY KEY) STRICT;
`;

const changedSlots = `
  SELECT slot, MAX(staged) AS staged, MAX(touched) AS touched, MAX(lost) AS lost FROM (
    SELECT slot, 1 AS staged, 0 AS touched, 0 AS lost FROM staged
    UNION ALL SELECT slot, 0, 1, 0 FROM touched UNION ALL SELECT slot, 0, 0, 1 FROM lost)
  GROUP BY slot ORDER BY slot`;

export class TreeIndex implements VolumeIndex {
  readonly database: DatabaseSync;
  readonly content: TreeContent;
  readonly #keepsWork: boolean;
  readonly #nodesAlone: boolean;
  readonly #hashes: HashPages;
  readonly #rows: Rows;
  readonly #unknown: UnknownSlots;
  /** For a base: what commits change on the tree. */
  readonly work: TreeLog;
  /** An epoch is open: the transaction runs. */
  #open = false;
  /** Something was staged since the last end of an epoch. */
  #pending = false;
  /** Why the open epoch cannot be closed. */
  #refused: unknown;
  /** Marked while an epoch was open; again after a discard. */
  #marks: [number, number][] = [];
  newest: CommitRecord | undefined;
  unknown: number;

  /**
   * @param path of a file, made when absent
   * @param options.keepsWork for a base: commits are durable at once and leave their work to `changes`
   * @param options.nodesAlone no content comes with the nodes, and they are believed
   */
  constructor(path: string, options: { keepsWork?: boolean; nodesAlone?: boolean } = {}) {
    this.#keepsWork = options.keepsWork ?? false;
    this.#nodesAlone = options.nodesAlone ?? false;
    this.database = openIndexDatabase(path);
    this.database.exec(tables);
    // The tree is changed after the index has said how: that must not be taken back by a power cut.
    if (this.#keepsWork) this.database.exec('PRAGMA synchronous = FULL');
    this.#rows = new Rows(this.database);
    this.#unknown = new UnknownSlots(this.database, this.#rows);
    this.work = new TreeLog(this.database, this.#rows, (slot) => this.node(slot));
    this.content = new TreeContent(this.database);
    this.newest = readPosition(this.database);
    this.#hashes = new HashPages(this.database, this.sizeBytes);
    this.unknown = this.#unknown.count;
  }

  get sequence(): number {
    return this.newest?.sequence ?? 0;
  }

  /** Slots in use, the highest + 1. */
  get sizeBytes(): number {
    return this.newest?.sizeBytes ?? 0;
  }

  get sourceId(): string {
    return this.newest?.sourceId ?? '';
  }

  get digest(): Buffer {
    return this.#hashes.digest(this.sizeBytes);
  }

  get damaged(): boolean {
    return this.#hashes.damaged;
  }

  /** It is what its hash was made of, and its names lead to it. */
  isSound(node: Node): boolean {
    if (this.isUnknown(node.slot)) return true;
    if (!node.names.every(({ parent, name }) => this.slotOf(parent, name) === node.slot)) return false;
    return nodeHash(node).equals(this.#hashes.hashes(node.slot, 1));
  }

  /** It is in its slot, and all of it is known. */
  isSame(node: Node): boolean {
    return !this.isUnknown(node.slot) && nodeHash(node).equals(this.#hashes.hashes(node.slot, 1));
  }

  /** Slots that have a hash and no node. */
  *missing(): Generator<number> {
    for (let first = 0; first < this.sizeBytes; first += pageHashes) {
      const hashes = this.#hashes.hashes(first, Math.min(pageHashes, this.sizeBytes - first));
      for (let at = 0; at * hashBytes < hashes.length; at++)
        if (!isZeroHash(hashes, at) && !this.node(first + at)) yield first + at;
    }
  }

  *unsound(): Generator<{ object: number; granule: number }> {
    if (this.#pending) return;
    for (const node of this.nodes()) {
      const { slot, sizeBytes, contentRoot } = node;
      if (!this.isSound(node)) yield { object: 0, granule: slot };
      if (!isFile(node) || this.isUnknown(slot)) continue;
      const count = granuleCount(sizeBytes);
      if (this.content.root(slot, count).root.equals(contentRoot)) continue;
      for (let granule = 0; granule < count; granule++) yield { object: slot, granule };
    }
  }

  /** Something was staged since the newest commit. */
  get isOpen(): boolean {
    return this.#open;
  }

  /** Something was staged since the newest end of an epoch. */
  get isPending(): boolean {
    return this.#pending;
  }

  /** Object 0: `hashes` are nodeHash of the slots from `first` on. Object n: the granules of the file in slot n. */
  want(object: number, first: number, hashes: Buffer): Buffer {
    if (object !== 0) return this.content.want(object, first, hashes);
    const bitmap = this.#hashes.want(first, hashes);
    if (!this.#pending) return bitmap;
    const rows = this.#rows.all(
      'SELECT slot, hash FROM staged WHERE slot >= ? AND slot < ?',
      first,
      first + hashes.length / hashBytes,
    );
    for (const row of rows) {
      const at = Number(row['slot']) - first;
      const same = asBuffer(row['hash']).equals(hashes.subarray(at * hashBytes, (at + 1) * hashBytes));
      const bit = 1 << (at & 7);
      bitmap[at >> 3] = same ? (bitmap[at >> 3] ?? 0) & ~bit : (bitmap[at >> 3] ?? 0) | bit;
    }
    return bitmap;
  }

  stageData(data: Data): void {
    for (const { object, first, count } of data.runs) {
      const isSlot = object >= 1 && object < maxSlots;
      if (isSlot && first + count <= granuleCount(maxFileBytes)) continue;
      throw new ReplicationError('BadMessage', `Run.object ${object}, Run.first ${first}: no file has that`);
    }
    this.#begin();
    let hashAt = 0;
    for (const { object, first, count, zero } of data.runs) {
      if (zero) this.content.zero(object, first, count);
      else this.content.put(object, first, data.hashes.subarray(hashAt, (hashAt += count * hashBytes)));
      this.#rows.run('INSERT OR IGNORE INTO touched (slot) VALUES (?)', object);
    }
  }

  stageNodes(nodes: Nodes): void {
    const canonical = nodes.nodes.map(checkedNode);
    this.#begin();
    for (const node of canonical) {
      this.#rows.run(
        'INSERT OR REPLACE INTO staged (slot, state, hash) VALUES (?, ?, ?)',
        node.slot,
        encode('Node', node),
        nodeHash(node),
      );
    }
  }

  stagedDigest(sizeBytes: number): Buffer {
    this.endEpoch();
    this.#checkSize(sizeBytes);
    return this.#hashes.stagedDigest(sizeBytes, sizeBytes);
  }

  get stagedPages(): number {
    return this.#hashes.stagedPages;
  }

  stagedUnknown(): number {
    this.endEpoch();
    return this.#unknown.count;
  }

  commit(commit: CommitRecord): void {
    this.endEpoch();
    this.#checkSize(commit.sizeBytes);
    if (!this.#open) this.#begin();
    const state = this.#hashes.write(commit.sizeBytes);
    this.work.commit(this.#keepsWork);
    writePosition(this.database, commit);
    this.database.exec('COMMIT');
    this.#hashes.settled(state);
    this.#closed();
    this.#marks = [];
    this.newest = commit;
    this.unknown = this.#unknown.count;
  }

  discard(): void {
    if (!this.#open) return;
    rollBack(this.database);
    this.#hashes.discard();
    this.#unknown.discard();
    this.#closed();
    const marks = this.#marks;
    this.#marks = [];
    for (const [object, granule] of marks) this.markUnknown(object, granule);
  }

  /** Object 0: the node in slot `granule`. Else that granule of a file's content. */
  markUnknown(object: number, granule: number): void {
    if (this.#open) this.#marks.push([object, granule]);
    const slot = object === 0 ? granule : object;
    const node = this.node(slot);
    if (!node) return;
    if (object !== 0) this.content.put(object, granule, unknownHash);
    this.#unknown.add(slot, object === 0 ? unknowns.node : unknowns.content);
    if (this.#open) this.#stageHash(slot, node);
    else this.#hashes.set(slot, unknownHash);
    if (!this.#open) this.unknown = this.#unknown.count;
  }

  /** All in one transaction. No epoch may be open. */
  markAllUnknown(marks: Iterable<{ object: number; granule: number }>): void {
    transaction(this.database, () => {
      for (const { object, granule } of marks) this.markUnknown(object, granule);
    });
  }

  /** A node that is not known has no modification time and a content root that nothing has. */
  *manifest(): Iterable<Node> {
    for (const node of this.nodes()) {
      if (this.isUnknown(node.slot) || !this.isSound(node)) {
        const contentRoot = isFile(node) ? unknownHash : node.contentRoot;
        yield { ...node, contentRoot, mtimeSeconds: 0, mtimeNanoseconds: 0 };
      } else {
        yield node;
      }
    }
  }

  /** All from a slot on, by slot, as the open epoch left them at its newest end. */
  *nodes(from = 0): Generator<Node> {
    for (const row of this.#rows.bySlot('SELECT slot, state FROM node WHERE slot > ? ORDER BY slot LIMIT ?', from)) {
      yield toNode(row['state']) as Node;
    }
  }

  node(slot: number): Node | undefined {
    return toNode(this.#rows.get('SELECT state FROM node WHERE slot = ?', slot)?.['state']);
  }

  isUnknown(slot: number): boolean {
    return this.#unknown.why(slot) !== 0;
  }

  /** Bytes of all files. */
  get contentBytes(): number {
    return Number(this.#rows.get('SELECT TOTAL(size) AS sum FROM node')?.['sum'] ?? 0);
  }

  /** Who has this name. */
  slotOf(parent: number, name: Buffer): number | undefined {
    const row = this.#rows.get('SELECT slot FROM name WHERE parent = ? AND name = ?', parent, name);
    return row && Number(row['slot']);
  }

  /** Entries of a directory, sorted bytewise. */
  *children(slot: number): Generator<{ name: Buffer; slot: number }> {
    for (let after: Buffer = Buffer.alloc(0); ;) {
      const rows = this.#rows.all(
        'SELECT name, slot FROM name WHERE parent = ? AND name > ? ORDER BY name LIMIT ?',
        slot,
        after,
        batchRows,
      );
      for (const row of rows) yield { name: asBuffer(row['name']), slot: Number(row['slot']) };
      const last = rows.at(-1);
      if (!last) return;
      after = asBuffer(last['name']);
    }
  }

  /** From the root, without a slash before it; by the first of its names. */
  path(slot: number): Buffer {
    const parts: Buffer[] = [];
    for (let at = slot; at !== 0;) {
      const name = this.node(at)?.names[0];
      if (!name) break;
      parts.unshift(name.name, Buffer.from('/'));
      at = name.parent;
    }
    return Buffer.concat(parts.slice(0, -1));
  }

  close(): void {
    this.database.close();
  }

  // ---- the end of an epoch

  /**
   * Ends the epoch without committing it: what is staged next belongs to the following one. No effect when nothing is staged.
   * After a refusal only `discard` helps. @throws ContentMismatch
   */
  endEpoch(): void {
    if (this.#refused !== undefined) throw this.#refused as Error;
    if (!this.#pending) return;
    try {
      this.#endEpoch();
    } catch (error) {
      this.#refused = error;
      throw error;
    }
    this.#pending = false;
  }

  #endEpoch(): void {
    this.database.exec('DELETE FROM lost; DELETE FROM ended');
    // Gone through three times: in memory as long as they are few.
    const few = this.#rows.count('staged') <= maxStagedNodes ? [...this.#readStaged()] : undefined;
    const staged = (): Iterable<Node> => few ?? this.#readStaged();
    const noDirectories: number[] = [];
    const sameContent = new Set<number>();
    for (const node of staged()) {
      const before = this.node(node.slot);
      if (before?.sizeBytes === node.sizeBytes && before.contentRoot.equals(node.contentRoot))
        sameContent.add(node.slot);
      this.work.note(node.slot, before, this.isUnknown(node.slot));
      for (const { parent, name } of before?.names ?? []) {
        this.#rows.run('DELETE FROM name WHERE parent = ? AND name = ?', parent, name);
      }
      this.#putNode(node.slot, node);
      if (isDirectory(before) && !isDirectory(node)) noDirectories.push(node.slot);
    }
    for (const node of staged()) {
      for (const name of node.names) {
        this.#takeName(name, noDirectories);
        this.#rows.run('INSERT INTO name (parent, name, slot) VALUES (?, ?, ?)', name.parent, name.name, node.slot);
      }
    }
    for (let slot = noDirectories.pop(); slot !== undefined; slot = noDirectories.pop()) {
      for (const { name } of this.children(slot)) this.#takeName({ parent: slot, name }, noDirectories);
    }
    this.#checkParents(staged());
    for (const row of this.database.prepare(changedSlots).iterate()) {
      const [isStaged, wasTouched, wasLost] = [row['staged'] === 1, row['touched'] === 1, row['lost'] === 1];
      this.#endSlot(Number(row['slot']), { isStaged, wasTouched, wasLost }, sameContent);
    }
    this.database.exec('DELETE FROM staged; DELETE FROM touched');
  }

  /** Whoever has the name loses it; without names it is gone. */
  #takeName(name: Name, noDirectories: number[]): void {
    const slot = this.slotOf(name.parent, name.name);
    if (slot === undefined) return;
    if (this.#isStaged(slot)) {
      refuse(
        `slot ${slot} has the name ${show(name.name)} in slot ${name.parent}, which another one has or which is no directory`,
      );
    }
    this.#rows.run('DELETE FROM name WHERE parent = ? AND name = ?', name.parent, name.name);
    const node = this.node(slot);
    assert(node, 'a name leads to a node');
    this.work.note(slot, node, this.isUnknown(slot));
    this.#rows.run('INSERT OR IGNORE INTO lost (slot) VALUES (?)', slot);
    const names = node.names.filter((other) => compareNames(other, name) !== 0);
    this.#putNode(slot, names.length > 0 ? { ...node, names } : undefined);
    if (names.length === 0 && isDirectory(node)) noDirectories.push(slot);
  }

  /** Every staged node lies in a directory that leads to the root. */
  #checkParents(staged: Iterable<Node>): void {
    const good = new Set([0]);
    const hasRoot = isDirectory(this.node(0));
    for (const node of staged) {
      if (node.names.length > 0 && !hasRoot) refuse('there is no root directory, slot 0');
      for (const { parent } of node.names) {
        const climbed = new Set<number>([node.slot]);
        for (let at = parent; !good.has(at);) {
          if (climbed.has(at)) refuse(`slot ${node.slot} would lie inside itself`);
          climbed.add(at);
          const directory = this.node(at);
          const up = directory?.names[0];
          if (!isDirectory(directory) || !up) refuse(`the parent of slot ${node.slot}, slot ${at}, is no directory`);
          at = up.parent;
        }
        climbed.delete(node.slot);
        for (const slot of climbed) good.add(slot);
      }
    }
  }

  /** Content and hash of a slot that the epoch changed. */
  #endSlot(
    slot: number,
    { isStaged, wasTouched, wasLost }: { isStaged: boolean; wasTouched: boolean; wasLost: boolean },
    sameContent: Set<number>,
  ): void {
    const node = this.node(slot);
    if (!isStaged && !wasLost) this.work.note(slot, node, this.isUnknown(slot));
    if (isStaged) this.#unknown.remove(slot, unknowns.node);
    if (node && isFile(node)) {
      const settled = sameContent.has(slot) && !wasTouched && !this.isUnknown(slot);
      if ((isStaged || wasTouched) && !settled) this.#checkContent(node, isStaged);
    } else if (wasTouched && !isStaged && !wasLost) {
      // Content that a progress commit saves before its node has come.
      this.#unknown.add(slot, unknowns.content);
    } else {
      // What lost its last name to another took its content along, also what the epoch had just put into it.
      this.content.remove(slot);
      this.#unknown.remove(slot, unknowns.content);
    }
    if (!node) this.#unknown.remove(slot, unknowns.node);
    // Content without its node may be longer than that says; when it is back to what its node says, so is its length.
    const isBack = wasTouched && isFile(node) && !this.isUnknown(slot);
    if (isStaged || (wasLost && !node) || isBack) this.work.end(slot, node);
    this.#stageHash(slot, node);
  }

  #checkContent(node: Node, isStaged: boolean): void {
    if (this.#nodesAlone) return;
    const { slot, sizeBytes } = node;
    // A progress commit saves how a file grows before the node that says so has come.
    if (!isStaged && this.content.reachesBeyond(slot, granuleCount(sizeBytes))) {
      return this.#unknown.add(slot, unknowns.content);
    }
    this.content.end(slot, granuleCount(sizeBytes));
    const { root, unknown } = this.content.root(slot, granuleCount(sizeBytes));
    if (root.equals(node.contentRoot)) return this.#unknown.remove(slot, unknowns.content);
    // What rotted in the journal is not the sender's fault: unknown until it is sent again.
    if (isStaged && unknown === 0) {
      refuse(`the content of slot ${slot}, ${show(this.path(slot))}, does not add up to its node`);
    }
    this.#unknown.add(slot, unknowns.content);
  }

  #stageHash(slot: number, node: Node | undefined): void {
    const known = node ? nodeHash(node) : zeroHash;
    this.#hashes.stage(slot, node && this.isUnknown(slot) ? unknownHash : known);
    if (this.#hashes.stagedPages > maxStagedPages) this.#hashes.spill();
  }

  #checkSize(sizeBytes: number): void {
    const highest = this.#rows.get('SELECT MAX(slot) AS slot FROM node')?.['slot'];
    if (sizeBytes > maxSlots) refuse(`Commit.size_bytes says ${sizeBytes} slots, more than ${maxSlots}`);
    if (typeof highest === 'number' && highest >= sizeBytes) {
      refuse(`Commit.size_bytes says ${sizeBytes} slots, but slot ${highest} is in use`);
    }
  }

  /** Content was staged for the slot in which there is no file (yet). */
  hasLooseContent(slot: number): boolean {
    return this.#unknown.why(slot) !== 0 && !isFile(this.node(slot));
  }

  /** As the newest commit left it, whatever the epochs after it say. */
  committedNode(slot: number): Node | undefined {
    const noted = this.work.noted(slot);
    return noted ? noted.before : this.node(slot);
  }

  /** It was unknown at the newest commit, or is. */
  wasDamaged(slot: number): boolean {
    return this.work.noted(slot)?.damaged === true || this.isUnknown(slot);
  }

  // ---- rows

  #begin(): void {
    if (this.#refused !== undefined) throw this.#refused as Error;
    if (!this.#open) this.database.exec('BEGIN IMMEDIATE');
    this.#open = true;
    this.#pending = true;
  }

  #closed(): void {
    this.#open = false;
    this.#pending = false;
    this.#refused = undefined;
  }

  *#readStaged(): Generator<Node> {
    for (const row of this.database.prepare('SELECT state FROM staged ORDER BY slot').iterate()) {
      yield toNode(row['state']) as Node;
    }
  }

  #isStaged(slot: number): boolean {
    return this.#rows.get('SELECT 1 FROM staged WHERE slot = ?', slot) !== undefined;
  }

  #putNode(slot: number, node: Node | undefined): void {
    if (!node || node.type === nodeTypes.gone) this.#rows.run('DELETE FROM node WHERE slot = ?', slot);
    else
      this.#rows.run(
        'INSERT OR REPLACE INTO node (slot, state, size) VALUES (?, ?, ?)',
        slot,
        encode('Node', node),
        node.sizeBytes,
      );
  }
}

function refuse(message: string): never {
  throw new ReplicationError('ContentMismatch', message);
}

function show(name: Buffer): string {
  return JSON.stringify(name.toString());
}
