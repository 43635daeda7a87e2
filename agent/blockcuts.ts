/**
 * The ways to one instant of a block volume, best first; each says why it cannot be:
 *   freeze and reflink   filesystem   frozen for the moment of a clone, then read at leisure
 *   freeze and read      filesystem   the rest of the changes is read into memory while frozen
 *   reflink              crash        a clone of one instant, nothing quiesced
 *   snapshot             crash        of the storage, where the replication asks for it: then no other way is tried
 *   quiet interval       crash        no write between the first and the last byte read, by the counters; where there is always
 *                                     one, with the processes of the volume's pod stopped
 *
 * Whatever a way has read into memory is handed out even when the cut did not hold: the replica is believed to have it.
 */
import type { Clock } from '../proto/effects.ts';
import { asReplicationError, messageOf } from '../proto/errors.ts';
import { granuleBytes } from '../proto/granule.ts';
import type { Consistency } from '../proto/wire.ts';
import type { Drained } from './capture/block.ts';
import { copyWays, type StorageCopies } from './capture/csicbt.ts';
import type { Tracking } from './capture/tracking.ts';
import type { BlockDevice, Frozen, Readable, View } from './device.ts';
import { allRefused, Refusal } from './refusal.ts';
import type { Cut, Hold, Piece } from './source.ts';

/** What may be read into memory within one cut. */
const spoolBytes = 64 << 20;
/** A freeze is tried when reading the rest is expected to take at most this part of maxFreezeMs. */
const freezeReadRatio = 0.8;
/** How long a cut waits for writes that are under way. */
const stillMs = 50;
const stillTries = 4;
/** A write's bytes are there a moment before it is counted: when the processor comes to it, which can be late on a busy node. */
const countedMs = 20;

export interface CutContext {
  device: BlockDevice;
  tracking: Tracking;
  clock: Clock;
  maxFreezeMs: number;
  /** What is marked, read as fast as it goes; `limited` by the replication's read rate. */
  read(readable: Readable, sizeBytes: number, limited: boolean, signal: AbortSignal): AsyncIterable<Piece>;
  /** How long reading what is marked now will take, as far as can be told. */
  expectedMs(): number;
  /** The size that the cut has. */
  resized(sizeBytes: number): void;
  /** What the volume's stamp was at the cut. */
  stamped(stamp: string | undefined): void;
  stampNow(): string | undefined;
  /** Pieces that are in memory wait to be sent: no commit may count them as sent. */
  spooled(isUnsent: boolean): void;
  reflinkRefusal(): Promise<Refusal | undefined>;
  /** One with other volumes. */
  group: Hold | undefined;
}

export interface Way {
  name: string;
  consistency: Consistency;
  take(context: CutContext, signal: AbortSignal): Promise<Cut | Refusal>;
}

export const ways: Way[] = [
  { name: 'freeze and reflink', consistency: 'filesystem', take: freezeReflink },
  { name: 'freeze and read', consistency: 'filesystem', take: freezeRead },
  { name: 'reflink', consistency: 'crash', take: reflink },
  { name: 'quiet interval', consistency: 'crash', take: quiet },
];

/** Longer in the making than a freeze may last, so nothing is frozen for it. */
export function storageWay(copies: StorageCopies): Way {
  return {
    name: copyWays[copies],
    consistency: 'crash',
    take: storageCopy,
  };
}

async function storageCopy(context: CutContext): Promise<Cut | Refusal> {
  try {
    return await reflink(context);
  } catch (error) {
    const { code, message } = asReplicationError(error);
    if (code !== 'SnapshotFailed') throw error;
    return new Refusal('other', message);
  }
}

async function freezeReflink(context: CutContext, signal: AbortSignal): Promise<Cut | Refusal> {
  const { maxFreezeMs, clock } = context;
  // A clone that is not possible shall not cost the workload a freeze to find out.
  const refusal = await context.reflinkRefusal();
  if (refusal !== undefined) return refusal;
  await stampBefore(context);
  const frozen = await freeze(context, signal);
  if (frozen instanceof Refusal) return frozen;
  const agentUs = nowUs(clock);
  const released = context.group?.frozen();
  const held = await hold(context).catch((error: unknown) => new Refusal('other', messageOf(error)));
  const alone = await released;
  const { held: isHeld, freezeUs } = await frozen.thaw();
  if (held instanceof Refusal) return held;
  if (alone !== undefined || !isHeld) {
    await held.view.release();
    return alone === undefined
      ? new Refusal('late', `the freeze did not hold for the clone; maxFreezeMs is ${maxFreezeMs}`)
      : new Refusal('group', alone);
  }
  await stampAfter(context, frozen);
  return viewed(context, held, { consistency: 'filesystem', agentUs, freezeUs });
}

function freeze({ device, maxFreezeMs, group }: CutContext, signal: AbortSignal): Promise<Frozen | Refusal> {
  return device.freeze(maxFreezeMs, signal, group && (() => group.prepared()));
}

async function reflink(context: CutContext): Promise<Cut | Refusal> {
  const { device, group } = context;
  await group?.prepared();
  await stampBefore(context);
  const before = group && (await device.stamp());
  const agentUs = nowUs(context.clock);
  const held = await hold(context);
  if (held instanceof Refusal) return held;
  if (group && before) {
    // Nothing holds the volume still: that it was is proven.
    const alone = before.stamp === undefined ? new Refusal('busy', before.reason) : await standing(group);
    const after = await device.stamp();
    if (alone !== undefined || after.stamp !== before.stamp) {
      await held.view.release();
      return alone ?? new Refusal('busy', 'the volume was written to while the group stood still');
    }
  }
  return viewed(context, held, { consistency: 'crash', agentUs, freezeUs: 0 });
}

type Held = { view: View; settle(): Promise<{ doubt: string | undefined }> };

/**
 * What the volume's stamp is at the cut or before. Captures without views look for changes here and not after the view is
 * taken: what is written behind it belongs to the next cut.
 */
async function stampBefore(context: CutContext): Promise<void> {
  const { device, tracking } = context;
  context.stamped(tracking.capture.hold ? (await device.stamp()).stamp : (await tracking.drain()).still);
}

/**
 * What a thaw itself writes is nothing that a cut must bring: where that is all there is, the volume counts as unchanged from
 * after it on. Else a quiet filesystem would be frozen again and again for the sake of having been frozen.
 */
async function stampAfter(context: CutContext, frozen: Frozen): Promise<void> {
  const { device, tracking } = context;
  if (!frozen.isAlone()) return;
  const stamp = tracking.capture.hold ? (await device.stamp()).stamp : (await tracking.drain()).still;
  // Looked at again: the stamp is of a time at which nobody else had written.
  if (stamp !== undefined && frozen.isAlone()) context.stamped(stamp);
}

/** A view and what changed up to it: by the capture's own views, or a clone of which everything counts as changed. */
async function hold({ device, tracking }: CutContext): Promise<Held | Refusal> {
  const view = await (tracking.capture.hold?.() ?? device.reflink());
  if (typeof view === 'string') return new Refusal(tracking.capture.hold ? 'other' : 'unsupported', view);
  if ('view' in view) return view;
  tracking.map.markBytes(0, Infinity);
  return { view, settle: async () => ({ doubt: undefined }) };
}

async function viewed(
  context: CutContext,
  held: Held,
  facts: Pick<Cut, 'consistency' | 'agentUs' | 'freezeUs'>,
): Promise<Cut> {
  const { view } = held;
  context.resized(view.sizeBytes);
  try {
    const { doubt } = await held.settle();
    if (doubt !== undefined) context.tracking.doubt(doubt);
    await context.tracking.keep();
  } catch (error) {
    await view.release();
    throw error;
  }
  return {
    ...facts,
    pieces: (signal) => context.read(view, view.sizeBytes, true, signal),
    broken: async () => undefined,
    release: () => view.release(),
  };
}

async function freezeRead(context: CutContext, signal: AbortSignal): Promise<Cut | Refusal> {
  const { maxFreezeMs, clock } = context;
  const expectedMs = context.expectedMs();
  if (expectedMs > maxFreezeMs * freezeReadRatio) {
    return new Refusal(
      'large',
      `reading what changed takes ${Math.round(expectedMs)} ms, more than maxFreezeMs ${maxFreezeMs} leaves; put the image on XFS or btrfs with reflink, or raise maxFreezeMs`,
    );
  }
  if (isBlind(context)) await stampBefore(context);
  // What does not fit shall not cost the workload a freeze to find out.
  const large = tooLarge(context);
  if (large) return large;
  const frozen = await freeze(context, signal);
  if (frozen instanceof Refusal) return frozen;
  const agentUs = nowUs(clock);
  const deadlineMs = clock.monotonicMs() + maxFreezeMs;
  const stood = await readFrozen(context, frozen, () =>
    isBlind(context) ? spoolFrozen(context, deadlineMs, signal) : spoolUntilStill(context, deadlineMs, signal),
  );
  if (stood.refusal === undefined) await stampAfter(context, frozen);
  return fromSpool(context, stood.pieces, stood.refusal?.prefixed('freeze and read: '), {
    consistency: 'filesystem',
    agentUs,
    freezeUs: stood.freezeUs,
  });
}

/** Reads into memory while the volume, and those of its group, stand still. */
async function readFrozen(
  { maxFreezeMs, group }: CutContext,
  frozen: Frozen,
  read: () => Promise<Spooled>,
): Promise<Spooled & { freezeUs: number }> {
  const released = group && standing(group);
  let spooled: Spooled;
  try {
    spooled = await read();
  } catch (error) {
    await frozen.thaw();
    throw error;
  }
  // One that is no cut shall not keep the workload waiting for the others.
  const alone = spooled.refusal ?? (await released);
  const { held, freezeUs } = await frozen.thaw();
  const refusal =
    alone ?? (held ? undefined : new Refusal('late', `the freeze did not hold; maxFreezeMs is ${maxFreezeMs}`));
  return { pieces: spooled.pieces, refusal, freezeUs };
}

async function quiet(context: CutContext, signal: AbortSignal): Promise<Cut | Refusal> {
  const { group } = context;
  await group?.prepared();
  const spooled = await spoolUntilStill(context, Infinity, signal);
  const { pieces, agentUs } = spooled;
  const busy = spooled.refusal ?? (await stillLater(context));
  if (busy !== undefined) return stopped(context, { pieces, refusal: busy.prefixed('quiet interval: ') }, signal);
  const refusal = group && (await stillWithAll(context, group));
  return fromSpool(context, pieces, refusal?.prefixed('quiet interval: '), {
    consistency: 'crash',
    agentUs,
    freezeUs: 0,
  });
}

/**
 * The rest of what a quiet interval did not bring is read with the writers stopped. That they are all the writers is not
 * believed: that nothing was written is proven as in a quiet interval.
 */
async function stopped(
  context: CutContext,
  before: { pieces: Piece[]; refusal: Refusal },
  signal: AbortSignal,
): Promise<Cut | Refusal> {
  const { device, clock, maxFreezeMs, group } = context;
  const none = (why: Refusal): Cut | Refusal => {
    const refusal = allRefused([before.refusal, why.prefixed('writers stopped: ')]);
    const facts = { consistency: 'crash', agentUs: 0, freezeUs: 0 } as const;
    return before.pieces.length === 0 ? refusal : fromSpool(context, before.pieces, refusal, facts);
  };
  const expectedMs = context.expectedMs();
  if (expectedMs > maxFreezeMs * freezeReadRatio)
    return none(
      new Refusal(
        'large',
        `reading what changed takes ${Math.round(expectedMs)} ms, more than maxFreezeMs ${maxFreezeMs} leaves`,
      ),
    );
  const frozen = await device
    .stopWriters(maxFreezeMs, signal, group && (() => group.prepared()))
    .catch((error: unknown) => {
      signal.throwIfAborted();
      return new Refusal('other', messageOf(error));
    });
  if (frozen instanceof Refusal) return none(frozen);
  const agentUs = nowUs(clock);
  const deadlineMs = clock.monotonicMs() + maxFreezeMs;
  const stood = await readFrozen(context, frozen, async () => {
    const spooled = await spoolUntilStill(context, deadlineMs, signal);
    return { ...spooled, refusal: spooled.refusal ?? (await stillLater(context)) };
  });
  const refusal = stood.refusal && allRefused([before.refusal, stood.refusal.prefixed('writers stopped: ')]);
  return fromSpool(context, [...before.pieces, ...stood.pieces], refusal, {
    consistency: 'crash',
    agentUs,
    freezeUs: stood.freezeUs,
  });
}

/** What was written while we read has been counted by now. */
async function stillLater(context: CutContext): Promise<Refusal | undefined> {
  await context.clock.sleep(countedMs);
  return (await context.tracking.drain()).still === context.stampNow()
    ? undefined
    : new Refusal('busy', 'the volume was written to while it was read');
}

/** Nothing was written until all members of the group stood still. */
async function stillWithAll(context: CutContext, group: Hold): Promise<Refusal | undefined> {
  const before = await context.tracking.drain();
  if (before.still === undefined || before.still !== context.stampNow())
    return new Refusal('busy', 'the volume was written to');
  const alone = await standing(group);
  if (alone !== undefined) return alone;
  const after = await context.tracking.drain();
  return after.still === before.still
    ? undefined
    : new Refusal('busy', 'the volume was written to while the group stood still');
}

/** Until all of the group have stood still. */
async function standing(group: Hold): Promise<Refusal | undefined> {
  const alone = await group.frozen();
  return alone === undefined ? undefined : new Refusal('group', alone);
}

function fromSpool(
  context: CutContext,
  pieces: Piece[],
  refusal: Refusal | undefined,
  facts: Pick<Cut, 'consistency' | 'agentUs' | 'freezeUs'>,
): Cut {
  context.spooled(pieces.length > 0);
  return {
    ...facts,
    pieces: async function* () {
      yield* pieces;
      context.spooled(false);
    },
    broken: async () => refusal,
    release: async () => undefined,
  };
}

interface Spooled {
  pieces: Piece[];
  refusal: Refusal | undefined;
}

/** The capture cannot tell what is written: the freeze alone keeps the volume still. */
function isBlind({ tracking }: CutContext): boolean {
  return tracking.capture.method === 'scan';
}

async function spoolFrozen(context: CutContext, deadlineMs: number, signal: AbortSignal): Promise<Spooled> {
  context.tracking.map.markBytes(0, Infinity);
  return spool(context, deadlineMs, signal);
}

/**
 * Again as long as something was written meanwhile and there is room and time, each time what that has marked. A frozen
 * filesystem that discards what was freed (ext4 does it in the background) is such a one too.
 */
async function spoolUntilStill(
  context: CutContext,
  deadlineMs: number,
  signal: AbortSignal,
): Promise<Spooled & { agentUs: number }> {
  const pieces: Piece[] = [];
  for (let tries = 1; ; tries++) {
    const agentUs = nowUs(context.clock);
    const { pieces: more, refusal } = await spoolStill(context, deadlineMs, signal);
    pieces.push(...more);
    const isOver = tries >= stillTries || bytesOf(pieces) > spoolBytes / 2 || context.clock.monotonicMs() > deadlineMs;
    if (refusal === undefined || isOver) return { pieces, refusal, agentUs };
  }
}

/** No refusal = the volume was not written to from before the first read to after the last. */
async function spoolStill(context: CutContext, deadlineMs: number, signal: AbortSignal): Promise<Spooled> {
  const { tracking } = context;
  const before = await still(context, deadlineMs);
  if (before.still === undefined)
    return { pieces: [], refusal: new Refusal(before.doubt === undefined ? 'busy' : 'capture', before.busy) };
  context.stamped(before.still);
  const large = tooLarge(context);
  if (large) return { pieces: [], refusal: large };
  const spooled = await spool(context, deadlineMs, signal);
  if (spooled.refusal !== undefined) return spooled;
  const after = await tracking.drain();
  if (after.still === before.still) return spooled;
  return { ...spooled, refusal: new Refusal('busy', 'the volume was written to while it was read') };
}

function tooLarge(context: CutContext): Refusal | undefined {
  const bytes = context.tracking.map.dirty.count * granuleBytes;
  return bytes > spoolBytes && !isBlind(context)
    ? new Refusal('large', `${bytes} bytes are still to be read, more than ${spoolBytes} that fit into memory`)
    : undefined;
}

/** Reads what is marked into memory. */
async function spool(context: CutContext, deadlineMs: number, signal: AbortSignal): Promise<Spooled> {
  const { device, clock } = context;
  const pieces: Piece[] = [];
  let spooled = 0;
  let refusal: Refusal | undefined;
  const sizeBytes = await device.size();
  context.resized(sizeBytes);
  for await (const piece of context.read(device, sizeBytes, false, signal)) {
    pieces.push(detached(piece));
    if (piece.kind === 'content') spooled += piece.bytes.length;
    if (spooled > spoolBytes)
      refusal = new Refusal('large', `more than ${spoolBytes} bytes changed since the last round`);
    if (clock.monotonicMs() > deadlineMs)
      refusal = new Refusal('late', 'reading the volume took longer than maxFreezeMs');
    if (refusal !== undefined) break;
  }
  return { pieces, refusal };
}

/** The first moment without a write under way, within `stillMs`. */
async function still({ tracking, clock }: CutContext, deadlineMs: number): Promise<Drained> {
  const endMs = Math.min(deadlineMs, clock.monotonicMs() + stillMs);
  for (;;) {
    const drained = await tracking.drain();
    if (drained.still !== undefined || clock.monotonicMs() >= endMs) return drained;
    await clock.sleep(1);
  }
}

function bytesOf(pieces: Piece[]): number {
  return pieces.reduce((sum, piece) => sum + (piece.kind === 'content' ? piece.bytes.length : 0), 0);
}

/** A piece that no longer needs its pool buffer. */
function detached(piece: Piece): Piece {
  if (piece.kind !== 'content') return piece;
  const bytes = Buffer.from(piece.bytes);
  piece.release();
  return { ...piece, bytes, release: () => undefined };
}

function nowUs(clock: Clock): number {
  return Math.floor(clock.nowMs() * 1000);
}
