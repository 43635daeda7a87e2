/** What goes wrong, and what people ask for meanwhile: at random instants, each kind counted. */
import { serveSession } from '../../master/session.ts';
import { asReplicationError, type ReplicationError } from '../../proto/errors.ts';
import { hash } from '../../proto/granule.ts';
import { streamPair } from '../../proto/stream.ts';
import { protocolVersion, type MirrorReply, type MirrorRequest } from '../../proto/wire.ts';
import type { Dice } from './dice.ts';
import { replicaFolder, type World } from './world.ts';

const none = new AbortController().signal;

type Kind = keyof ReturnType<Faults['kinds']>;

export class Faults {
  readonly #world: World;
  readonly #dice: Dice;
  readonly #weights: [Kind, number][];
  #ended = false;

  constructor(world: World) {
    this.#world = world;
    this.#dice = world.dice.fork('faults');
    const rots = this.#dice.chance(0.25);
    const upgrades = world.dice.fork('upgrades').chance(0.4);
    // Each seed has its own mix, so that rare ones meet often somewhere.
    this.#weights = Object.entries(this.kinds())
      .filter(([kind]) => (rots || !kind.startsWith('rot')) && (upgrades || kind !== 'upgrade'))
      .map(([kind, { weight }]) => [kind as Kind, weight * this.#dice.pick([0, 0.5, 1, 3])]);
  }

  begin(): void {
    this.#later(this.#dice.between(500, 6000));
  }

  #later(ms: number): void {
    this.#world.clock.after(ms, () => {
      if (this.#ended) return;
      const kind = this.#choose();
      this.#world.faults[kind] = (this.#world.faults[kind] ?? 0) + 1;
      this.kinds()[kind].happen();
      this.#later(this.#dice.chance(0.2) ? this.#dice.between(0, 100) : this.#dice.between(200, 5000));
    });
  }

  #choose(): Kind {
    const total = this.#weights.reduce((sum, [, weight]) => sum + weight, 0);
    let left = this.#dice.fraction() * total;
    for (const [kind, weight] of this.#weights) {
      left -= weight;
      if (left < 0) return kind;
    }
    return 'cut';
  }

  kinds() {
    const world = this.#world;
    const { network, disk, device, clock } = world;
    const dice = this.#dice;
    /** For a while; it ends by itself. */
    const during = (fromMs: number, toMs: number, begin: () => void, end: () => void): void => {
      begin();
      clock.after(dice.between(fromMs, toMs), () => {
        if (!this.#ended) end();
      });
    };
    const diskFault = (begin: () => void, end: () => void): void => {
      world.checks.faulty = true;
      during(300, 8000, begin, end);
    };
    return {
      cut: { weight: 3, happen: () => network.cut() },
      silence: { weight: 2, happen: () => network.silence() },
      networkDown: {
        weight: 1,
        happen: () =>
          during(
            200,
            12_000,
            () => {
              network.down = true;
              network.cut();
            },
            () => (network.down = false),
          ),
      },
      agentCrash: { weight: 2, happen: () => this.#agent(dice.chance(0.3)) },
      masterCrash: { weight: 2, happen: () => this.#master(false) },
      powerLoss: { weight: 4, happen: () => this.#master(true) },
      bothCrash: {
        weight: 1,
        happen: () => {
          this.#agent(false);
          this.#master(dice.chance(0.5));
        },
      },
      diskFull: {
        weight: 1,
        happen: () =>
          diskFault(
            () => (disk.fullBytes = disk.usedBytes + dice.below(4 << 20)),
            () => (disk.fullBytes = 1 << 30),
          ),
      },
      diskErrors: {
        weight: 1,
        happen: () =>
          diskFault(
            () => (disk.eioChance = dice.pick([0.001, 0.01, 0.2])),
            () => (disk.eioChance = 0),
          ),
      },
      sourceErrors: {
        weight: 1,
        happen: () =>
          during(
            300,
            4000,
            () => (device.eioChance = dice.pick([0.002, 0.05])),
            () => (device.eioChance = 0),
          ),
      },
      sourceGone: {
        weight: 0.5,
        happen: () =>
          during(
            300,
            5000,
            () => (device.gone = true),
            () => (device.gone = false),
          ),
      },
      traceReset: { weight: 0.7, happen: () => device.kernel.reset() },
      traceSteals: {
        weight: 0.7,
        happen: () =>
          during(
            100,
            3000,
            () => (device.kernel.stealChance = 0.3),
            () => (device.kernel.stealChance = 0),
          ),
      },
      attachedAnew: { weight: 0.3, happen: () => device.kernel.attachedAnew() },
      grow: { weight: 1, happen: () => device.grow(dice.pick([1, 512, 65_536, 300_000, 5 << 20])) },
      shrink: { weight: 0.4, happen: () => this.#lose(() => device.shrink(dice.below(device.volume.sizeBytes + 1))) },
      replace: { weight: 0.3, happen: () => this.#lose(() => device.replace()) },
      rotImage: { weight: 1, happen: () => this.#rot((path) => path === `${replicaFolder}/base/image.raw`) },
      rotJournal: { weight: 1, happen: () => this.#rot((path) => path.startsWith(`${replicaFolder}/journal/`)) },
      snapshot: { weight: 1, happen: () => void this.#snapshot() },
      drill: { weight: 3, happen: () => void this.#drill() },
      verify: { weight: 1, happen: () => world.assign({ verifyRequest: world.nextRequest() }) },
      sync: { weight: 1, happen: () => world.assign({ syncRequest: world.nextRequest() }) },
      resync: { weight: 0.5, happen: () => world.assign({ resyncRequest: world.nextRequest() }) },
      pause: {
        weight: 0.5,
        happen: () =>
          during(
            300,
            6000,
            () => world.assign({ paused: true }),
            () => world.assign({ paused: false }),
          ),
      },
      masterClock: {
        weight: 0.5,
        happen: () => world.setMasterClock(dice.pick([-86_400_000, -60_000, -700, 700, 60_000, 86_400_000])),
      },
      fence: { weight: 0.7, happen: () => void this.#fence() },
      staleWriter: { weight: 1, happen: () => void staleWriter(world) },
      upgrade: { weight: 2, happen: () => this.#upgrade() },
    };
  }

  #agent(power: boolean): void {
    this.#world.crashAgent(power);
    this.#world.clock.after(this.#dice.between(10, 6000), () => {
      if (!this.#world.agentRuns && !this.#ended) this.#world.startAgent();
    });
  }

  /** At once, or between two of the next steps on the disk. */
  #master(power: boolean): void {
    if (this.#dice.chance(0.5)) this.#world.crashMaster(power);
    else this.#world.crashMasterSoon(power);
    this.#restartLater();
  }

  /** Or back to the version before. */
  #upgrade(): void {
    const world = this.#world;
    const side = this.#dice.pick(['agent', 'master'] as const);
    world.trace(world.versions.move(side));
    if (side === 'agent') return this.#agent(false);
    world.crashMaster(false);
    this.#restartLater();
  }

  #restartLater(): void {
    this.#world.clock.after(this.#dice.between(10, 5000), () => {
      if (this.#ended) return;
      if (!this.#world.master) this.#world.startMaster();
      else if (this.#world.crashIsComing) this.#restartLater();
    });
  }

  /** What must stop mirroring, until a person says that it is meant. */
  #lose(happen: () => void): void {
    const world = this.#world;
    if (world.assignment.resyncRequest > 0) return;
    happen();
    world.clock.after(this.#dice.between(1000, 15_000), () => {
      if (!this.#ended) this.force();
    });
  }

  force(): void {
    this.#world.checks.forced = true;
    this.#world.assign({ resyncRequest: this.#world.nextRequest(), force: true });
  }

  #rot(which: (path: string) => boolean): void {
    const { disk, checks } = this.#world;
    const paths = disk.paths().filter((path) => which(path) && disk.peek(path).length > 0);
    if (paths.length === 0) return;
    const path = this.#dice.pick(paths);
    checks.rotten = true;
    const position = this.#dice.below(disk.peek(path).length);
    this.#world.trace(`rot at ${position} of ${path}`);
    disk.flip(path, position);
  }

  async #snapshot(): Promise<void> {
    const world = this.#world;
    const { master, checks } = world;
    const replica = master?.replica;
    const point = replica?.newestPoint;
    if (!replica || !point) return;
    const name = `snap-${world.nextRequest()}`;
    try {
      await replica.snapshot(name, point, none, () => undefined);
      if (world.master !== master) return;
      world.snapshots.set(name, point);
      world.trace(`snapshot ${name} of ${point.sequence}`);
      if (this.#dice.chance(0.3)) {
        world.snapshots.delete(name);
        await replica.deleteSnapshot(name);
      }
    } catch (error) {
      if (world.master === master && master?.replica === replica) checks.onFault(error, 'snapshot', ['PointGone']);
    }
  }

  async #drill(): Promise<void> {
    const { master, checks } = this.#world;
    const replica = master?.replica;
    if (!replica || replica.points.length === 0) return;
    const point = this.#dice.chance(0.5) ? replica.newestPoint : this.#dice.pick(replica.points);
    if (!point) return;
    const isStill = (): boolean => this.#world.master === master && master.replica === replica;
    await checks.recover(replica, point, { mustWork: false, isStill });
  }

  /** A newer generation may write; the agent learns of it a moment later. */
  async #fence(): Promise<void> {
    const world = this.#world;
    const { master, checks } = world;
    const generation = String(BigInt(world.assignment.fencingGeneration) + 1n);
    try {
      await master?.replica?.fence(generation);
    } catch (error) {
      if (world.master === master) checks.onFault(error, 'fence');
    }
    world.clock.after(this.#dice.between(0, 3000), () => {
      if (BigInt(generation) > BigInt(world.assignment.fencingGeneration))
        world.assign({ fencingGeneration: generation });
    });
  }

  /** Everything works again. */
  async heal(): Promise<void> {
    const world = this.#world;
    this.#ended = true;
    world.cancelCrash();
    world.network.down = false;
    world.disk.eioChance = 0;
    world.disk.fullBytes = 1 << 30;
    world.device.eioChance = 0;
    world.device.gone = false;
    world.device.kernel.stealChance = 0;
    world.versions.settle();
    world.assign({ paused: false });
    if (!world.agentRuns) world.startAgent();
    if (!world.master) world.startMaster();
    const answer = (): void => {
      // A person answers what only a person may.
      const asks = world.report?.troubles.some(({ reason }) => /^Source(Shrunk|Changed)$/.test(reason)) === true;
      if (asks && !world.assignment.force) this.force();
      if (!world.ended) world.clock.after(5000, answer);
    };
    world.clock.after(5000, answer);
    // What was begun before ends under the old rules.
    await world.clock.runUntil(() => false, world.clock.nowMs + 2000);
    world.checks.faulty = false;
  }
}

/** I4: an older generation, and a second writer of the same one, change nothing. */
export async function staleWriter(world: World): Promise<void> {
  const { checks, master } = world;
  const replica = master?.replica;
  if (!replica || replica.generation === '0') return;
  const attempt = async (agent: string, generation: bigint): Promise<ReplicationError | undefined> => {
    const pair = streamPair<MirrorRequest, MirrorReply>();
    const hello = {
      protocol: protocolVersion,
      replicationUid: '',
      fencingGeneration: String(generation),
      volumeMode: 'Block',
      sizeBytes: 2 ** 40,
      sourceId: world.device.volume.sourceId,
      force: true,
    };
    const payload = Buffer.alloc(65536, 0xee);
    const runs = [{ object: 0, first: 0, count: 1, zero: false, tailBytes: payload.length }];
    await pair.client.send({
      number: 2,
      data: { runs, hashes: hash(payload), compression: 0, rawBytes: payload.length, payload },
    });
    pair.client.end();
    const events = { onCommit: () => undefined, onVerified: () => undefined };
    try {
      await serveSession(replica, agent, hello, pair.server, master.clock, events, none);
      return undefined;
    } catch (error) {
      return asReplicationError(error);
    }
  };
  const { generation } = replica;
  const before = { digest: replica.head.digest, sequence: replica.head.sequence };
  const stale = await attempt('agent', BigInt(generation) - 1n);
  if (world.master !== master) return;
  if (!stale) checks.violated('I4 a stale generation writes nothing', 'it was accepted');
  // A replica at rest is opened for it, and its disk may fail then.
  else checks.onFault(stale, 'refusing a stale generation', ['Fenced']);
  if (replica.head.sequence === before.sequence && !replica.head.digest.equals(before.digest))
    checks.violated('I4 a stale generation writes nothing', 'the head is another one');
  if (!replica.hasWriter) return;
  // Whose session ends meanwhile leaves its place to others.
  const { sessionsEnded } = world;
  const second = await attempt('other', BigInt(generation));
  const isThere = world.sessionsEnded === sessionsEnded;
  if (!second && isThere && world.master === master && replica.generation === generation)
    checks.violated('I4 one writer at a time', 'a second one was let in');
}
