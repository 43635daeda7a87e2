/**
 * The real code of a replica is recorded while it works (every call of it and of SQLite that changes a file, by strace), and
 * then the power goes at any of them: the replica that is left opens, has all that was acknowledged, and every point and
 * snapshot of it is right to the byte; what comes after it too. Killing the process at a call is the case in which nothing is lost.
 *
 * REPLICATOR_LONG=1: killed at every call, and 1,000 seeded losses (REPLICATOR_TRIES: another number for each kind of volume); else a few. REPLICATOR_SEED begins elsewhere.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { CommitRecord } from '../../master/replica/frame.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import { Dice } from '../sim/dice.ts';
import { checkCopies, commit, compare, none, offerAll, openReplica, Source, writer } from './subject.ts';
import { leave, type Loss } from './powercut.ts';
import { parse, record, type Event } from './trace.ts';
import { chosenSeed } from '../seed.ts';

t.setTimeout(3_600_000);
const long = process.env['REPLICATOR_LONG'] !== undefined;
const tries = Number(process.env['REPLICATOR_TRIES'] ?? (long ? 500 : 6));
const firstSeed = chosenSeed();
const root = fs.realpathSync(fs.mkdtempSync(join(fs.existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'powerloss-')));
t.teardown(() => execFileSync('rm', ['-rf', root]));
const hasStrace = spawnSync('strace', ['-qq', '-e', 'trace=none', 'true']).status === 0;
const skip = process.geteuid?.() !== 0 ? 'needs root' : hasStrace ? false : 'strace is missing or may not trace';

interface Told {
  begin?: string;
  done?: string;
  sequence?: number;
  name?: string;
  generation?: string;
  record?: CommitRecord;
}

/** What the program had told up to an instant. */
interface Expectation {
  acknowledged: number;
  /** Newest point that was acknowledged. */
  point: number;
  begun: number;
  generation: bigint;
  snapshots: Set<string>;
  /** Begun to be made or removed. */
  unsettled: Set<string>;
}

class Recording {
  readonly mode: VolumeMode;
  readonly events: Event[];
  readonly source: Source;
  readonly #seed: number;

  constructor(mode: VolumeMode, seed: number) {
    this.mode = mode;
    this.#seed = seed;
    const folder = join(root, `work-${mode}`);
    fs.mkdirSync(folder);
    const program = join(import.meta.dirname, 'workload.ts');
    const lines = record([process.execPath, program, folder, mode, String(seed)], join(root, `trace-${mode}`));
    this.events = parse(lines, folder);
    execFileSync('rm', ['-rf', folder, join(root, `trace-${mode}`)]);
    this.source = this.#truth();
  }

  /** The program's source once more, with the commits that it told of. */
  #truth(): Source {
    const source = new Source(this.mode, this.#seed);
    const { records } = this;
    for (const commit of records) {
      source.change();
      source.note(commit);
    }
    return source;
  }

  get records(): CommitRecord[] {
    return this.events.flatMap((event) => {
      const told = 'told' in event ? (JSON.parse(event.told) as Told) : {};
      if (!told.record) return [];
      return [{ ...told.record, digest: Buffer.from(told.record.digest as unknown as string, 'hex') }];
    });
  }

  until(upTo: number): Expectation {
    const now: Expectation = {
      acknowledged: 0,
      point: 0,
      begun: 0,
      generation: 0n,
      snapshots: new Set(),
      unsettled: new Set(),
    };
    for (const event of this.events.slice(0, upTo)) {
      if (!('told' in event)) continue;
      const { begin, done, name = '', generation, record, sequence } = JSON.parse(event.told) as Told;
      if (begin === 'commit') now.begun = sequence ?? 0;
      if (record) now.acknowledged = record.sequence;
      if (record?.point) now.point = record.sequence;
      if (generation !== undefined && done !== undefined) now.generation = BigInt(generation);
      if (begin === 'snapshot' || begin === 'delete') now.unsettled.add(name);
      if (done === 'snapshot' || done === 'delete') now.unsettled.delete(name);
      if (done === 'snapshot') now.snapshots.add(name);
      if (begin === 'delete') now.snapshots.delete(name);
    }
    return now;
  }

  /** The power goes after that many events. */
  async check(upTo: number, loss: Loss, dice: Dice): Promise<void> {
    const folder = join(root, 'left');
    execFileSync('rm', ['-rf', folder]);
    await leave(this.events, upTo, loss, dice, folder);
    execFileSync('rm', ['-rf', `${folder}/copy`, `${folder}/copy.staging`]);
    const { mode, source } = this;
    const expected = this.until(upTo);
    const doubts: string[] = [];
    const replica = await openReplica(`${folder}/r`, mode, (why) => doubts.push(why));
    try {
      const { sequence, digest, unknown } = replica.head;
      assert.ok(
        sequence >= expected.acknowledged && sequence <= expected.begun,
        `I1: at ${sequence}, acknowledged ${expected.acknowledged}, begun ${expected.begun}`,
      );
      // A first copy of a block volume is written in place: what an open epoch has written there is fetched again.
      if (expected.point > 0 || mode === 'Filesystem') assert.equal(unknown, 0, 'nothing is unknown');
      if (sequence > 0 && unknown === 0)
        assert.ok(source.momentOf({ sequence, digest } as CommitRecord), `I1: digest of ${sequence}`);
      assert.ok(BigInt(replica.generation) >= expected.generation, 'I4: no generation is forgotten');
      const newest = replica.newestPoint?.sequence ?? 0;
      assert.ok(newest >= expected.point, `I1: newest point ${newest}, acknowledged ${expected.point}`);
      for (const name of expected.snapshots)
        assert.ok(replica.snapshotNames.includes(name), `snapshot ${name} is there; ${doubts.join()}`);
      for (const name of replica.snapshotNames)
        assert.ok(expected.snapshots.has(name) || expected.unsettled.has(name), `snapshot ${name} is gone`);
      await checkCopies(replica, source, folder, { verify: true, mayRefuse: () => false });
      assert.deepEqual(
        doubts.filter((why) => /dropped|cannot be opened|read whole|given up/.test(why)),
        [],
      );
      await this.#goOn(replica, folder);
    } finally {
      await replica.close();
    }
  }

  /** A session, after which the newest point is right from the journal and from the base. */
  async #goOn(replica: Awaited<ReturnType<typeof openReplica>>, folder: string): Promise<void> {
    const { mode, source } = this;
    const session = await replica.attach({ ...writer, generation: '9', sizeBytes: source.sizeBytes });
    const moment = source.moment();
    await offerAll(replica, session, moment);
    await commit(replica, session, source, true, false);
    await replica.advance(0, none);
    const point = replica.newestPoint;
    assert.ok(point);
    await replica.recover(point, `${folder}/after`, { verify: true, signal: none, progress: () => undefined });
    await compare(`${folder}/after`, moment, 'the point that came after it');
    const { badGranules } = await replica.scrub(session, none, () => undefined);
    assert.equal(badGranules, 0, `${mode}: nothing is bad`);
  }
}

for (const mode of ['Block', 'Filesystem'] as const) {
  t.test(`${mode}: the power goes at any call, and what was acknowledged is there`, { skip }, async (t) => {
    const recording = new Recording(mode, 5);
    const { events } = recording;
    const operations = events.filter((event) => 'operation' in event).length;
    const syncs = events.filter((event) => 'sync' in event).length;
    t.comment(`${mode}: ${operations} operations, ${syncs} syncs, ${recording.records.length} commits`);
    t.ok(operations > 300 && syncs > 50, 'the work was seen');
    const first = events.findIndex((event) => 'told' in event);
    const failures: string[] = [];
    let tried = 0;
    const attempt = async (upTo: number, loss: Loss, seed: number): Promise<void> => {
      tried++;
      try {
        await recording.check(upTo, loss, new Dice(seed));
      } catch (error) {
        failures.push(`REPLICATOR_SEED=${seed} ${mode}, ${loss} lost after ${upTo}: ${(error as Error).stack ?? ''}`);
      }
    };
    // Most is to be lost right before a sync.
    const before = [...events.keys()].filter((at) => at >= first && 'sync' in (events[at] as Event));
    const upTo = (dice: Dice): number =>
      dice.chance(0.6) ? dice.pick(before) : first + dice.below(events.length - first + 1);
    if (long) {
      for (let at = first; at <= events.length; at++)
        if (!events[at - 1] || !('sync' in (events[at - 1] as Event))) await attempt(at, 'nothing', at);
      for (let at = first; at <= events.length; at += 3) await attempt(at, 'all that may be', at);
    }
    for (let seed = firstSeed; seed < firstSeed + tries; seed++) {
      const dice = new Dice(seed, 'instant');
      await attempt(
        upTo(dice),
        dice.pick(['ordered', 'any', 'any', 'ordered', long ? 'any' : 'nothing', 'all that may be']),
        seed,
      );
    }
    t.comment(`${mode}: ${tried} tried`);
    t.same(failures.slice(0, 3), [], `${failures.length} of ${tried}`);
  });
}
