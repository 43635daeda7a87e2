/**
 * A replica on a real filesystem with what is known of it from outside: the content of each commit, so that whatever a fault
 * leaves can be told to be right, refused with a reason, or wrong. Both kinds of volume, the same work on each.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { removeTree } from '../../master/replica/treebase.ts';
import type { CommitRecord } from '../../master/replica/frame.ts';
import type { Point } from '../../master/replica/horizon.ts';
import { defaultLimits } from '../../master/replica/limits.ts';
import { Replica } from '../../master/replica/replica.ts';
import type { ReplicaSession } from '../../master/replica/writer.ts';
import { asReplicationError, ReplicationError, type ErrorCode } from '../../proto/errors.ts';
import { granuleBytes, granuleCount, granuleHash, granuleLength, hashBytes } from '../../proto/granule.ts';
import { goneNode, nodeHash } from '../../proto/node.ts';
import { systemClock, systemDisk, systemEffects } from '../../proto/system.ts';
import { nodeTypes, type Data, type Node, type VolumeMode } from '../../proto/wire.ts';
import { commitOf, dataOf as granuleData } from '../unit/master/replica/blockreplica.ts';
import { dataOf as fileData, randomOf, TreeModel } from '../unit/master/replica/treemodel.ts';
import { expected, walk } from '../unit/master/replica/treestate.ts';

export const none = new AbortController().signal;
/** What a fault may lead to instead of the right answer. */
export const refusals: ErrorCode[] = ['ReplicaDamaged', 'PointGone', 'TargetFailed', 'HashMismatch', 'ContentMismatch'];

/** The source at one commit. */
interface Moment {
  sizeBytes: number;
  /** Every granule (Block) by number, or every slot. */
  values: Record<number, number>;
  nodes: Map<number, Node>;
  content: Map<number, Buffer>;
  state: Buffer | Map<string, unknown>;
}

export interface Epoch {
  data: Data[];
  nodes: Node[];
}

/** The source. What it was is known by the digest of each commit. */
export class Source {
  readonly mode: VolumeMode;
  readonly #random: (below: number) => number;
  readonly #model: TreeModel;
  #values: Record<number, number> = {};
  #sent: Record<number, number> = {};
  #sizeBytes = 12 * granuleBytes + 1000;
  /** By sequence and digest. */
  readonly #moments = new Map<string, { moment: Moment; commit: CommitRecord }>();

  constructor(mode: VolumeMode, seed: number) {
    this.mode = mode;
    this.#random = randomOf(seed);
    this.#model = new TreeModel(this.#random, process.geteuid?.() === 0);
  }

  /** Something is written to it; answers what an agent would send. */
  change(steps = 8): Epoch {
    if (this.mode === 'Filesystem') {
      for (let at = 0; at < steps; at++) this.#model.step();
      return this.#model.epoch();
    }
    if (this.#random(6) === 0) this.#sizeBytes = (8 + this.#random(8)) * granuleBytes + this.#random(3) * 777;
    for (let at = 0; at < steps; at++)
      this.#values[this.#random(granuleCount(this.#sizeBytes))] = this.#random(4) ? 1 + this.#random(250) : 0;
    for (const key of Object.keys(this.#values))
      if (Number(key) >= granuleCount(this.#sizeBytes)) delete this.#values[Number(key)];
    const changed = Object.entries(this.#values).filter(([key, value]) => (this.#sent[Number(key)] ?? 0) !== value);
    // A short last granule has another hash once it is longer.
    const borders = Object.entries(this.#values).filter(([key]) => Number(key) > 6);
    this.#sent = { ...this.#values };
    return { data: granuleData(Object.fromEntries([...changed, ...borders]), this.#sizeBytes), nodes: [] };
  }

  get sizeBytes(): number {
    return this.mode === 'Block' ? this.#sizeBytes : this.#model.slots;
  }

  moment(): Moment {
    const { mode } = this;
    return {
      sizeBytes: this.sizeBytes,
      values: { ...this.#values },
      nodes: new Map(this.#model.nodes),
      content: new Map(this.#model.content),
      state: mode === 'Block' ? imageOf(this.#values, this.#sizeBytes) : expected(this.#model),
    };
  }

  note(commit: CommitRecord, moment = this.moment()): void {
    this.#moments.set(keyOf(commit), { moment, commit });
  }

  momentOf(commit: Point): { moment: Moment; commit: CommitRecord } | undefined {
    return this.#moments.get(keyOf(commit));
  }

  get commits(): CommitRecord[] {
    return [...this.#moments.values()].map(({ commit }) => commit);
  }
}

function keyOf({ sequence, digest }: Point): string {
  return `${sequence} ${digest.toString('hex')}`;
}

function imageOf(values: Record<number, number>, sizeBytes: number): Buffer {
  const image = Buffer.alloc(sizeBytes);
  for (const [key, value] of Object.entries(values)) {
    const from = Number(key) * granuleBytes;
    image.fill(value, from, from + granuleLength(Number(key), sizeBytes));
  }
  return image;
}

export const writer = { name: 'agent', sourceId: 'source', force: true };

export async function openReplica(
  folder: string,
  mode: VolumeMode,
  onDoubt: (why: string) => void = () => undefined,
  segmentBytes = 300_000,
): Promise<Replica> {
  return Replica.open({
    effects: systemEffects,
    place: { folder, indexFolder: folder },
    mode,
    limits: { ...defaultLimits, segmentBytes },
    onDoubt,
  });
}

export async function send(replica: Replica, session: ReplicaSession, { data, nodes }: Epoch): Promise<void> {
  for (const one of data) await replica.data(session, one);
  if (nodes.length > 0) await replica.nodes(session, { nodes });
}

export async function commit(
  replica: Replica,
  session: ReplicaSession,
  source: Source,
  point = true,
  noted = true,
): Promise<CommitRecord> {
  const sourceUs = Math.round(systemClock.nowMs() * 1000);
  const change = { point, sourceUs, consistency: point ? 'file' : '' };
  const record = await replica.commit(session, commitOf(replica.head.sequence + 1, source.sizeBytes, change));
  if (noted) source.note(record);
  return record;
}

/** As an agent that knows nothing: everything is offered, what is wanted is sent. */
export async function offerAll(replica: Replica, session: ReplicaSession, moment: Moment): Promise<void> {
  const { values, sizeBytes, nodes, content } = moment;
  const wants = (object: number, hashes: Buffer): number[] => {
    const bitmap = replica.want(session, object, 0, hashes);
    const all = Array.from({ length: hashes.length / hashBytes }, (_, at) => at);
    return all.filter((at) => ((bitmap[at >> 3] ?? 0) & (1 << (at & 7))) !== 0);
  };
  if (moment.state instanceof Buffer) {
    const image = moment.state;
    const piece = (at: number): Buffer => image.subarray(at * granuleBytes, (at + 1) * granuleBytes);
    const count = granuleCount(sizeBytes);
    const hashes = Buffer.concat(Array.from({ length: count }, (_, at) => granuleHash(piece(at))));
    const wanted = Object.fromEntries(wants(0, hashes).map((at) => [at, values[at] ?? 0]));
    for (const data of granuleData(wanted, sizeBytes)) await replica.data(session, data);
    return;
  }
  const slots = Math.max(sizeBytes, replica.head.sizeBytes);
  const slot = (at: number): Node => nodes.get(at) ?? goneNode(at);
  const hashes = Buffer.concat(Array.from({ length: slots }, (_, at) => nodeHash(slot(at))));
  for (const [at, bytes] of content) {
    const count = granuleCount(bytes.length);
    const own = Array.from({ length: count }, (_, n) => bytes.subarray(n * granuleBytes, (n + 1) * granuleBytes));
    const wanted = new Set(count === 0 ? [] : wants(at, Buffer.concat(own.map((part) => granuleHash(part)))));
    // All of it, then what is wanted: fileData leaves zeros out when there is nothing before.
    const other = Buffer.from(bytes.map((byte) => byte ^ 0xff));
    const all = fileData(at, bytes, other).filter(({ runs }) => wanted.has(runs[0]?.first ?? -1));
    for (const data of all) await replica.data(session, data);
  }
  const wanted = wants(0, hashes);
  const again = new Set([...wanted, ...[...content.keys()]]);
  await replica.nodes(session, { nodes: [...again].map(slot) });
}

/**
 * Every point and snapshot that is listed is right or refused with a reason; what is wrong is thrown.
 * @returns what was refused
 */
export async function checkCopies(
  replica: Replica,
  source: Source,
  scratch: string,
  options: { verify: boolean; mayRefuse: (point: Point) => boolean },
): Promise<string[]> {
  const refused: string[] = [];
  const snapshots = replica.snapshotNames.map((name) => ({ name, point: replica.snapshotPoint(name) }));
  const all = [...replica.points.map((point) => ({ name: '', point })), ...snapshots];
  for (const { name, point } of all) {
    assert.ok(point, `snapshot ${name} holds a point`);
    const known = source.momentOf(point);
    const what = name === '' ? `point ${point.sequence}` : `snapshot ${name}`;
    assert.ok(known, `${what} was never committed like this`);
    assert.deepEqual({ ...point }, { ...known.commit }, `${what} is what was committed`);
    const path = `${scratch}/copy`;
    try {
      const { verified } = await replica.recover(point, path, {
        verify: options.verify,
        signal: none,
        progress: () => undefined,
      });
      assert.equal(verified, options.verify);
    } catch (error) {
      const { code, message } = asReplicationError(error, 'TargetFailed');
      assert.ok(error instanceof ReplicationError, `${what} is refused in our words: ${String(error)}`);
      assert.ok(refusals.includes(code), `${what} is refused: ${code} ${message}`);
      if (!options.mayRefuse(point)) throw new Error(`${what} must work: ${code} ${message}`, { cause: error });
      refused.push(`${what}: ${code} ${message}`);
      assert.equal(await systemDisk.size(path).catch(() => 0), undefined, `${what}: nothing stays`);
      continue;
    }
    await compare(path, known.moment, what);
    await removeCopy(path, source.mode);
  }
  return refused;
}

export async function removeCopy(path: string, mode: VolumeMode): Promise<void> {
  if (mode === 'Block') await systemDisk.remove(path);
  else await removeTree(path);
}

export async function compare(path: string, { state }: Moment, what: string): Promise<void> {
  if (state instanceof Buffer) {
    const bytes = readFileSync(path);
    if (bytes.equals(state)) return;
    const at = Array.from({ length: granuleCount(state.length) }, (_, n) => n).filter(
      (n) =>
        !bytes
          .subarray(n * granuleBytes, (n + 1) * granuleBytes)
          .equals(state.subarray(n * granuleBytes, (n + 1) * granuleBytes)),
    );
    throw new Error(`WRONG COPY: ${what}: ${bytes.length} bytes of ${state.length}, granules ${at.join(' ')}`);
  }
  try {
    assert.deepEqual(await walk(path), state);
  } catch (error) {
    throw new Error(`WRONG COPY: ${what}: ${(error as Error).message.slice(0, 600)}`, { cause: error });
  }
}

export { nodeTypes };
