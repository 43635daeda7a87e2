/**
 * What must hold, looked at from outside: the numbered invariants of ARCHITECTURE.md against the modelled source.
 *
 * I1 acked <= durable   I2 applied <= committed, points are committed   I3 a phantom, never a hole   I4 a stale generation
 * writes nothing. What is violated is noted with the seed's instant; the run goes on to its end.
 */
import type { CommitRecord } from '../../master/replica/frame.ts';
import type { Point } from '../../master/replica/horizon.ts';
import type { OnDemandReplica } from '../../master/replica/ondemand.ts';
import { asReplicationError, type ErrorCode } from '../../proto/errors.ts';
import type { Report } from '../../proto/wire.ts';
import { volumeDigest } from './digest.ts';
import type { World } from './world.ts';

/** Small steps of a clock are followed: three of them at most in so short a journal. */
const clockSlackSeconds = 15;
const none = new AbortController().signal;

export class Checks {
  readonly #world: World;
  readonly violations: string[] = [];
  readonly counts = { acknowledged: 0, recovered: 0, refusedAsDamaged: 0, doubts: 0, mismatched: 0 };
  readonly #acknowledged = new Map<number, Buffer>();
  #newestAcknowledged = 0;
  readonly #records = new Map<string, CommitRecord>();
  /** When they were, whatever the master's clock said. */
  readonly #committedMs = new Map<string, number>();
  #lastPoint: CommitRecord | undefined;
  #forcedTo: CommitRecord | undefined;
  /** Oldest point at the newest look at which the journal was over its limit. */
  #overAt: number | undefined;
  /** Bytes were flipped: what they spoil may be refused, and is to be repaired. */
  rotten = false;
  /** Disk faults are on: calls may fail with what they say. */
  faulty = false;
  /** A resync with force was asked for: the source may be another or smaller one. */
  forced = false;

  constructor(world: World) {
    this.#world = world;
  }

  violated(rule: string, how: string): void {
    const text = `${(this.#world.clock.nowMs / 1000).toFixed(3)} s: ${rule}: ${how}`;
    this.#world.trace(`VIOLATED ${text}`);
    this.violations.push(text);
  }

  /** The agent saw the commit acknowledged. */
  onAcknowledged(sequence: number, digest: Buffer): void {
    this.counts.acknowledged++;
    this.#newestAcknowledged = sequence;
    this.#acknowledged.set(sequence, Buffer.from(digest));
  }

  onCommit(commit: CommitRecord): void {
    const world = this.#world;
    this.#records.set(key(commit), commit);
    this.#committedMs.set(key(commit), world.clock.nowMs);
    this.counts.mismatched += commit.mismatchedGranules;
    if (commit.point) {
      if (world.masterClock.trueMs(commit.sourceUs) > world.clock.nowMs)
        this.violated('I1 captured before committed', `point ${commit.sequence} is of a time after its commit`);
      if (this.forced) this.#forcedTo = commit;
      // The point that came by force may be lost with a damaged journal: what it was of is meant all the same.
      const [last, forcedTo] = [this.#lastPoint, this.#forcedTo];
      const isLost = this.rotten && last && forcedTo && last.sequence < forcedTo.sequence;
      const before = isLost && commit.sourceId === forcedTo.sourceId ? forcedTo : last;
      if (before && !this.forced && commit.sizeBytes < before.sizeBytes)
        this.violated('no loss is mirrored', `point ${commit.sequence} shrank to ${commit.sizeBytes} without force`);
      if (before && !this.forced && commit.sourceId !== before.sourceId)
        this.violated('no loss is mirrored', `point ${commit.sequence} is of another source without force`);
      this.#lastPoint = commit;
      if (this.forced && this.#world.assignment.resyncRequest === 0) this.forced = false;
    }
  }

  onReport(report: Report): void {
    const { assignment } = this.#world;
    const large = report.troubles.find(({ reason }) => reason === 'EpochTooLarge');
    if (large) this.violated('every queue is bounded', large.message);
    if (assignment.resyncRequest > 0 && report.resyncRequestDone >= assignment.resyncRequest) {
      this.#world.assign({ resyncRequest: 0, force: false });
      this.forced = false;
    }
    if (assignment.verifyRequest > 0 && report.verifyRequestDone >= assignment.verifyRequest)
      this.#world.assign({ verifyRequest: 0 });
  }

  onDoubt(why: string): void {
    this.counts.doubts++;
    if (/dropped|cannot be opened/.test(why) && !this.rotten && !this.faulty)
      this.violated('I1 a crash costs nothing that was acknowledged', why);
  }

  onOpened(replica: OnDemandReplica): void {
    const { head } = replica;
    if (!this.rotten) {
      if (head.sequence < this.#newestAcknowledged)
        this.violated('I1 acked <= durable', `opened at ${head.sequence}, acknowledged ${this.#newestAcknowledged}`);
      const digest = this.#acknowledged.get(head.sequence);
      // Pieces that a scrub could not read are none of the volume's.
      if (digest && head.unknown === 0 && !digest.equals(head.digest))
        this.violated('I1 acked <= durable', `commit ${head.sequence} has another digest than was acknowledged`);
    } else {
      this.#newestAcknowledged = Math.min(this.#newestAcknowledged, head.sequence);
      for (const sequence of [...this.#acknowledged.keys()])
        if (sequence > head.sequence) this.#acknowledged.delete(sequence);
    }
    for (const point of replica.points) {
      if (this.#records.has(key(point))) continue;
      // Committed, and nobody was told before the process ended.
      this.#records.set(key(point), point as CommitRecord);
      this.#committedMs.set(key(point), this.#world.clock.nowMs);
    }
    this.#lastPoint = replica.newestPoint as CommitRecord | undefined;
    this.#points(replica);
  }

  onAdvanced(replica: OnDemandReplica): void {
    this.#points(replica);
    this.#journalLasts(replica);
    const { maxJournalBytes, segmentBytes } = this.#world.limits;
    const allowed = maxJournalBytes + 2 * segmentBytes + 2 * this.#world.device.volume.sizeBytes + (4 << 20);
    const oldest =
      replica.journalBytes > allowed && replica.points.length > 2 ? replica.points[0]?.sequence : undefined;
    // Each time a part of the points is given up, until it fits.
    if (oldest !== undefined && oldest === this.#overAt)
      this.violated('every queue is bounded', `journal of ${replica.journalBytes} bytes, ${allowed} allowed`);
    this.#overAt = oldest;
  }

  /** Whatever the machine's clock was set to, but for what counts as no step. */
  #journalLasts(replica: OnDemandReplica): void {
    const { limits, journalSeconds, clock, masterClock } = this.#world;
    if (this.rotten || this.faulty || limits.maxJournalBytes < 1 << 30) return;
    const there = new Set(replica.points.map(key));
    const sinceMs = Math.max(clock.nowMs - (journalSeconds - clockSlackSeconds) * 1000, masterClock.believedMs);
    for (const [name, { point, sequence }] of this.#records)
      if (point && (this.#committedMs.get(name) ?? 0) > sinceMs && !there.has(name))
        this.violated('the journal lasts as long as was asked', `point ${sequence} is gone, of ${journalSeconds} s`);
  }

  #points(replica: OnDemandReplica): void {
    let last: Point | undefined;
    for (const point of replica.points) {
      const { masterClock } = this.#world;
      if (
        last &&
        (point.sequence <= last.sequence || masterClock.trueMs(point.sourceUs) < masterClock.trueMs(last.sourceUs))
      )
        this.violated('I2 points are in order', `${point.sequence} after ${last.sequence}`);
      if (point.sequence > replica.head.sequence)
        this.violated('I2 a point is committed', `point ${point.sequence}, head ${replica.head.sequence}`);
      last = point;
    }
    if (!this.rotten && this.#acknowledged.size > 0 && this.#lastPoint && !replica.newestPoint)
      this.violated('I1 acked <= durable', 'there was a point, and now there is none');
  }

  /** An error that nobody injected is one. */
  onFault(error: unknown, during: string, expected: ErrorCode[] = []): void {
    const { code, message } = asReplicationError(error, 'TargetFailed');
    if (expected.includes(code)) return;
    // What cannot be read counts as damaged.
    const ofDisk = ['TargetFailed', 'TargetFull', 'ReplicaDamaged'].includes(code) || /EIO|ENOSPC/.test(message);
    if (this.faulty && ofDisk) return;
    if (this.rotten && code === 'ReplicaDamaged') return;
    // It failed while the disk did, and is told to whoever needs the replica next.
    if (/\((closing it|opening it again) failed: EIO/.test(message)) return;
    this.violated(
      'nothing fails by itself',
      `${during}: ${code} ${message} ${error instanceof Error ? (error.stack ?? '') : ''}`,
    );
  }

  /** Recovers the point as a drill does and compares every byte with what the source was at the cut. */
  async recover(
    replica: OnDemandReplica,
    point: Point,
    options: { mustWork: boolean; isStill: () => boolean },
  ): Promise<void> {
    const world = this.#world;
    const path = `/recoveries/${world.dice.below(2 ** 30)}`;
    try {
      const { verified } = await replica.recover(point, path, {
        verify: true,
        signal: none,
        progress: () => undefined,
      });
      if (!verified) this.violated('a drill reads every byte', `point ${point.sequence}`);
    } catch (error) {
      if (!options.isStill()) return;
      // The journal's time goes on: it may have left the list meanwhile.
      const gone = !replica.points.some(({ sequence }) => sequence === point.sequence) && !options.mustWork;
      const expected: ErrorCode[] = gone ? ['PointGone'] : [];
      if (this.rotten && asReplicationError(error).code === 'ReplicaDamaged') this.counts.refusedAsDamaged++;
      this.onFault(error, `recovery of point ${point.sequence}`, expected);
      if (options.isStill() && !this.faulty && world.disk.paths().includes(path))
        this.violated('a recovery that failed leaves nothing', path);
      return;
    }
    if (!options.isStill()) return;
    this.counts.recovered++;
    this.compare(point, world.disk.peek(path));
    world.disk.unlink(path);
  }

  compare(point: Point, bytes: Buffer): void {
    const record = this.#records.get(key(point)) ?? (point as CommitRecord);
    if (!volumeDigest(bytes).equals(point.digest))
      this.violated('the digest is that of the bytes', `point ${point.sequence}`);
    const why = this.#world.device.volume.whyNotAt(bytes, {
      fromMs: this.#world.masterClock.trueMs(point.sourceUs),
      toMs: this.#committedMs.get(key(point)) ?? this.#world.clock.nowMs,
      sourceId: record.sourceId,
      frozen: point.consistency === 'filesystem',
    });
    if (why !== undefined)
      this.violated(
        'I3 a point is the source at one instant',
        `point ${point.sequence} (${point.consistency}): ${why}`,
      );
  }
}

function key(point: Point): string {
  return `${point.sequence}/${point.digest.toString('hex')}/${point.committedUs}`;
}
