/**
 * A real tree, the real source, the real replica, and between them nothing but what the wire does: sessions that break anywhere,
 * both sides killed at any piece, commits that save progress between any two pieces, the base brought forward meanwhile, while
 * the tree is written to. Each point is then copied and read whole; one that was cut while nothing moved is the tree.
 */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Piece, Source } from '../../agent/source.ts';
import { Replica } from '../../master/replica/replica.ts';
import type { ReplicaSession } from '../../master/replica/writer.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { granuleBytes, hashBytes } from '../../proto/granule.ts';
import { nodeHash } from '../../proto/node.ts';
import { systemEffects } from '../../proto/system.ts';
import type { Data } from '../../proto/wire.ts';
import { makePlace } from './treeplace.ts';
import { seeded, TreeMutator } from './treemutator.ts';
import { differences, walkSource } from './treewalk.ts';
import { chosenSeed } from '../seed.ts';

t.setTimeout(3_600_000);
const never = new AbortController().signal;
const firstSeed = chosenSeed();
const seeds = Array.from({ length: process.env['REPLICATOR_LONG'] ? 60 : 2 }, (_, at) => firstSeed + at);
const effects = systemEffects;

/** The line broke or a side was killed. */
class Broken extends Error {}

class World {
  readonly folder = fs.mkdtempSync(join(fs.realpathSync(tmpdir()), 'treereplica-'));
  readonly tree = makePlace();
  readonly root = this.tree.root;
  readonly random: (below: number) => number;
  readonly mutator: TreeMutator;
  readonly log: string[] = [];
  readonly doubts: string[] = [];
  #masterLives = 0;
  source!: Source;
  replica!: Replica;
  /** Chance in 1000 at each piece that something breaks. */
  breaks = 0;
  /** The tree is written to while it is read. */
  moves = false;
  changedMs = 0;

  constructor(seed: number) {
    this.random = seeded(seed);
    this.mutator = new TreeMutator(this.root, seed + 1);
  }

  get #place(): string {
    return join(this.folder, `master${this.#masterLives}`);
  }

  openSource(): void {
    this.source = this.tree.open();
  }

  async openReplica(): Promise<void> {
    this.replica = await Replica.open({
      effects,
      place: { folder: this.#place, indexFolder: this.#place },
      mode: 'Filesystem',
      onDoubt: (why) => this.doubts.push(why),
    });
  }

  async killAgent(): Promise<void> {
    await this.tree.crash(this.source);
    this.openSource();
  }

  /** What the files hold now is what a killed process leaves behind. */
  async killMaster(): Promise<void> {
    const left = this.#place;
    this.#masterLives++;
    execFileSync('cp', ['-a', left, this.#place]);
    await this.replica.close();
    fs.rmSync(left, { recursive: true, force: true });
    await this.openReplica();
  }

  async change(operations: number): Promise<void> {
    await this.mutator.change(operations);
    this.changedMs = effects.clock.nowMs();
  }

  async remove(): Promise<void> {
    await this.source.close();
    await this.replica.close();
    await this.tree.remove();
    fs.rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Answers the time that the newest point claims, milliseconds since the epoch. */
async function session(world: World): Promise<number> {
  const { replica, source, random } = world;
  const facts = await source.facts();
  const writer = await replica.attach({ name: 'agent', generation: '1', force: true, ...facts });
  const { sequence, initialized, sizeBytes, digest, sourceId, blank, unknown } = replica.head;
  const welcome = {
    protocol: 1,
    headSequence: sequence,
    initialized,
    sizeBytes,
    digest,
    sourceId,
    blank,
    incomplete: unknown > 0,
  };
  const manifest = async function* () {
    yield* replica.manifest();
  };
  const attached = await source.attach(welcome, manifest);
  world.log.push(
    `session at ${sequence}, ${attached.whole ? 'whole' : 'not whole'}: ${attached.reason}; unknown ${unknown}`,
  );
  let next = sequence + 1;
  const commitEvery = random(3) === 0 ? 0 : 1 + random(6);
  let pieces = 0;
  let claimedMs = 0;
  const commit = async (point: boolean): Promise<void> => {
    await source.prepare(next);
    if (world.breaks > random(1000)) throw new Broken('before the commit');
    const record = await replica.commit(writer, {
      sequence: next,
      sizeBytes: source.commitSizeBytes(),
      point,
      sourceUs: point ? Date.now() * 1000 : 0,
      consistency: point ? 'file' : '',
      startedUs: 0,
      sentBytes: 0,
      verified: false,
      mismatchedGranules: 0,
      groupCut: '',
    });
    world.log.push(`commit ${next} ${point ? 'point' : ''}`);
    if (world.breaks > random(1000)) throw new Broken('before the ack');
    next++;
    await source.committed(record.sequence, point, record.digest);
  };
  const take = async (stream: AsyncIterable<Piece>): Promise<void> => {
    for await (const piece of stream) {
      await deliver(world, writer, piece);
      if (world.breaks > random(1000)) throw new Broken('after a piece');
      if (world.moves && random(3) === 0) await world.change(1 + random(4));
      if (random(20) === 0) await world.replica.advance(random(2) ? 0 : 3600, never);
      if (commitEvery > 0 && ++pieces % commitEvery === 0 && !source.isIndivisible) await commit(false);
    }
  };
  let isWhole = attached.whole || unknown > 0;
  for (let left = 1 + random(3); left > 0; left--) {
    await take(source.round(isWhole, () => undefined, never));
    isWhole = false;
    const cut = await source.cut(never);
    try {
      await take(cut.pieces(never));
      if ((await cut.broken()) === undefined) {
        await commit(true);
        claimedMs = cut.agentUs / 1000;
      }
    } finally {
      await cut.release();
    }
    if (left > 1) await world.change(random(12));
  }
  await replica.detach(writer);
  return claimedMs;
}

/** As the sender does. */
async function deliver(world: World, writer: ReplicaSession, piece: Piece): Promise<void> {
  const { replica } = world;
  if (piece.kind === 'zeros') {
    const { object, first, count, tailBytes } = piece;
    world.log.push(`zeros ${object} ${first} ${count} ${tailBytes}`);
    await replica.data(writer, {
      runs: [{ object, first, count, zero: true, tailBytes }],
      hashes: Buffer.alloc(0),
      compression: 0,
      rawBytes: 0,
      payload: Buffer.alloc(0),
    });
  } else if (piece.kind === 'nodes') {
    const hashes = Buffer.concat(
      piece.nodes.map((node) => (node.type === 0 ? Buffer.alloc(hashBytes) : nodeHash(node))),
    );
    const bits = piece.offer ? replica.want(writer, 0, piece.nodes[0]?.slot ?? 0, hashes) : undefined;
    const nodes = piece.nodes.filter((_node, at) => !bits || isSet(bits, at));
    for (const node of nodes)
      world.log.push(
        `node ${node.slot} ${node.type} ${node.sizeBytes} ${node.names.map((n) => `${n.parent}/${JSON.stringify(n.name.toString().slice(0, 12))}`).join()}`,
      );
    if (nodes.length > 0) await replica.nodes(writer, { nodes });
  } else {
    const { object, first, bytes, hashes } = piece;
    const bits = piece.offer ? replica.want(writer, object, first, hashes) : undefined;
    for (let at = 0; at < hashes.length / hashBytes; at++) {
      if (bits && !isSet(bits, at)) continue;
      const granule = Buffer.from(bytes.subarray(at * granuleBytes, (at + 1) * granuleBytes));
      world.log.push(`data ${object} ${first + at} ${granule.length}`);
      const data: Data = {
        runs: [{ object, first: first + at, count: 1, zero: false, tailBytes: granule.length }],
        hashes: Buffer.from(hashes.subarray(at * hashBytes, (at + 1) * hashBytes)),
        compression: 0,
        rawBytes: granule.length,
        payload: granule,
      };
      await replica.data(writer, data);
    }
    piece.release();
  }
}

const isSet = (bits: Buffer, at: number): boolean => ((bits[at >> 3] ?? 0) & (1 << (at & 7))) !== 0;

async function drill(t: Test, world: World, which: number, same: boolean): Promise<void> {
  const point = world.replica.points.at(which);
  if (!point) return;
  const to = join(world.folder, 'copy');
  await world.replica.recover(point, to, { verify: true, signal: never, progress: () => undefined });
  if (same) t.strictSame(differences(await walkSource(world.root), await walkSource(to)), []);
  fs.rmSync(to, { recursive: true, force: true });
  world.log.push(`drilled ${point.sequence}`);
}

for (const seed of seeds) {
  await t.test(`whatever breaks, each point is whole and right (REPLICATOR_SEED=${seed})`, async (t) => {
    const world = new World(seed);
    t.teardown(() => world.remove());
    world.openSource();
    await world.openReplica();
    try {
      for (let round = 0; round < 25; round++) {
        await world.change(world.random(40));
        world.breaks = world.random(3) === 0 ? 0 : world.random(80);
        world.moves = world.random(2) === 0;
        let isWhole = false;
        try {
          isWhole = (await session(world)) > world.changedMs;
        } catch (error) {
          if (!(error instanceof Broken || (error instanceof ReplicationError && error.code === 'ContentMismatch')))
            throw error;
          world.log.push(`broken: ${String(error)}`);
        }
        const kill = world.random(6);
        if (kill === 0 || kill === 2) await world.killAgent();
        if (kill === 1 || kill === 2) await world.killMaster();
        world.log.push(`kill ${kill}`);
        if (world.random(3) === 0) await world.replica.advance(world.random(2) ? 0 : 3600, never);
        if (isWhole || world.random(2) === 0) await drill(t, world, -1, isWhole);
        if (world.random(4) === 0) await drill(t, world, 0, false);
      }
      // In the end everything arrives, however often it was refused.
      world.breaks = 0;
      world.moves = false;
      for (let tries = 0; ; tries++) {
        try {
          if ((await session(world)) > world.changedMs) break;
        } catch (error) {
          world.log.push(`at the end: ${String(error)}`);
          if (tries > 20) throw error;
        }
      }
      await drill(t, world, -1, true);
      t.same(world.doubts, []);
    } catch (error) {
      t.fail(String((error as Error).stack), { log: world.log.slice(-400) });
    }
  });
}
