/**
 * An agent without volumes: the real control line and real Mirror calls over real gRPC, with a certificate of its own. Of each
 * replication a point of one granule is committed, and its session stays; `change` commits another one.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { control } from '../../agent/control.ts';
import { joinOrLoad } from '../../agent/identity.ts';
import type { Client } from '../../master/cli/client.ts';
import { granuleBytes, granuleHash } from '../../proto/granule.ts';
import type { Stream } from '../../proto/stream.ts';
import { systemClock, systemRandom } from '../../proto/system.ts';
import { protocolVersion, type Assignment, type Commit, type MirrorReply, type MirrorRequest, type Report } from '../../proto/wire.ts'; // prettier-ignore

export interface SimulatedAgent {
  connected(): boolean;
  /** Uids of those whose first point is committed. */
  readonly mirrored: ReadonlySet<string>;
  /** Tells of each of them, as if nothing had changed until now. */
  report(): void;
  /** Commits a new point of the replication. Answers after how many milliseconds it was acknowledged. */
  change(uid: string): Promise<number>;
  ended: Promise<void>;
}

export async function simulatedAgent(options: {
  client: Pick<Client, 'send'>;
  name: string;
  /** HOST:PORT */
  master: string;
  masterDir: string;
  dir: string;
  signal: AbortSignal;
}): Promise<SimulatedAgent> {
  const { client, name, master, masterDir, signal } = options;
  const { token } = await client.send<{ token: string }>('POST', '/tokens', { kind: 'join' });
  const dataDir = join(options.dir, name);
  mkdirSync(dataDir, { recursive: true });
  const joinTokenFile = join(dataDir, 'token');
  writeFileSync(joinTokenFile, token);
  const own = { dataDir, name, master, agentVersion: '1', clock: systemClock, random: systemRandom };
  const identity = await joinOrLoad({ ...own, joinTokenFile, caFile: join(masterDir, 'ca.pem') }, signal);
  const sessions = new Map<string, Session>();
  const mirrored = new Set<string>();

  /** A call that fails before its first point is begun anew, as an agent's loop does. */
  async function mirror(item: Assignment): Promise<void> {
    const uid = item.replicationUid;
    for (; !sessions.has(uid); await systemClock.sleep(1000, signal)) {
      const session = new Session(identity.client().mirror(signal), item);
      sessions.set(uid, session);
      try {
        await session.commit();
        mirrored.add(uid);
        return;
      } catch {
        sessions.delete(uid);
      }
    }
  }
  function assign(items: Assignment[]): void {
    for (const item of items) mirror(item).catch(() => undefined); // stopped
  }

  const line = control({
    open: (ending) => identity.client().control(ending),
    hello: { agentVersion: '1', bootId: 'boot', defaultRole: 'source', kernel: '6.1', kubelet: '' },
    inventory: async () => [],
    look: () => Promise.reject(new Error('nothing is here')),
    onAssignments: assign,
    onRenew: () => undefined,
    clock: systemClock,
    random: systemRandom,
  });
  return {
    connected: () => line.connected(),
    mirrored,
    report() {
      for (const uid of mirrored) line.report(reportOf(uid, sessions.get(uid)?.sentBytes ?? 0));
    },
    async change(uid) {
      const startMs = performance.now();
      await sessions.get(uid)?.commit();
      return performance.now() - startMs;
    },
    ended: line
      .run(signal)
      .catch(() => undefined)
      .then(() => identity.close()),
  };
}

/** One Mirror call. */
class Session {
  readonly #stream: Stream<MirrorRequest, MirrorReply>;
  readonly #opened: Promise<number>;
  #sequence = 0;
  #number = 0;
  #last: Promise<unknown> = Promise.resolve();

  constructor(stream: Stream<MirrorRequest, MirrorReply>, assignment: Assignment) {
    this.#stream = stream;
    this.#opened = this.#open(assignment);
    this.#opened.catch(() => undefined);
  }

  get sentBytes(): number {
    return this.#sequence * granuleBytes;
  }

  async #send(message: Omit<MirrorRequest, 'number'>): Promise<void> {
    await this.#stream.send({ number: ++this.#number, ...message });
  }

  async #open({ replicationUid, fencingGeneration, volumeMode }: Assignment): Promise<number> {
    const volume = { volumeMode, sizeBytes: granuleBytes, sourceId: replicationUid };
    await this.#send({
      hello: { protocol: protocolVersion, replicationUid, fencingGeneration, ...volume, force: false },
    });
    const { welcome } = await this.#until((reply) => reply.welcome !== undefined);
    this.#sequence = welcome?.headSequence ?? 0;
    return this.#sequence;
  }

  async #until(isIt: (reply: MirrorReply) => boolean): Promise<MirrorReply> {
    for (;;) {
      const next = await this.#stream.receive.next();
      if (next.done === true) throw new Error('the call has ended');
      if (isIt(next.value)) return next.value;
    }
  }

  /** One after the other. */
  async commit(): Promise<void> {
    const turn = this.#last.then(() => this.#commit());
    this.#last = turn.catch(() => undefined);
    await turn;
  }

  async #commit(): Promise<void> {
    await this.#opened;
    const sequence = ++this.#sequence;
    const payload: Buffer = Buffer.alloc(granuleBytes, `${sequence} `);
    const runs = [{ object: 0, first: 0, count: 1, zero: false, tailBytes: granuleBytes }];
    const hashes = Buffer.from(granuleHash(payload));
    await this.#send({ data: { runs, hashes, compression: 0, rawBytes: granuleBytes, payload } });
    const nowUs = Date.now() * 1000;
    const commit: Commit = {
      ...{ sequence, point: true, sourceUs: nowUs, consistency: 'crash', sizeBytes: granuleBytes, verified: false },
      ...{ mismatchedGranules: 0, startedUs: nowUs, sentBytes: granuleBytes, groupCut: '' },
    };
    await this.#send({ commit });
    await this.#until((reply) => reply.committed?.sequence === sequence);
  }
}

function reportOf(replicationUid: string, sentBytes: number): Report {
  return {
    ...{ replicationUid, phase: 'Mirroring', captureMethod: 'ftrace', captureReason: '', troubles: [] },
    ...{ fullScanReason: '', bytesTotal: granuleBytes, bytesDone: granuleBytes, bytesPerSecond: 0, dirtyBytes: 0 },
    ...{ dirtyKnown: true, readBytes: sentBytes, sentBytes, skippedZeroBytes: 0, skippedSameBytes: 0, fullScans: 0 },
    ...{ cutsMade: 0, cutsRefused: 0, cutRefusedReason: '', lastFreezeUs: 0, unchangedSinceUs: Date.now() * 1000 },
    ...{ syncRequestDone: 0, resyncRequestDone: 0, verifyRequestDone: 0, freezes: 0, lostEvents: 0 },
  };
}
