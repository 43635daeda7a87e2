/**
 * Opening a replica: base, journal and head brought together, whatever a crash or damage left.
 *
 * The journal decides what is committed. The head's index is a cache of base + journal: when it does not fit (it is ahead
 * of the journal, or does not end at the digest of the newest commit) it is copied from the base and the journal is
 * replayed. When even that does not fit the base, the head falls back to the base: older, but right, and the next session
 * offers everything (resync). Points are given up for proven damage only: whatever else goes wrong is thrown, and the
 * replica is opened again later with all that it has.
 */
import { mkdir, readdir, rm } from 'node:fs/promises';
import type { Disk } from '../../proto/effects.ts';
import { messageOf, ReplicationError } from '../../proto/errors.ts';
import { isOfStorage, isSqliteDamage } from '../../proto/sqlite.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import type { Base } from './base.ts';
import type { CommitRecord, JournalRecord } from './frame.ts';
import type { Point } from './horizon.ts';
import { copyIndex, removeIndex } from './indexdatabase.ts';
import { Journal } from './journal.ts';
import type { ReplicaNote } from './note.ts';
import { inside, openBase, openIndex, type Place } from './place.ts';
import { removeFolder } from './snapshotlock.ts';
import type { VolumeIndex } from './volumeindex.ts';

export interface Opened {
  head: VolumeIndex;
  base: Base;
  journal: Journal;
  points: Point[];
  snapshots: Map<string, KeptSnapshot>;
}

/** A snapshot on storage. It is opened when a copy is made of it, and never written. */
export interface KeptSnapshot {
  /** The commit that it holds; undefined: of a volume that had none. */
  readonly point: Point | undefined;
  /** Of the volume in it. */
  readonly sizeBytes: number;
}

export function headPathOf(place: Place): string {
  return `${place.indexFolder}/head.db`;
}

export async function openHead(
  disk: Disk,
  place: Place,
  mode: VolumeMode,
  segmentBytes: number,
  onDoubt: (why: string) => void,
): Promise<Opened> {
  await mkdir(place.indexFolder, { recursive: true });
  await removeLeftovers(place.indexFolder);
  const basePlace = inside(place, 'base');
  const journalFolder = `${place.folder}/journal`;
  await disk.mkdir(basePlace.folder);
  await disk.mkdir(journalFolder);
  await disk.mkdir(inside(place, 'snapshots').folder);
  await mkdir(basePlace.indexFolder, { recursive: true });
  // A descriptor that nobody closes ends the process when it is collected.
  await using undo = new AsyncDisposableStack();
  const base = await openBase(disk, basePlace, mode);
  undo.defer(() => base.close());
  // What is acknowledged later must not hang on names that a power cut takes back.
  if (mode === 'Block') await disk.syncDirectory(basePlace.folder);
  await disk.syncDirectory(place.folder);
  const snapshots = await readSnapshots(disk, place, mode, onDoubt);
  const headPath = headPathOf(place);

  let head = await openOrCopy(base, mode, headPath, onDoubt);
  let headOpen = true;
  undo.defer(() => {
    if (headOpen) head.close();
  });
  const copyHead = async (): Promise<void> => {
    head.close();
    headOpen = false;
    head = await copyOfBase(base, mode, headPath);
    headOpen = true;
  };
  let first = await replay(disk, journalFolder, segmentBytes, head, base);
  // Closing it twice does no harm.
  undo.defer(() => first.journal.close());
  if (first.wrong === undefined) return await finished(first, head);

  onDoubt(`the head's index was built anew from base and journal: ${first.wrong}`);
  await copyHead();
  await first.journal.close();
  first = await replay(disk, journalFolder, segmentBytes, head, base);
  if (first.wrong === undefined) return await finished(first, head);
  if (first.fault !== undefined && !isDamage(first.fault)) throw first.fault;

  onDoubt(`the journal does not fit the base and was dropped: ${first.wrong}. Everything since is offered again`);
  await copyHead();
  await first.journal.clear();
  undo.move();
  return { head, base, journal: first.journal, points: pointsOf(base, []), snapshots };

  async function finished({ journal, commits }: Replayed, head: VolumeIndex): Promise<Opened> {
    // A journal that rotted away below the base is of no use, and what comes next would not follow it.
    if ((journal.lastSequence ?? base.index.sequence) < base.index.sequence) await journal.clear();
    undo.move();
    return { head, base, journal, points: pointsOf(base, commits), snapshots };
  }
}

/** Indexes of copies that a crash cut off. */
async function removeLeftovers(indexFolder: string): Promise<void> {
  const names = (await readdir(indexFolder)).filter((name) => name.startsWith('copy-'));
  for (const name of names) await rm(`${indexFolder}/${name}`, { force: true });
}

/** The head's index; one that SQLite cannot read is a cache that is lost. */
async function openOrCopy(
  base: Base,
  mode: VolumeMode,
  headPath: string,
  onDoubt: (why: string) => void,
): Promise<VolumeIndex> {
  try {
    return openIndex(mode, headPath);
  } catch (error) {
    if (isOfStorage(error)) throw error;
    onDoubt(`the head's index cannot be read: ${messageOf(error)}`);
    return copyOfBase(base, mode, headPath);
  }
}

interface Replayed {
  journal: Journal;
  commits: CommitRecord[];
  /** Why head and journal do not fit; undefined = they do. */
  wrong: string | undefined;
  /** What was thrown, where that is why. */
  fault: Error | undefined;
}

/** Says something about what is stored, and will be so the next time. */
function isDamage(fault: unknown): boolean {
  return fault instanceof ReplicationError || isSqliteDamage(fault);
}

async function replay(
  disk: Disk,
  folder: string,
  segmentBytes: number,
  head: VolumeIndex,
  base: Base,
): Promise<Replayed> {
  const commits: CommitRecord[] = [];
  let wrong: string | undefined;
  let fault: Error | undefined;
  const journal = await Journal.open(disk, folder, segmentBytes, (records, commit) => {
    if (commit.sequence > base.index.sequence) commits.push(commit);
    if (wrong !== undefined || commit.sequence <= head.sequence) return;
    if (commit.sequence !== head.sequence + 1) {
      wrong = `commit ${commit.sequence} does not follow ${head.sequence}`;
      return;
    }
    try {
      replayEpoch(head, records, commit);
    } catch (error) {
      // A disk that is full or fails says nothing about the journal, and must not cost it.
      if (isOfStorage(error)) throw error;
      wrong = `commit ${commit.sequence} cannot be replayed: ${messageOf(error)}`;
      fault = error as Error;
    }
  });
  const last = journal.lastSequence ?? base.index.sequence;
  wrong ??= misfit(journal, head, base, Math.max(last, base.index.sequence));
  const newest = commits.at(-1);
  const expected = newest ?? head.newest;
  if (wrong === undefined && expected && head.unknown === 0 && !head.digest.equals(expected.digest)) {
    wrong = `its digest is not that of commit ${expected.sequence}`;
  }
  return { journal, commits, wrong, fault };
}

function replayEpoch(head: VolumeIndex, records: JournalRecord[], commit: CommitRecord): void {
  try {
    for (const record of records) {
      if ('data' in record) head.stageData(record.data);
      else if ('nodes' in record) head.stageNodes(record.nodes);
    }
    head.commit(commit);
  } catch (error) {
    head.discard();
    throw error;
  }
}

function misfit(journal: Journal, head: VolumeIndex, base: Base, last: number): string | undefined {
  if (head.sequence !== last) return `it stands at ${head.sequence}, the journal ends at ${last}`;
  const journalBase = journal.baseSequence;
  if (journalBase !== undefined && journalBase > base.index.sequence) {
    return `the base stands at ${base.index.sequence}, the journal begins after ${journalBase}`;
  }
  return undefined;
}

async function copyOfBase(base: Base, mode: VolumeMode, headPath: string): Promise<VolumeIndex> {
  await removeIndex(headPath);
  await copyIndex(base.index.database, base.indexPath, headPath);
  return openIndex(mode, headPath);
}

/** The base's own point, if it stands at one, and those of the journal. */
function pointsOf(base: Base, commits: CommitRecord[]): Point[] {
  const newest = base.index.newest;
  return [...(newest ? [newest] : []), ...commits].filter((commit) => commit.point);
}

async function readSnapshots(
  disk: Disk,
  place: Place,
  mode: VolumeMode,
  onDoubt: (why: string) => void,
): Promise<Map<string, KeptSnapshot>> {
  const snapshots = new Map<string, KeptSnapshot>();
  const folder = inside(place, 'snapshots');
  await mkdir(folder.indexFolder, { recursive: true });
  // What is there now is told to be there.
  await disk.syncDirectory(folder.folder);
  for (const name of await disk.list(folder.folder)) {
    const one = inside(folder, name);
    if (name.startsWith('.')) {
      await removeFolder(disk, one.folder);
      continue;
    }
    try {
      snapshots.set(name, await readSnapshot(disk, one, mode));
    } catch (error) {
      if (isOfStorage(error)) throw error;
      onDoubt(`snapshot ${name} cannot be opened: ${messageOf(error)}`);
    }
  }
  return snapshots;
}

export async function readSnapshot(disk: Disk, place: Place, mode: VolumeMode): Promise<KeptSnapshot> {
  const base = await openBase(disk, place, mode, 'read');
  try {
    return { point: base.index.newest, sizeBytes: base.index.sizeBytes };
  } finally {
    await base.close();
  }
}

/**
 * The note cannot be believed: nobody older than the newest commit may write, and the base may be on its way to any point,
 * which it ends by going to the newest one. The points before that are given up; the master says again who may write.
 */
export function renew(
  note: ReplicaNote,
  damage: string,
  { head, points }: Opened,
  onDoubt: (why: string) => void,
): void {
  onDoubt(`the note was made anew, points but the newest are given up: ${damage}`);
  note.generation = head.newest?.generation ?? '0';
  const newest = points.at(-1);
  if (newest) note.applying = newest.sequence;
  // Where a first copy has written is not known any more: an epoch that is beyond has the image read whole.
  else if (note.volumeMode === 'Block') note.placing = { epoch: head.sequence + 2, windows: [] };
}
