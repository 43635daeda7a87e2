/**
 * The ways to one instant of a block volume, best first; each says why it cannot be:
 *   freeze and reflink   filesystem   frozen for the moment of a clone, then read at leisure
 *   freeze and read      filesystem   the rest of the changes is read into memory while frozen
 *   reflink              crash        a clone of one instant, nothing quiesced
 *   quiet interval       crash        no write between the first and the last byte read, by the counters
 *
 * Whatever a way has read into memory is handed out even when the cut did not hold: the replica is believed to have it.
 */
import type { Clock } from '../proto/effects.ts';
import { granuleBytes } from '../proto/granule.ts';
import type { Consistency } from '../proto/wire.ts';
import type { Drained } from './capture/block.ts';
import type { Tracking } from './capture/tracking.ts';
import type { BlockDevice, Frozen, Readable, View } from './device.ts';
import type { Cut, Hold, Piece } from './source.ts';

/** What may be read into memory within one cut. */
const spoolBytes = 64 << 20;
/** A freeze is tried when reading the rest is expected to take at most this part of maxFreezeMs. */
const freezeReadRatio = 0.8;
/** How long a cut waits for writes that are under way. */
const stillMs = 50;
const quietTries = 4;

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
  reflinkRefusal(): Promise<string | undefined>;
  /** One with other volumes. */
  group: Hold | undefined;
}

export interface Way {
  name: string;
  consistency: Consistency;
  take(context: CutContext, signal: AbortSignal): Promise<Cut | string>;
}

export const ways: Way[] = [
  { name: 'freeze and reflink', consistency: 'filesystem', take: freezeReflink },
  { name: 'freeze and read', consistency: 'filesystem', take: freezeRead },
  { name: 'reflink', consistency: 'crash', take: reflink },
  { name: 'quiet interval', consistency: 'crash', take: quiet },
];

async function freezeReflink(context: CutContext, signal: AbortSignal): Promise<Cut | string> {
  const { maxFreezeMs, clock } = context;
  // A clone that is not possible shall not cost the workload a freeze to find out.
  const refusal = await context.reflinkRefusal();
  if (refusal !== undefined) return refusal;
  await stampBefore(context);
  const frozen = await freeze(context, signal);
  if (typeof frozen === 'string') return frozen;
  const agentUs = nowUs(clock);
  const released = context.group?.frozen();
  const held = await hold(context).catch((error: unknown) => String(error));
  const alone = await released;
  const { held: isHeld, freezeUs } = await frozen.thaw();
  if (typeof held === 'string') return held;
  if (alone !== undefined || !isHeld) {
    await held.view.release();
    return alone ?? `the freeze did not hold for the clone; maxFreezeMs is ${maxFreezeMs}`;
  }
  return viewed(context, held, { consistency: 'filesystem', agentUs, freezeUs });
}

function freeze({ device, maxFreezeMs, group }: CutContext, signal: AbortSignal): Promise<Frozen | string> {
  return device.freeze(maxFreezeMs, signal, group && (() => group.prepared()));
}

async function reflink(context: CutContext): Promise<Cut | string> {
  const { device, group } = context;
  await group?.prepared();
  await stampBefore(context);
  const before = group && (await device.stamp());
  const agentUs = nowUs(context.clock);
  const held = await hold(context);
  if (typeof held === 'string') return held;
  if (group && before) {
    // Nothing holds the volume still: that it was is proven.
    const alone = before.stamp === undefined ? before.reason : await group.frozen();
    const after = await device.stamp();
    if (alone !== undefined || after.stamp !== before.stamp) {
      await held.view.release();
      return alone ?? 'the volume was written to while the group stood still';
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

/** A view and what changed up to it: by the capture's own views, or a clone of which everything counts as changed. */
async function hold({ device, tracking }: CutContext): Promise<Held | string> {
  if (tracking.capture.hold) return tracking.capture.hold();
  const view = await device.reflink();
  if (typeof view === 'string') return view;
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

async function freezeRead(context: CutContext, signal: AbortSignal): Promise<Cut | string> {
  const { maxFreezeMs, clock } = context;
  const expectedMs = context.expectedMs();
  if (expectedMs > maxFreezeMs * freezeReadRatio) {
    return `reading what changed takes ${Math.round(expectedMs)} ms, more than maxFreezeMs ${maxFreezeMs} leaves; put the image on XFS or btrfs with reflink, or raise maxFreezeMs`;
  }
  if (isBlind(context)) await stampBefore(context);
  const frozen = await freeze(context, signal);
  if (typeof frozen === 'string') return frozen;
  const agentUs = nowUs(clock);
  const deadlineMs = clock.monotonicMs() + maxFreezeMs;
  return readFrozen(context, frozen, { agentUs, deadlineMs }, signal);
}

async function readFrozen(
  context: CutContext,
  frozen: Frozen,
  { agentUs, deadlineMs }: { agentUs: number; deadlineMs: number },
  signal: AbortSignal,
): Promise<Cut> {
  const { maxFreezeMs } = context;
  const released = context.group?.frozen();
  let spooled: Spooled;
  try {
    spooled = isBlind(context)
      ? await spoolFrozen(context, deadlineMs, signal)
      : await spoolStill(context, deadlineMs, signal);
  } catch (error) {
    await frozen.thaw();
    throw error;
  }
  // One that is no cut shall not keep the workload waiting for the others.
  const alone = spooled.refusal ?? (await released);
  const { held, freezeUs } = await frozen.thaw();
  const refusal = alone ?? (held ? undefined : `the freeze did not hold; maxFreezeMs is ${maxFreezeMs}`);
  return fromSpool(spooled.pieces, refusal && `freeze and read: ${refusal}`, {
    consistency: 'filesystem',
    agentUs,
    freezeUs,
  });
}

async function quiet(context: CutContext, signal: AbortSignal): Promise<Cut | string> {
  const pieces: Piece[] = [];
  let refusal: string | undefined;
  let agentUs = 0;
  await context.group?.prepared();
  for (let tries = 0; tries < quietTries; tries++) {
    agentUs = nowUs(context.clock);
    const spooled = await spoolStill(context, Infinity, signal);
    pieces.push(...spooled.pieces);
    refusal = spooled.refusal;
    if (refusal === undefined || bytesOf(pieces) > spoolBytes / 2) break;
  }
  if (refusal === undefined && context.group) refusal = await stillWithAll(context, context.group);
  if (refusal !== undefined && pieces.length === 0) return refusal;
  return fromSpool(pieces, refusal && `quiet interval: ${refusal}`, { consistency: 'crash', agentUs, freezeUs: 0 });
}

/** Nothing was written until all members of the group stood still. */
async function stillWithAll(context: CutContext, group: Hold): Promise<string | undefined> {
  const before = await context.tracking.drain();
  if (before.still === undefined || before.still !== context.stampNow()) return 'the volume was written to';
  const alone = await group.frozen();
  if (alone !== undefined) return alone;
  const after = await context.tracking.drain();
  return after.still === before.still ? undefined : 'the volume was written to while the group stood still';
}

function fromSpool(
  pieces: Piece[],
  refusal: string | undefined,
  facts: Pick<Cut, 'consistency' | 'agentUs' | 'freezeUs'>,
): Cut {
  return {
    ...facts,
    pieces: async function* () {
      yield* pieces;
    },
    broken: async () => refusal,
    release: async () => undefined,
  };
}

interface Spooled {
  pieces: Piece[];
  refusal: string | undefined;
}

/** The capture cannot tell what is written: the freeze alone keeps the volume still. */
function isBlind({ tracking }: CutContext): boolean {
  return tracking.capture.method === 'scan';
}

async function spoolFrozen(context: CutContext, deadlineMs: number, signal: AbortSignal): Promise<Spooled> {
  context.tracking.map.markBytes(0, Infinity);
  return spool(context, deadlineMs, signal);
}

/** No refusal = the volume was not written to from before the first read to after the last. */
async function spoolStill(context: CutContext, deadlineMs: number, signal: AbortSignal): Promise<Spooled> {
  const { tracking } = context;
  const before = await still(context, deadlineMs);
  if (before.still === undefined) return { pieces: [], refusal: before.busy };
  context.stamped(before.still);
  const dirtyBytes = tracking.map.dirty.count * granuleBytes;
  if (dirtyBytes > spoolBytes && !isBlind(context))
    return {
      pieces: [],
      refusal: `${dirtyBytes} bytes are still to be read, more than ${spoolBytes} that fit into memory`,
    };
  const spooled = await spool(context, deadlineMs, signal);
  if (spooled.refusal !== undefined) return spooled;
  const after = await tracking.drain();
  if (after.still === before.still) return spooled;
  return { ...spooled, refusal: 'the volume was written to while it was read' };
}

/** Reads what is marked into memory. */
async function spool(context: CutContext, deadlineMs: number, signal: AbortSignal): Promise<Spooled> {
  const { device, clock } = context;
  const pieces: Piece[] = [];
  let spooled = 0;
  let refusal: string | undefined;
  const { sizeBytes } = await device.facts();
  context.resized(sizeBytes);
  for await (const piece of context.read(device, sizeBytes, false, signal)) {
    pieces.push(detached(piece));
    if (piece.kind === 'content') spooled += piece.bytes.length;
    if (spooled > spoolBytes) refusal = `more than ${spoolBytes} bytes changed since the last round`;
    if (clock.monotonicMs() > deadlineMs) refusal = 'reading the volume took longer than maxFreezeMs';
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
