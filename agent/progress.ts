/** What the agent tells the master of one replication: the newest state, sent on change, at most twice a second. */
import type { Clock } from '../proto/effects.ts';
import type { RefusalReason } from '../proto/refusal.ts';
import type { Report, Trouble } from '../proto/wire.ts';
import type { Source } from './source.ts';

const reportEveryMs = 500;
/** The rate is measured over about this time. */
const rateMs = 3000;

export class ReplicationProgress {
  readonly #clock: Clock;
  readonly #send: (report: Report) => void;
  readonly #report: Report;
  #sentMs = -Infinity;
  #rateFrom: { ms: number; bytes: number } | undefined;
  /** Counters of sources and sessions that are closed. */
  #closed = { readBytes: 0, skippedSameBytes: 0, skippedZeroBytes: 0, fullScans: 0, lostEvents: 0 };
  #source: Source | undefined;
  #sessionSent = 0;
  #closedSent = 0;

  constructor(replicationUid: string, clock: Clock, send: (report: Report) => void) {
    this.#clock = clock;
    this.#send = send;
    this.#report = {
      replicationUid,
      phase: 'Pending',
      captureMethod: '',
      captureReason: '',
      bytesTotal: 0,
      bytesDone: 0,
      bytesPerSecond: 0,
      dirtyBytes: 0,
      troubles: [],
      readBytes: 0,
      sentBytes: 0,
      skippedZeroBytes: 0,
      skippedSameBytes: 0,
      fullScans: 0,
      fullScanReason: '',
      cutsMade: 0,
      cutsRefused: 0,
      cutRefusedReason: '',
      lastFreezeUs: 0,
      unchangedSinceUs: 0,
      syncRequestDone: 0,
      resyncRequestDone: 0,
      verifyRequestDone: 0,
      freezes: 0,
      lostEvents: 0,
      dirtyKnown: false,
    };
  }

  get phase(): string {
    return this.#report.phase;
  }

  open(source: Source): void {
    this.#source = source;
  }

  /** The source is closed; what it counted stays counted. */
  closeSource(): void {
    if (!this.#source) return;
    const { counters } = this.#source;
    for (const key of ['readBytes', 'skippedSameBytes', 'skippedZeroBytes', 'fullScans', 'lostEvents'] as const) {
      this.#closed[key] += counters[key];
    }
    this.#source = undefined;
  }

  /** Payload bytes of the present session. */
  sent(bytes: number): void {
    this.#sessionSent = bytes;
  }

  closeSession(): void {
    this.#closedSent += this.#sessionSent;
    this.#sessionSent = 0;
  }

  /** Something that a person or the master wants to know at once. */
  set(change: Partial<Report>): void {
    if (change.phase !== undefined && change.phase !== this.#report.phase) this.#rateFrom = undefined;
    Object.assign(this.#report, change);
    this.flush();
  }

  trouble(troubles: Trouble[]): void {
    if (JSON.stringify(troubles) !== JSON.stringify(this.#report.troubles)) this.set({ troubles });
  }

  count(key: 'cutsMade' | 'freezes'): void {
    this.#report[key]++;
  }

  /** The master counts by the newest one's reason, so each is told: flush before the next. */
  cutRefused(reason: RefusalReason): void {
    this.#report.cutsRefused++;
    this.#report.cutRefusedReason = reason;
  }

  /** Work goes on: told now and then. */
  step(bytesDone: number, bytesTotal: number): void {
    const nowMs = this.#clock.monotonicMs();
    if (!this.#rateFrom || bytesDone < this.#rateFrom.bytes) this.#rateFrom = { ms: nowMs, bytes: bytesDone };
    const elapsedMs = nowMs - this.#rateFrom.ms;
    if (elapsedMs > reportEveryMs) {
      this.#report.bytesPerSecond = Math.round(((bytesDone - this.#rateFrom.bytes) / elapsedMs) * 1000);
    }
    if (elapsedMs > rateMs) this.#rateFrom = { ms: nowMs, bytes: bytesDone };
    this.#report.bytesDone = bytesDone;
    this.#report.bytesTotal = bytesTotal;
    if (nowMs - this.#sentMs >= reportEveryMs) this.flush();
  }

  flush(): void {
    this.#sentMs = this.#clock.monotonicMs();
    const report = this.#report;
    if (this.#source) {
      const { counters, captureMethod, captureReason } = this.#source;
      const dirtyBytes = this.#source.dirtyBytes();
      Object.assign(report, {
        captureMethod,
        captureReason,
        dirtyBytes: dirtyBytes ?? 0,
        dirtyKnown: dirtyBytes !== undefined,
      });
      for (const key of ['readBytes', 'skippedSameBytes', 'skippedZeroBytes', 'fullScans', 'lostEvents'] as const) {
        report[key] = this.#closed[key] + counters[key];
      }
      report.fullScanReason = counters.fullScanReason;
    }
    report.sentBytes = this.#closedSent + this.#sessionSent;
    this.#send({ ...report });
  }
}
