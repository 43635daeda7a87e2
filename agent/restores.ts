/**
 * Recovery points that the master has this agent write into volumes of its node, or compare with them: the receiving side of
 * Restore. One loop for each: dial, answer offers, write what comes, read the whole volume again, say what it holds.
 *
 * Guarantees: written is only what the node's own list names (--allow-write), only while nobody else uses it, and never a
 * volume that is being mirrored from here; a mark says so before the first byte and until the volume has the point's digest.
 * What is done twice does no harm: a volume that has the point already is answered for as it is.
 * Failure: a broken line is dialled again, and what is there already is not sent again; a refusal goes to the master, with what
 * to do, and is asked again by it.
 */
import { createHash } from 'node:crypto';
import { promises as fs } from 'node:fs';
import type { Logger } from 'pino';
import type { Allow } from '../proto/allow.ts';
import { backoff } from '../proto/backoff.ts';
import { markDifferences } from '../proto/granule.ts';
import { RunningDigest } from '../proto/digest.ts';
import type { Clock, Random } from '../proto/effects.ts';
import { asReplicationError, messageOf, ReplicationError } from '../proto/errors.ts';
import { granuleCount, hashBytes } from '../proto/granule.ts';
import type { Stream } from '../proto/stream.ts';
import { protocolVersion, type Commit, type MirrorReply, type MirrorRequest, type Restore } from '../proto/wire.ts';
import { readHashes } from './comparison.ts';
import type { BlockDevice } from './device.ts';
import { isWithin } from './mounts.ts';
import type { OwnReading } from './ownreading.ts';
import type { RestoreMarks } from './restoremarks.ts';
import { openWriter, type VolumeWriter } from './volumewriter.ts';

export interface RestoresOptions {
  clock: Clock;
  random: Random;
  log: Pick<Logger, 'info' | 'warn'>;
  allow: Pick<Allow, 'mayRead' | 'mayWriteVolume'>;
  marks: RestoreMarks;
  /** For what comparisons note: of ours alone, emptied at the start. */
  comparisons: string;
  connect(signal: AbortSignal, id: string): RestoreCall;
  /** That the control line has agreed on. */
  protocol(): number;
  /** To read a volume that is only compared. */
  openDevice(path: string): BlockDevice;
  reading: OwnReading;
  /** Resolved paths that are mirrored from here now. */
  sources(): Promise<readonly string[]>;
}

type RestoreCall = Stream<MirrorReply, MirrorRequest>;

export interface AssignedRestores {
  set(restores: Restore[]): void;
  /** Until the signal aborts and every loop has ended. */
  run(signal: AbortSignal): Promise<void>;
}

/** Read at once when the whole volume is read again: one page of hashes. */
const verifyGranules = 256;
/** Of a comparison, before it gives way: 8 MiB, which a slow disk reads before whoever waits for it gives up. */
const turnGranules = 128;
const progressEveryMs = 500;
/** A refusal needs a person or another process: it is asked again at this pace at the least. */
const refusedMs = 5000;

export function restores(options: RestoresOptions): AssignedRestores {
  const { clock, log } = options;
  const loops = new Map<string, { restore: string; stop: AbortController; ended: Promise<void> }>();
  let stopped = false;
  const emptied = fs
    .rm(options.comparisons, { recursive: true, force: true })
    .catch((error: unknown) => log.warn({ path: options.comparisons }, messageOf(error)));

  async function loop(restore: Restore, signal: AbortSignal): Promise<void> {
    await emptied;
    const pause = backoff(250, 10_000, options.random);
    while (!signal.aborted) {
      const ending = new AbortController();
      const call = options.connect(AbortSignal.any([signal, ending.signal]), options.random.bytes(8).toString('hex'));
      let waitMs = 0;
      try {
        await converse(options, restore, call, signal);
        pause.reset();
      } catch (thrown) {
        const error = asReplicationError(thrown);
        if (signal.aborted) return;
        waitMs = error.retry === 'never' ? refusedMs : 0;
        log.warn({ recovery: restore.name, path: restore.path, code: error.code }, error.message);
      } finally {
        ending.abort(new ReplicationError('Stopped', 'the call is over'));
      }
      // Done or not: the master takes it from the list when it wants nothing more.
      await clock.sleep(Math.max(waitMs, pause.nextMs()), signal).catch(() => undefined);
    }
  }

  return {
    set(list) {
      if (stopped) return;
      const wanted = new Map(list.map((one) => [one.uid, one]));
      const before = new Map<string, Promise<void>>();
      for (const [uid, one] of loops) {
        if (JSON.stringify(wanted.get(uid)) === one.restore) continue;
        one.stop.abort(new ReplicationError('Stopped', 'the recovery does not want it any more'));
        before.set(uid, one.ended);
        loops.delete(uid);
      }
      for (const [uid, restore] of wanted) {
        if (loops.has(uid)) continue;
        log.info({ recovery: restore.name, path: restore.path, compare: restore.compare }, 'a volume is asked for');
        const stop = new AbortController();
        const ended = (before.get(uid) ?? Promise.resolve()).then(() => loop(restore, stop.signal));
        loops.set(uid, { restore: JSON.stringify(restore), stop, ended });
      }
    },
    async run(signal) {
      await new Promise<void>((resolve) => {
        if (signal.aborted) return resolve();
        signal.addEventListener('abort', () => resolve(), { once: true });
      });
      stopped = true;
      for (const { stop } of loops.values()) stop.abort(new ReplicationError('Stopped', 'the agent is being stopped'));
      await Promise.allSettled([...loops.values()].map(({ ended }) => ended));
    },
  };
}

async function converse(
  options: RestoresOptions,
  restore: Restore,
  call: RestoreCall,
  signal: AbortSignal,
): Promise<void> {
  await call.send({ restore: { protocol: options.protocol(), uid: restore.uid } });
  const first = await call.receive.next();
  if (first.done === true || !first.value.hello)
    throw new ReplicationError('BadMessage', 'MirrorRequest.hello must be the first message');
  try {
    await (restore.compare ? compare(options, restore, call, signal) : write(options, restore, call, signal));
  } catch (thrown) {
    const error = asReplicationError(thrown);
    // What the line itself said needs no answer; the rest only this node can know.
    if (error.code !== 'Disconnected' && error.code !== 'Stopped') {
      await call.send({ refusal: { code: error.code, message: error.message.slice(0, 4000) } }).catch(() => undefined);
      call.end();
      // Its end, so that the words have gone out before the call is cancelled.
      for await (const _ of call.receive);
    }
    throw error;
  }
}

async function welcome(call: RestoreCall, sizeBytes: number): Promise<void> {
  const state = { headSequence: 0, initialized: false, digest: Buffer.alloc(0), sourceId: '' };
  await call.send({ welcome: { protocol: protocolVersion, ...state, sizeBytes, blank: false, incomplete: true } });
}

async function compare(
  options: RestoresOptions,
  restore: Restore,
  call: RestoreCall,
  signal: AbortSignal,
): Promise<void> {
  const path = await options.allow.mayRead(restore.path);
  if (restore.volumeMode === 'Filesystem') {
    // It need not give way: no look at who uses a folder counts the agent itself.
    const { compareFolder } = await import('./treecomparison.ts');
    const folder = `${options.comparisons}/${createHash('sha256').update(restore.uid).digest('hex').slice(0, 32)}`;
    return compareFolder({ restore, path, folder, clock: options.clock }, call, signal);
  }
  const device = options.openDevice(path);
  await options.reading.read(path, device, async (turn) => {
    const { sizeBytes } = await turn(() => device.facts());
    await welcome(call, sizeBytes);
    for await (const { number, offer } of call.receive) {
      if (!offer) throw new ReplicationError('BadMessage', 'only offers are for a volume that is compared');
      const { first, hashes } = offer;
      const own: Buffer[] = [];
      const end = first + hashes.length / hashBytes;
      for (let at = first; at < end; at += turnGranules)
        own.push(await turn(() => readHashes(device, restore.sizeBytes, at, Math.min(turnGranules, end - at))));
      await call.send({ want: { number, bitmap: markDifferences(Buffer.concat(own), hashes) } });
    }
  });
}

async function write(
  options: RestoresOptions,
  restore: Restore,
  call: RestoreCall,
  signal: AbortSignal,
): Promise<void> {
  const path = await options.allow.mayWriteVolume(restore.path);
  const isTree = (await fs.stat(path)).isDirectory();
  if (isTree !== (restore.volumeMode === 'Filesystem'))
    throw new ReplicationError('TargetRefused', `${path} ${isTree ? 'is' : 'is not'} a directory`);
  const source = (await options.sources()).find((one) =>
    isTree ? isWithin(one, path) || isWithin(path, one) : one === path,
  );
  if (source !== undefined)
    throw new ReplicationError(
      'SourceInUse',
      `${source} is mirrored from here; promote or delete that replication first`,
    );
  if (isTree) return writeFolder(options, restore, path, call, signal);
  const volume = await options.reading.letGo(path, () =>
    openWriter(path, restore.sizeBytes, () => options.marks.begin(path, restore)),
  );
  try {
    await welcome(call, restore.sizeBytes);
    let digest: Buffer | undefined;
    for await (const { number, offer, data, verify, commit } of call.receive) {
      signal.throwIfAborted();
      if (offer) {
        const own = await volume.hashes(offer.first, offer.hashes.length / hashBytes);
        await call.send({ want: { number, bitmap: markDifferences(own, offer.hashes) } });
      } else if (data) {
        digest = undefined;
        await volume.write(data);
      } else if (verify) {
        digest = await readAgain(options.clock, restore, volume, call, signal);
        await call.send({ verifyReady: { readBytes: restore.sizeBytes, badGranules: 0 } });
      } else if (commit) {
        if (!digest) throw new ReplicationError('BadMessage', 'Commit: the volume was not read since its last write');
        await settle(options, restore, path, commit, digest);
        await call.send({ committed: { sequence: commit.sequence, digest } });
      } else throw new ReplicationError('BadMessage', 'this message is not for a volume that is written');
    }
  } finally {
    await volume.close();
  }
}

async function writeFolder(
  options: RestoresOptions,
  restore: Restore,
  path: string,
  call: RestoreCall,
  signal: AbortSignal,
): Promise<void> {
  // Loaded when it is needed: an agent connects first.
  const [{ receiveTree }, { TreeWriter }] = await Promise.all([import('./treerestore.ts'), import('./treewriter.ts')]);
  const { marks, reading, clock } = options;
  const before = await marks.of(path);
  const folder = await reading.letGo(path, () =>
    TreeWriter.open({
      real: path,
      slots: restore.sizeBytes,
      indexPath: marks.indexOf(path),
      goesOn: before?.state === 'writing' && before.uid === restore.uid,
      begin: () => marks.begin(path, restore),
    }),
  );
  let isDone = false;
  try {
    await welcome(call, restore.sizeBytes);
    const settled = async (commit: Commit, digest: Buffer): Promise<void> => {
      await settle(options, restore, path, commit, digest);
      isDone = commit.digest?.equals(digest) === true;
    };
    await receiveTree(clock, folder, call, settled, signal);
  } finally {
    await folder.close(isDone);
  }
}

/** Everything durable first, so that what is read is what a crash would leave. */
async function readAgain(
  clock: Clock,
  { sizeBytes }: Restore,
  volume: VolumeWriter,
  call: RestoreCall,
  signal: AbortSignal,
): Promise<Buffer> {
  await volume.sync();
  const running = new RunningDigest();
  const count = granuleCount(sizeBytes);
  let toldMs = clock.monotonicMs();
  for (let first = 0; first < count; first += verifyGranules) {
    signal.throwIfAborted();
    running.add(await volume.hashes(first, Math.min(verifyGranules, count - first)));
    if (clock.monotonicMs() - toldMs < progressEveryMs) continue;
    toldMs = clock.monotonicMs();
    const bytesDone = Math.min(sizeBytes, (first + verifyGranules) * 65536);
    await call.send({ verifyProgress: { bytesDone, bytesTotal: sizeBytes } });
  }
  return running.digest(sizeBytes);
}

/** The mark tells the truth before the master hears of it. */
async function settle(
  { marks, log }: RestoresOptions,
  restore: Restore,
  path: string,
  commit: Commit,
  digest: Buffer,
): Promise<void> {
  if (commit.digest?.equals(digest) !== true) return;
  await marks.written(path, restore, commit.sequence, digest);
  log.info({ recovery: restore.name, path }, `holds point ${commit.sequence}, read again and found right`);
}
