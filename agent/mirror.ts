/**
 * The agent's loop for one replication: open the source, open a session, then round, cut, commit, wait, again.
 *
 * Guarantees: it never ends by itself; every fault becomes a trouble that says what to do, and a new session that asks
 * the replica where it stands (nothing is remembered of the old one that the replica does not confirm). A point is
 * committed only for a cut whose view held until its last byte was read. Work that is saved meanwhile does not hold up the line:
 * what comes after such a commit follows at once, where the source reads on; at most one is not yet acknowledged.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Clock, Random } from '../proto/effects.ts';
import { asReplicationError, ReplicationError, type ErrorCode } from '../proto/errors.ts';
import type { CompressionChoice } from '../proto/payload.ts';
import { Pace } from '../proto/pace.ts';
import type { Assignment, Report } from '../proto/wire.ts';
import { GroupCut } from './groupcut.ts';
import { nextStep, type PlanInput, type Step } from './plan.ts';
import { ReplicationProgress } from './progress.ts';
import { refusalOf, type Refusal } from './refusal.ts';
import { Sender, type MirrorCall } from './sender.ts';
import type { Cut, Source } from './source.ts';

export interface MirrorDependencies {
  clock: Clock;
  random: Random;
  /** The newest one. */
  assignment(): Assignment;
  /** Resolves at the next change of the assignment or abort. */
  changed(signal: AbortSignal): Promise<void>;
  openSource(assignment: Assignment): Promise<Source>;
  connect(signal: AbortSignal): MirrorCall;
  /** That the control line has agreed on. */
  protocol(): number;
  /** Master's clock for an instant of ours, never later than the truth; waits until the offset is known. */
  toMasterUs(agentUs: number, signal: AbortSignal): Promise<number>;
  report(report: Report): void;
  /** Sent since the last commit at most, then the work so far is made durable by a commit that is no point. Default 64 MiB. */
  progressCommitBytes?: number;
  event(event: { code: string; level: 'ERROR' | 'WARNING' | 'INFO'; message: string }): void;
}

/** What it brings, and what goes out until it is acknowledged, is what a broken line or a kill costs at most. */
const progressCommitBytes = 64 << 20;
/** The same by time: what a slow line brings is not sent twice either. */
const progressCommitMs = 1000;
/** The same by stretches: each may cost the replica a page of hashes in memory until the commit. */
const progressCommitRuns = 8192;
const backoff = { firstMs: 250, mostMs: 10_000 };

interface State {
  done: { sync: number; resync: number; verify: number };
  progress: ReplicationProgress;
  refusedCuts: string | undefined;
  /** The newest commit of ours: what was said about it holds only as long as the replica still stands there. */
  head: { sequence: number; digest: Buffer } | undefined;
}

export async function mirror(deps: MirrorDependencies, signal: AbortSignal): Promise<void> {
  const progress = new ReplicationProgress(deps.assignment().replicationUid, deps.clock, (report) =>
    deps.report(report),
  );
  const state: State = { done: { sync: 0, resync: 0, verify: 0 }, progress, refusedCuts: undefined, head: undefined };
  let failures = 0;
  while (!signal.aborted) {
    try {
      if (deps.assignment().paused) {
        progress.trouble([]);
        progress.set({ phase: 'Paused', bytesPerSecond: 0 });
        await deps.changed(signal);
        continue;
      }
      await withSource(deps, state, signal, () => (failures = 0));
    } catch (thrown) {
      if (signal.aborted) return;
      const error = asReplicationError(thrown);
      failures++;
      tellTrouble(deps, state, error);
      const waitMs = Math.min(backoff.mostMs, backoff.firstMs * 2 ** Math.min(failures, 10));
      // Aborted meanwhile: the loop's condition sees it, and nobody waits for a rejection.
      const rested = waitOrChange(deps, waitMs * (0.5 + (deps.random.bytes(1)[0] ?? 0) / 512), signal);
      await rested.catch(() => undefined);
    }
  }
}

async function withSource(
  deps: MirrorDependencies,
  state: State,
  signal: AbortSignal,
  onSuccess: () => void,
): Promise<void> {
  const source = await deps.openSource(deps.assignment());
  state.progress.open(source);
  try {
    await session(deps, state, source, signal, onSuccess);
  } finally {
    state.progress.closeSource();
    await source.close();
  }
}

/** One call from its welcome to its end. */
async function session(
  deps: MirrorDependencies,
  state: State,
  source: Source,
  outer: AbortSignal,
  onSuccess: () => void,
): Promise<void> {
  const ending = new AbortController();
  const signal = AbortSignal.any([outer, ending.signal]);
  const assignment = deps.assignment();
  const resyncing = assignment.resyncRequest > state.done.resync;
  const facts = await source.facts();
  const sender = await Sender.open(
    deps.connect(signal),
    {
      protocol: deps.protocol(),
      replicationUid: assignment.replicationUid,
      fencingGeneration: assignment.fencingGeneration,
      volumeMode: assignment.volumeMode,
      ...facts,
      force: assignment.force && resyncing,
    },
    {
      compression: assignment.compression as CompressionChoice,
      pace: new Pace(deps.clock, assignment.bandwidthBytesPerSecond),
      clock: deps.clock,
      signal,
    },
  );
  let run: Session | undefined;
  try {
    const { welcome } = sender;
    const { head } = state;
    if (head && !(head.sequence === welcome.headSequence && head.digest.equals(welcome.digest)))
      state.progress.set({ unchangedSinceUs: 0 });
    const attached = await source.attach(welcome, () => sender.manifest());
    run = {
      deps,
      state,
      source,
      sender,
      signal,
      assignment,
      facts,
      sequence: welcome.headSequence,
      initialized: welcome.initialized,
      whole: attached.whole || welcome.incomplete,
      resyncing,
      last: undefined,
      refused: false,
      verifying: undefined,
      saved: { bytes: 0, runs: 0, nodes: 0 },
      committing: undefined,
    };
    await loop(run, onSuccess);
  } finally {
    state.progress.sent(sender.sentBytes);
    state.progress.closeSession();
    ending.abort();
    sender.close();
    // Its acknowledgement may just have come; nobody else is to use the source then.
    await run?.committing?.catch(() => undefined);
  }
}

interface Session {
  deps: MirrorDependencies;
  state: State;
  source: Source;
  sender: Sender;
  signal: AbortSignal;
  /** As it was when the session was opened. */
  assignment: Assignment;
  facts: { sizeBytes: number; sourceId: string };
  /** Newest durable commit. */
  sequence: number;
  initialized: boolean;
  whole: boolean;
  resyncing: boolean;
  last: PlanInput['last'];
  /** The newest attempt made no point. */
  refused: boolean;
  /** Of the verify that is asked for, attempts that came to no point included: what they repaired is not found again. */
  verifying: { from: number; bad: number } | undefined;
  /** What the newest commit has of all that the sender has sent. */
  saved: { bytes: number; runs: number; nodes: number };
  /** The newest commit, until it is acknowledged. */
  committing: Promise<void> | undefined;
}

async function loop(run: Session, onSuccess: () => void): Promise<void> {
  const { deps, state, source, signal } = run;
  for (;;) {
    signal.throwIfAborted();
    const assignment = deps.assignment();
    if (needsNewSession(run.assignment, assignment)) return;
    const { called } = run.sender;
    const step = nextStep({ ...run, called, nowMs: deps.clock.monotonicMs(), assignment, done: state.done });
    if (step.kind === 'pause' || step.kind === 'reopen') return;
    if (step.kind === 'wait') {
      await source.idle();
      await waitOrChange(deps, step.untilMs - deps.clock.monotonicMs(), signal, run.sender);
      continue;
    }
    const startMs = deps.clock.monotonicMs();
    const isFirst = !run.initialized && run.last === undefined;
    await checkFacts(run);
    const unchangedUs = step.asked ? undefined : await source.unchangedUntil();
    if (unchangedUs !== undefined) {
      state.progress.set({ phase: 'Mirroring', unchangedSinceUs: await deps.toMasterUs(unchangedUs, signal) });
    } else {
      await sync(run, step, assignment);
    }
    const needsRest = source.needsRest();
    run.last = { startMs, endMs: deps.clock.monotonicMs(), whole: step.whole || isFirst || !needsRest };
    onSuccess();
  }
}

/** What the session was opened with is not what is asked for any more; what the plan looks at may change at any time. */
function needsNewSession(opened: Assignment, now: Assignment): boolean {
  return !isDeepStrictEqual({ ...opened, ...planned(now) }, now);
}

function planned({ continuous, paused, syncRequest, resyncRequest, verifyRequest }: Assignment): Partial<Assignment> {
  return { continuous, paused, syncRequest, resyncRequest, verifyRequest };
}

/** A source that was replaced or shrunk stops here; the next session's hello is refused with what to do. */
async function checkFacts(run: Session): Promise<void> {
  const facts = await run.source.facts();
  if (facts.sourceId !== run.facts.sourceId)
    throw new ReplicationError(
      'SourceChanged',
      'the source was replaced by another volume. Bring the old one back, or run resync with force to mirror this one',
    );
  if (run.assignment.volumeMode === 'Block' && facts.sizeBytes < run.facts.sizeBytes) {
    throw new ReplicationError(
      'SourceShrunk',
      `the source shrank from ${run.facts.sizeBytes} to ${facts.sizeBytes} bytes. Grow it again, or run resync with force to cut the replica`,
    );
  }
  run.facts = facts;
}

/** What was sent for a point that could not be made is work done: uncommitted it would add up until the replica takes no more. */
async function sync(run: Session, step: Extract<Step, { kind: 'sync' }>, assignment: Assignment): Promise<void> {
  if (await toPoint(run, step, assignment)) return;
  await saveProgress(run, () => true);
  await run.committing;
}

/** A commit that is no point, of what was sent since the newest one, if that is anything, is `isDue`, and may be parted from what comes. */
async function saveProgress(run: Session, isDue: (bytes: number, runs: number) => boolean): Promise<void> {
  const { sender, saved, state, source } = run;
  state.progress.sent(sender.sentBytes);
  const [bytes, runs] = [sender.sentBytes - saved.bytes, sender.sentRuns - saved.runs];
  const isSomething = runs > 0 || sender.sentNodes > saved.nodes;
  if (!isSomething || !isDue(bytes, runs) || source.isIndivisible) return;
  await commit(run, { point: false, sourceUs: 0, consistency: '', startedUs: 0, sentBytes: 0 });
}

/** Answers whether there is a new point. */
async function toPoint(run: Session, step: Extract<Step, { kind: 'sync' }>, assignment: Assignment): Promise<boolean> {
  const { deps, state, source, sender, signal } = run;
  const { progress } = state;
  const startedUs = Math.floor(deps.clock.nowMs() * 1000);
  const sentBefore = sender.sentBytes;
  progress.set({ phase: step.why, bytesDone: 0, bytesTotal: run.facts.sizeBytes, bytesPerSecond: 0 });

  const verifying = step.why === 'Verifying' ? (run.verifying ??= { from: sender.mismatched, bad: 0 }) : undefined;
  if (verifying) {
    const bad = await sender.verify((done, total) => progress.step(done, total));
    verifying.bad = Math.max(verifying.bad, bad);
  }

  let [saved, savedMs] = [run.saved, deps.clock.monotonicMs()];
  const isDue = (bytes: number, runs: number): boolean => {
    const nowMs = deps.clock.monotonicMs();
    if (run.saved !== saved) [saved, savedMs] = [run.saved, nowMs];
    return (
      bytes >= (deps.progressCommitBytes ?? progressCommitBytes) ||
      runs >= progressCommitRuns ||
      // Not before the last one is through: it would be waited for.
      (bytes > 0 && nowMs - savedMs >= progressCommitMs && !run.committing)
    );
  };
  const between = (): Promise<void> => saveProgress(run, isDue);
  await sender.send(
    source.round(step.whole, (done, total) => progress.step(done, total), signal),
    between,
  );
  if (step.whole) run.whole = false;

  const again = async (): Promise<void> => {
    const round = source.round(false, () => undefined, signal);
    await sender.send(round, between);
    await run.committing;
  };
  // A volume that stands still waits for no disk of the target's.
  await run.committing;
  const taken = await takeCut(run, again);
  if (!taken) return false;
  const { cut, group } = taken;
  try {
    await sender.send(cut.pieces(signal), between);
    const broken = await cut.broken();
    if (broken !== undefined) {
      await group?.failed(broken.message);
      refuse(run, broken);
      return false;
    }
    const heldUs = group && (await orRefused(run, () => group.held()));
    if (group && heldUs === undefined) return false;
    await commit(run, {
      point: true,
      sourceUs: heldUs ?? (await deps.toMasterUs(cut.agentUs, signal)),
      groupCut: group?.cut ?? '',
      consistency: cut.consistency,
      startedUs: await deps.toMasterUs(startedUs, signal),
      sentBytes: sender.sentBytes - sentBefore,
      // What the scrub found bad is asked for again, so it is among the mismatched wherever the source had not changed it.
      ...(verifying && {
        verified: true,
        mismatchedGranules: Math.max(verifying.bad, sender.mismatched - verifying.from),
      }),
    });
  } finally {
    await cut.release();
  }
  progress.sent(sender.sentBytes);
  run.initialized = true;
  run.refused = false;
  progress.count('cutsMade');
  if (cut.freezeUs > 0) progress.count('freezes');
  state.done = {
    sync: Math.max(state.done.sync, assignment.syncRequest),
    resync: run.resyncing ? Math.max(state.done.resync, run.assignment.resyncRequest) : state.done.resync,
    verify: verifying ? assignment.verifyRequest : state.done.verify,
  };
  run.resyncing = false;
  run.verifying = undefined;
  state.refusedCuts = undefined;
  progress.trouble([]);
  progress.set({
    phase: 'Mirroring',
    bytesDone: run.facts.sizeBytes,
    bytesTotal: run.facts.sizeBytes,
    bytesPerSecond: 0,
    lastFreezeUs: cut.freezeUs,
    syncRequestDone: state.done.sync,
    resyncRequestDone: state.done.resync,
    verifyRequestDone: state.done.verify,
  });
  return true;
}

/**
 * Undefined when no consistent cut could be taken now; mirroring goes on and the next one is tried at its time. A member of
 * a group takes it together with the others, once it has a first point.
 */
async function takeCut(
  run: Session,
  again: () => Promise<void>,
): Promise<{ cut: Cut; group: GroupCut | undefined } | undefined> {
  const { deps, sender, signal, source } = run;
  let group: GroupCut | undefined;
  if (run.assignment.group !== '' && run.initialized) {
    const sleep = (ms: number): Promise<void> => deps.clock.sleep(ms, signal);
    const gathered = await orRefused(run, async () => ({ group: await GroupCut.gather(sender, sleep, again) }));
    if (!gathered) return undefined;
    group = gathered.group;
  }
  const cut = await orRefused(run, () => source.cut(signal, group), group);
  return cut && { cut, group };
}

/** Undefined, and the cut counts as refused, when there is no consistent one. */
async function orRefused<T>(run: Session, work: () => Promise<T>, group?: GroupCut): Promise<T | undefined> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof ReplicationError) || error.code !== 'NoConsistentCut') throw error;
    await group?.failed(error.message);
    refuse(run, refusalOf(error));
    return undefined;
  }
}

function refuse(run: Session, { reason, message: why }: Refusal): void {
  const { state, deps } = run;
  run.refused = true;
  state.progress.cutRefused(reason);
  if (state.refusedCuts !== why) deps.event({ code: 'CutRefused', level: 'WARNING', message: why });
  state.refusedCuts = why;
  state.progress.trouble([{ reason: 'NoConsistentCut', message: why.slice(0, 4000), stops: false }]);
  state.progress.flush();
}

/** Returns when it is acknowledged, or, where the source reads on and it is no point, when it has gone out. */
async function commit(
  run: Session,
  facts: {
    point: boolean;
    sourceUs: number;
    consistency: string;
    startedUs: number;
    sentBytes: number;
    verified?: boolean;
    mismatchedGranules?: number;
    groupCut?: string;
  },
): Promise<void> {
  const { sender, source } = run;
  await run.committing;
  const sequence = run.sequence + 1;
  await sender.settle();
  const saved = { bytes: sender.sentBytes, runs: sender.sentRuns, nodes: sender.sentNodes };
  // It may have been replaced or cut short while it was read.
  await checkFacts(run);
  await source.prepare(sequence);
  const durable = sender.commit({
    verified: false,
    mismatchedGranules: 0,
    groupCut: '',
    ...facts,
    sequence,
    sizeBytes: source.commitSizeBytes(),
  });
  run.saved = saved;
  const committing = (async () => {
    const digest = await durable;
    run.sequence = sequence;
    run.state.head = { sequence, digest };
    await source.committed(sequence, facts.point, digest);
    run.committing = undefined;
  })();
  run.committing = committing;
  // It is the session's failure, which whatever is sent next meets too.
  committing.catch(() => undefined);
  if (facts.point || !source.readsOn) await committing;
}

/** Words of the conditions for what stops mirroring; what is not listed is told under its own code. */
const reasons: Partial<Record<ErrorCode, string>> = { TargetFull: 'SpaceLow', ReplicaDamaged: 'VerifyMismatch' };

function tellTrouble(deps: MirrorDependencies, { progress }: State, error: ReplicationError): void {
  // A broken line is seen and told by the master; here it would only arrive late.
  if (error.code === 'Disconnected' || error.code === 'Stopped') return;
  const reason = reasons[error.code] ?? error.code;
  deps.event({
    code: 'SourceTrouble',
    level: error.retry === 'never' ? 'ERROR' : 'WARNING',
    message: `${reason}: ${error.message}`.slice(0, 4000),
  });
  progress.trouble([{ reason, message: error.message.slice(0, 4000), stops: true }]);
}

async function waitOrChange(deps: MirrorDependencies, ms: number, signal: AbortSignal, sender?: Sender): Promise<void> {
  if (ms <= 0 || sender?.called === true) return;
  const woken = new AbortController();
  const any = AbortSignal.any([signal, woken.signal]);
  const called = new Promise<void>((resolve) => {
    if (sender) sender.onCall = resolve;
  });
  const sleeping = ms === Infinity ? new Promise<void>(() => undefined) : deps.clock.sleep(ms, any);
  try {
    await Promise.race([called, sleeping.catch(() => undefined), deps.changed(any).catch(() => undefined)]);
  } finally {
    woken.abort();
  }
}
