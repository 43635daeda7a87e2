/**
 * What the agent knows of a file volume and of what its replica holds: one row per file, directory or link, in SQLite.
 *
 * A row carries the inode's key (number, time of birth, type: a number that is used again is another key), its slot, the
 * stat fields by which a change is seen (every change of content or metadata moves the ctime), names, hashes of what was
 * sent last, the commit that carries it (`epoch`), and whether it must be read and sent (`dirty`).
 *
 * Guarantees
 *   - Whatever moment a crash picks: each row is what commit `epoch` told the replica, or it is dirty, or its epoch is
 *     newer than the replica's head and `settle` makes it dirty. Sent again perhaps, never forgotten.
 *   - A slot stands for one thing: tombstones stay until the commit that carries them is acknowledged, and only then is the
 *     slot used again. When the replica is not where the manifest says, the manifest is made anew from the replica's.
 *   - Dirty rows are all that the replica lacks: with all of them sent, it has the tree that the rows describe.
 * Memory does not grow with the number of files. A damaged manifest may be deleted: the next session makes it anew.
 * One process at a time (exclusive lock); not for the replica's side.
 */
import assert from 'node:assert/strict';
import { mkdirSync, rmSync } from 'node:fs';
import { nodeHash } from '../proto/node.ts';
import { isSqliteDamage } from '../proto/sqlite.ts';
import { nodeTypes, type Name, type Node } from '../proto/wire.ts';
import { bufferOf, columns, ManifestDatabase, rowOf, signed } from './manifestdatabase.ts';

export interface Key {
  ino: bigint;
  birthNs: bigint;
  type: number;
}

export interface Signature {
  sizeBytes: bigint;
  mtimeNs: bigint;
  /** -1: unknown, matches nothing. */
  ctimeNs: bigint;
}

export interface Row extends Key, Signature {
  slot: number;
  epoch: number;
  /** 1: must be read. 2: its names changed too, or what the replica has of it is not known. */
  dirty: 0 | 1 | 2;
  /**
   * Content root, size and hash of the node as sent last: what the replica has, or will with the open epoch. Undefined =
   * never sent, or not known.
   */
  root: Buffer | undefined;
  sentBytes: number;
  hash: Buffer | undefined;
}

/** The key of a slot that came from the replica and was not yet seen in the source. */
const adoptedIno = 0n;
/** moved: its names changed or the replica's state is not known; renamed: the first of these; new: never sent. */
const dirtyKinds = {
  moved: 'dirty = 2',
  renamed: 'dirty = 2 AND hash IS NOT NULL',
  new: 'dirty = 1 AND hash IS NULL',
  all: 'dirty > 0',
};
/** A slot that was never sent has no place to move from. */
const moved = 'CASE WHEN hash IS NULL AND dirty = 1 THEN 1 ELSE 2 END';

export class Manifest {
  readonly #rows: ManifestDatabase;
  /** Newest commit that is known to be durable at the replica. */
  #acked: number;
  /** Newest commit that this manifest was made durable for: it may have gone out, under the generation `#preparedBy`. */
  #prepared: number;
  #preparedBy: string;
  #digest: Buffer;
  #dirtyBytes: number | undefined;
  /** No row has a newer epoch. */
  #newestEpoch: number;
  /** Slots sent in the open epoch whose names have changed since, and directories that moved on before they could be sent. */
  readonly #unsettled = new Set<number>();

  constructor(folder: string) {
    mkdirSync(folder, { recursive: true });
    this.#rows = new ManifestDatabase(`${folder}/manifest.db`);
    const state = this.#rows.get('SELECT acked, prepared, digest FROM state') ?? {};
    this.#acked = Number(state['acked']);
    this.#prepared = Number(state['prepared']);
    this.#digest = bufferOf(state['digest']) ?? Buffer.alloc(0);
    this.#preparedBy = String(this.#rows.get('SELECT generation FROM preparation')?.['generation']);
    // Once for all: a look at each row for each cut would cost more than the cut.
    this.#newestEpoch = Number(this.#rows.get('SELECT max(epoch) AS newest FROM inode')?.['newest'] ?? 0);
  }

  // ---- sessions and commits

  get acked(): number {
    return this.#acked;
  }

  /** Why everything must be compared with the replica; empty = no need. Survives until it is cleared. */
  get wholeReason(): string {
    return String(this.#rows.get('SELECT whole FROM state')?.['whole']);
  }

  set wholeReason(reason: string) {
    this.#rows.run('UPDATE state SET whole = ?', reason);
  }

  /**
   * Takes the replica's head, under this fencing generation. True when this manifest describes it; rows that were not committed
   * are dirty then. False: nothing here may be believed.
   */
  settle(headSequence: number, digest: Buffer, generation: string): boolean {
    // Ours though its answer was lost, as one generation has one writer. Under another one somebody else may have made it.
    const isPrepared = headSequence === this.#prepared && generation === this.#preparedBy && headSequence > this.#acked;
    const fits = headSequence === this.#acked ? digest.equals(this.#digest) : isPrepared;
    if (headSequence === 0 || !fits) return false;
    this.#setHead(headSequence, digest);
    this.unsend();
    this.#bury(headSequence);
    return true;
  }

  /** Empties it: the replica is at `wholeReason`'s mercy until `adopted`. */
  clear(): void {
    this.#rows.begin();
    for (const table of ['inode', 'name', 'orphan', 'free']) this.#rows.run(`DELETE FROM ${table}`);
    this.#rows.run(
      `UPDATE state SET acked = -1, prepared = -1, digest = x'', whole = 'the manifest is being made anew'`,
    );
    [this.#acked, this.#prepared, this.#digest] = [-1, -1, Buffer.alloc(0)];
    [this.#dirtyBytes, this.#newestEpoch] = [undefined, 0];
    this.#rows.commit();
  }

  /** A node that the replica has; found again in the source by its path. */
  adopt(node: Node): void {
    if (node.type === nodeTypes.gone) return;
    const { slot, type } = node;
    this.#rows.run(
      'INSERT INTO inode VALUES (?, ?, ?, 0, ?, 0, -1, 0, 1, ?, ?, ?)',
      slot,
      type,
      adoptedIno,
      node.sizeBytes,
      type === nodeTypes.file ? node.contentRoot : null,
      node.sizeBytes,
      nodeHash(node),
    );
    for (const { parent, name } of node.names)
      this.#rows.run('INSERT OR REPLACE INTO name VALUES (?, ?, ?)', parent, name, slot);
    if (slot > 0 && node.names.length === 0) this.#orphan(slot);
  }

  /** All of the replica's nodes at this head are adopted. */
  adopted(headSequence: number, digest: Buffer, wholeReason: string): void {
    let expected = 0;
    for (const { slot } of this.#rows.each('SELECT slot FROM inode ORDER BY slot')) {
      for (; expected < Number(slot); expected++) this.#rows.run('INSERT INTO free VALUES (?)', expected);
      expected++;
    }
    // A name in no directory (a damaged replica) belongs to nobody.
    const stray = 'parent NOT IN (SELECT slot FROM inode WHERE type = 4)';
    for (const { slot } of this.#rows.each(`SELECT slot FROM name WHERE ${stray}`)) this.#orphan(Number(slot));
    this.#rows.run(`DELETE FROM name WHERE ${stray}`);
    this.#rows.run('DELETE FROM free WHERE slot = 0');
    this.#setHead(headSequence, digest);
    this.wholeReason = wholeReason;
    this.#rows.commit();
  }

  /** All rows as they stand are durable when this returns: Commit `sequence` may go out under this fencing generation. */
  prepare(sequence: number, generation: string): void {
    assert.equal(sequence, this.#acked + 1, 'commits follow one another');
    this.#rows.run('UPDATE state SET prepared = ?', sequence);
    this.#rows.run('UPDATE preparation SET generation = ?', generation);
    [this.#prepared, this.#preparedBy] = [sequence, generation];
    this.#rows.commit();
  }

  /** @param digest as the replica answered: the head is known again by it */
  committed(sequence: number, digest: Buffer): void {
    assert(sequence === this.#prepared, 'only what was prepared is committed');
    this.#setHead(sequence, digest);
    this.#bury(sequence);
    this.#rows.commit();
  }

  #setHead(sequence: number, digest: Buffer): void {
    this.#unsettled.clear();
    this.#rows.run('UPDATE state SET acked = ?, prepared = ?, digest = ?', sequence, sequence, digest);
    [this.#acked, this.#prepared, this.#digest] = [sequence, sequence, digest];
  }

  #bury(sequence: number): void {
    const gone = 'FROM inode WHERE type = 0 AND dirty = 0 AND epoch <= ?';
    this.#rows.run(`INSERT OR IGNORE INTO free SELECT slot ${gone}`, sequence);
    this.#rows.run(`DELETE ${gone}`, sequence);
  }

  // ---- what the scan asks and finds

  child(parent: number, name: Buffer): Row | undefined {
    const sql = `SELECT ${columns} FROM name n JOIN inode i ON i.slot = n.slot WHERE n.parent = ? AND n.name = ?`;
    return rowOf(this.#rows.get(sql, parent, name));
  }

  row(slot: number): Row | undefined {
    return rowOf(this.#rows.get(`SELECT ${columns} FROM inode i WHERE slot = ?`, slot));
  }

  slotOf(key: Key): number | undefined {
    const sql = 'SELECT slot FROM inode WHERE ino = ? AND birth = ? AND type = ?';
    const slot = this.#rows.get(sql, signed(key.ino), signed(key.birthNs), key.type)?.['slot'];
    return slot === undefined ? undefined : Number(slot);
  }

  isAdopted(row: Row): boolean {
    return row.ino === adoptedIno && row.birthNs === 0n;
  }

  /** A new slot for an inode that was not seen before, or the given one. Dirty. */
  insert(key: Key, sizeBytes: bigint, slot = this.#freeSlot()): number {
    this.#rows.run(
      'INSERT INTO inode VALUES (?, ?, ?, ?, ?, 0, -1, ?, 1, NULL, 0, NULL)',
      slot,
      key.type,
      signed(key.ino),
      signed(key.birthNs),
      sizeBytes,
      this.#openEpoch(),
    );
    if (this.#dirtyBytes !== undefined) this.#dirtyBytes += Number(sizeBytes);
    return slot;
  }

  /** A row has it from now on. */
  #openEpoch(): number {
    return (this.#newestEpoch = this.#acked + 1);
  }

  #freeSlot(): number {
    const freed = this.#rows.get('SELECT min(slot) AS slot FROM free')?.['slot'];
    if (typeof freed === 'bigint') {
      this.#rows.run('DELETE FROM free WHERE slot = ?', freed);
      return Number(freed);
    }
    return Number(this.#rows.get('SELECT coalesce(max(slot), 0) + 1 AS slot FROM inode')?.['slot']);
  }

  /** An adopted slot was found in the source. Dirty. */
  claim(slot: number, key: Key): void {
    const sql = 'UPDATE inode SET ino = ?, birth = ?, dirty = max(dirty, 1) WHERE slot = ?';
    this.#rows.run(sql, signed(key.ino), signed(key.birthNs), slot);
  }

  /** With the new size when the inode changed, without when its names did. */
  markDirty(slot: number, sizeBytes?: bigint): void {
    if (this.#dirtyBytes !== undefined) this.#dirtyBytes = undefined;
    if (sizeBytes === undefined) {
      if (this.#isSent(slot)) this.#unsettled.add(slot);
      this.#rows.run(`UPDATE inode SET dirty = ${moved} WHERE slot = ?`, slot);
    } else
      this.#rows.run('UPDATE inode SET dirty = max(dirty, 1), size = ?, ctime = -1 WHERE slot = ?', sizeBytes, slot);
  }

  /** In the open epoch, perhaps in vain. */
  #isSent(slot: number): boolean {
    return (
      this.#rows.get(
        'SELECT 1 FROM inode WHERE slot = ? AND epoch > ? AND (hash IS NOT NULL OR dirty = 2)',
        slot,
        this.#acked,
      ) !== undefined
    );
  }

  /** No commit until its node was sent, or that it is gone. */
  unsettle(slot: number): void {
    this.#unsettled.add(slot);
  }

  /**
   * What was sent in the open epoch by a name that something else may have by now was not sent again yet: no commit may
   * come between, for in one commit a name stands for one thing.
   */
  get isUnsettled(): boolean {
    return this.#unsettled.size > 0;
  }

  markAllDirty(): void {
    this.#rows.run('UPDATE inode SET dirty = max(dirty, 1)');
    this.#dirtyBytes = undefined;
  }

  /** No times of before count, so that a scan finds all changed; `byPath`: no inode numbers either, as if all were adopted. */
  doubtAll(byPath: boolean): void {
    this.#rows.run('UPDATE inode SET ctime = -1 WHERE ctime <> -1');
    if (byPath)
      this.#rows.run('UPDATE inode SET ino = ?, birth = 0, dirty = max(dirty, 1) WHERE type <> 0', adoptedIno);
    this.#dirtyBytes = undefined;
  }

  /** What went out since the newest commit did not all arrive: it goes out again. */
  unsend(): void {
    if (this.#newestEpoch <= this.#acked) return;
    this.#rows.run('UPDATE inode SET dirty = 2, root = NULL, hash = NULL WHERE epoch > ?', this.#acked);
    this.#dirtyBytes = undefined;
  }

  /** The name stands for this slot now, and no longer for the one it had. `alone`: the slot keeps no other name. */
  setName(parent: number, name: Buffer, slot: number, alone: boolean): void {
    const before = this.#rows.get('SELECT slot FROM name WHERE parent = ? AND name = ?', parent, name);
    if (before) this.#lose(Number(before['slot']));
    if (alone) this.#rows.run('DELETE FROM name WHERE slot = ?', slot);
    this.#rows.run('INSERT OR REPLACE INTO name VALUES (?, ?, ?)', parent, name, slot);
    this.markDirty(slot);
  }

  /** False when it was not known. */
  removeName(parent: number, name: Buffer): boolean {
    const before = this.#rows.get('SELECT slot FROM name WHERE parent = ? AND name = ?', parent, name);
    if (!before) return false;
    this.#rows.run('DELETE FROM name WHERE parent = ? AND name = ?', parent, name);
    this.#lose(Number(before['slot']));
    return true;
  }

  #lose(slot: number): void {
    this.markDirty(slot);
    this.#orphan(slot);
  }

  #orphan(slot: number): void {
    this.#rows.run('INSERT OR IGNORE INTO orphan VALUES (?)', slot);
  }

  /** It has lost its last name and was not found under another one yet. */
  isOrphan(slot: number): boolean {
    return (
      this.#rows.get('SELECT 1 FROM orphan WHERE slot = ?', slot) !== undefined &&
      this.#rows.get('SELECT 1 FROM name WHERE slot = ?', slot) === undefined
    );
  }

  get hasOrphans(): boolean {
    const nameless = 'NOT EXISTS (SELECT 1 FROM name WHERE name.slot = orphan.slot)';
    return this.#rows.get(`SELECT 1 FROM orphan WHERE ${nameless} LIMIT 1`) !== undefined;
  }

  /** What has no name left is gone, with all below it. Only after a look at every place where it might have moved to. */
  buryOrphans(): number {
    let gone = 0;
    for (;;) {
      const first = this.#rows.get('SELECT slot FROM orphan LIMIT 1')?.['slot'];
      if (first === undefined || first === null) return gone;
      const slot = Number(first);
      this.#rows.run('DELETE FROM orphan WHERE slot = ?', slot);
      // It may have lost a name with the directory alone, and the replica must not hear of that without it.
      if (this.#isSent(slot)) this.#unsettled.add(slot);
      if (this.#rows.get('SELECT 1 FROM name WHERE slot = ?', slot) !== undefined) continue;
      this.#rows.run('INSERT OR IGNORE INTO orphan SELECT slot FROM name WHERE parent = ?', slot);
      this.#rows.run(`UPDATE inode SET dirty = ${moved} WHERE slot IN (SELECT slot FROM name WHERE parent = ?)`, slot);
      this.#rows.run('DELETE FROM name WHERE parent = ?', slot);
      this.#rows.run(
        'UPDATE inode SET type = 0, ino = 0, birth = -1, size = 0, ctime = -1, dirty = 1, root = NULL, hash = NULL WHERE slot = ?',
        slot,
      );
      this.#dirtyBytes = undefined;
      gone++;
    }
  }

  childCount(parent: number): number {
    return Number(this.#rows.get('SELECT count(*) AS count FROM name WHERE parent = ?', parent)?.['count']);
  }

  /** In bytewise order, after `after`. */
  children(parent: number, after: Buffer, limit: number): { name: Buffer; slot: number; isDirectory: boolean }[] {
    const sql = `SELECT n.name, n.slot, i.type FROM name n JOIN inode i ON i.slot = n.slot
      WHERE n.parent = ? AND n.name > ? ORDER BY n.name LIMIT ?`;
    return this.#rows.all(sql, parent, after, limit).map(({ name, slot, type }) => ({
      name: bufferOf(name) ?? Buffer.alloc(0),
      slot: Number(slot),
      isDirectory: Number(type) === nodeTypes.directory,
    }));
  }

  names(slot: number): Name[] {
    return this.#rows.all('SELECT parent, name FROM name WHERE slot = ? ORDER BY parent, name', slot).map((one) => ({
      parent: Number(one['parent']),
      name: bufferOf(one['name']) ?? Buffer.alloc(0),
    }));
  }

  /** Names from the root down, [] for the root itself; undefined when it hangs on nothing (gone, or moved meanwhile). */
  path(slot: number): Buffer[] | undefined {
    const path: Buffer[] = [];
    for (let at = slot, depth = 0; at !== 0; depth++) {
      const name = this.#rows.get('SELECT parent, name FROM name WHERE slot = ? LIMIT 1', at);
      if (!name || depth > 100_000) return undefined;
      path.push(bufferOf(name['name']) ?? Buffer.alloc(0));
      at = Number(name['parent']);
    }
    return path.reverse();
  }

  /** Is `slot` the directory `below` itself or above it? */
  isAbove(slot: number, below: number): boolean {
    for (let at = below, depth = 0; depth < 100_000; depth++) {
      if (at === slot) return true;
      const name = at === 0 ? undefined : this.#rows.get('SELECT parent FROM name WHERE slot = ? LIMIT 1', at);
      if (!name) return false;
      at = Number(name['parent']);
    }
    return true;
  }

  // ---- what is read and sent

  /** Dirty rows after a slot, in order. */
  dirty(after: number, limit: number): Row[] {
    const sql = `SELECT ${columns} FROM inode i INDEXED BY inode_dirty_slot
      WHERE dirty > 0 AND slot > ? ORDER BY slot LIMIT ?`;
    return this.#rows.all(sql, after, limit).map((one) => rowOf(one) as Row);
  }

  /** Dirty rows of one type and kind after a slot, in order. */
  dirtyOf(type: number, which: keyof typeof dirtyKinds, after: number, limit: number): Row[] {
    const sql = `SELECT ${columns} FROM inode i INDEXED BY inode_dirty
      WHERE dirty > 0 AND ${dirtyKinds[which]} AND type = ? AND slot > ? ORDER BY slot LIMIT ?`;
    return this.#rows.all(sql, type, after, limit).map((one) => rowOf(one) as Row);
  }

  get hasDirty(): boolean {
    return this.#rows.get('SELECT 1 FROM inode WHERE dirty > 0 LIMIT 1') !== undefined;
  }

  /** Size of the files that are to be read. */
  get dirtyBytes(): number {
    return (this.#dirtyBytes ??= Number(
      this.#rows.get('SELECT coalesce(sum(size), 0) AS bytes FROM inode INDEXED BY inode_dirty WHERE dirty > 0')?.[
        'bytes'
      ],
    ));
  }

  /** Size of all files. Looks at each row. */
  get totalBytes(): number {
    return Number(this.#rows.get('SELECT coalesce(sum(size), 0) AS bytes FROM inode WHERE type = 8')?.['bytes']);
  }

  /**
   * The row's inode was read. `sent`: its node goes out in the open epoch; else the replica has this very state.
   * `dirty`: what was read does not stand still and is read again.
   */
  written(
    row: Row,
    state: { signature: Signature; root: Buffer | undefined; hash: Buffer; sent: boolean; dirty: boolean },
  ): void {
    const { signature, root, hash, sent, dirty } = state;
    if (sent) this.#unsettled.delete(row.slot);
    this.#rows.run(
      'UPDATE inode SET size = ?, mtime = ?, ctime = ?, epoch = ?, dirty = ?, root = ?, sent = ?, hash = ? WHERE slot = ?',
      signature.sizeBytes,
      signed(signature.mtimeNs),
      signed(signature.ctimeNs),
      sent ? this.#openEpoch() : row.epoch,
      dirty ? 1 : 0,
      root ?? null,
      signature.sizeBytes,
      hash,
      row.slot,
    );
    if (this.#dirtyBytes !== undefined && !dirty) this.#dirtyBytes -= Number(row.sizeBytes);
  }

  /** Content of the row's file begins to go out: until its node follows, it is not known what the replica has there. */
  sending(row: Row): void {
    if (row.root) this.#rows.run('UPDATE inode SET root = NULL WHERE slot = ?', row.slot);
  }

  /** The row's node goes out with its new names and the content it had; the rest of it is still to be read. */
  renamed(slot: number, hash: Buffer): void {
    this.#unsettled.delete(slot);
    this.#rows.run('UPDATE inode SET epoch = ?, dirty = 1, hash = ? WHERE slot = ?', this.#openEpoch(), hash, slot);
  }

  /** Highest slot in use + 1; slots whose end was not sent yet are in use. */
  get slots(): number {
    const top = this.#rows.get('SELECT slot FROM inode WHERE type <> 0 OR dirty > 0 ORDER BY slot DESC LIMIT 1')?.[
      'slot'
    ];
    return top === undefined || top === null ? 0 : Number(top) + 1;
  }

  /** Sent and not yet acknowledged, or to be sent. */
  get isBehind(): boolean {
    return this.hasDirty || this.#newestEpoch > this.#acked;
  }

  /** Durable as it stands. */
  close(): void {
    this.#rows.commit();
    this.#rows.close();
  }
}

/** A file that is no database any more is deleted: the replica's manifest takes its place. */
export function openManifest(folder: string): Manifest {
  try {
    return new Manifest(folder);
  } catch (error) {
    if (!isSqliteDamage(error)) throw error;
    for (const suffix of ['', '-wal', '-shm']) rmSync(`${folder}/manifest.db${suffix}`, { force: true });
    return new Manifest(folder);
  }
}
