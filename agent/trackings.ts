/**
 * The block volumes that this agent tracks, one Tracking per replication for as long as the agent lives: writes are noted
 * while the line is down, while mirroring is paused, and while the replication is not this agent's to send.
 *
 * The best capture that proves itself on the volume is taken: block devices with tracing are traced, images on a filesystem
 * with reflinks are compared by their extents, everything else is scanned. What the better ones lacked is the reason of the one that is taken.
 * Where the replication asks for snapshots of the storage, these are taken and nothing else is.
 */
import { createHash } from 'node:crypto';
import { promises as fs, statSync } from 'node:fs';
import { basename } from 'node:path';
import type { Logger } from 'pino';
import { messageOf } from '../proto/errors.ts';
import type { Clock } from '../proto/effects.ts';
import { countsReads, tryBlockStat } from './blockstat.ts';
import type { BlockCapture } from './capture/block.ts';
import { removeSnapshot } from './capture/btrfs.ts';
import { CsiCbt, type CsiCbtOptions, type StorageCopies } from './capture/csicbt.ts';
import { DirtyMap } from './capture/dirtymap.ts';
import { Extents, removeClones } from './capture/extents.ts';
import { Ftrace } from './capture/ftrace.ts';
import { mapFile } from './capture/mapfile.ts';
import { Rescan } from './capture/rescan.ts';
import { openTracefs } from './capture/tracefs.ts';
import { Tracer } from './capture/tracer.ts';
import { Tracking, type CaptureEvent } from './capture/tracking.ts';
import type { BlockDevice } from './device.ts';
import { folderOf } from './opening.ts';

export interface Trackings {
  /**
   * Of this replication; anew when nothing but a scan worked the last time, and for what is not traced when it is of another path now.
   * A traced device may have another name (its pod was started anew): that it is another one is for the capture to notice.
   */
  of(
    uid: string,
    path: string,
    device: BlockDevice,
    event: (event: CaptureEvent) => void,
    copies?: { kind: StorageCopies; open: SnapshotOpener },
  ): Promise<Tracking>;
  /** Drops what is kept of replications that are none of these: dirty maps, clones, snapshots, indexes of trees. */
  forgetOthers(uids: readonly string[]): Promise<void>;
  /** Keeps the kernel's ring from filling. Until the signal aborts. */
  run(signal: AbortSignal): Promise<void>;
  /** Everything that was noted is kept. */
  close(): Promise<void>;
}

/** Of the storage that takes and compares them. @throws ReplicationError when it cannot now */
export type SnapshotOpener = () => Promise<CsiCbtOptions>;

export interface TrackingsOptions {
  dataDir: string;
  clock: Clock;
  log: Pick<Logger, 'info'>;
}

export function openTrackings(options: TrackingsOptions): Trackings {
  const { dataDir, clock, log } = options;
  const known = new Map<string, Known>();
  const tracing = openTracer(dataDir, clock);
  if (typeof tracing === 'string') log.info(`block devices are scanned, not traced: ${tracing}`);

  function choose(uid: string, place: { path: string }, device: BlockDevice): BlockCapture {
    const { path } = place;
    if (!statSync(path).isBlockDevice()) return new Extents({ path, name: basename(folderOf(dataDir, uid)) });
    if (typeof tracing === 'string') return new Rescan(device, `no tracing: ${tracing}`);
    return new Ftrace({
      tracer: tracing,
      clock,
      stat: () => tryBlockStat(place.path),
      isCounting: () => countsReads(place.path),
    });
  }

  return {
    async of(uid, path, device, event, copies) {
      const found = known.get(uid);
      const asked = copies?.kind;
      if (found && found.asked === asked && goesOn(found, path)) {
        Object.assign(found.place, { path });
        found.device = device;
        return found.tracking.with(event);
      }
      await found?.tracking.close();
      const place = { path };
      const tracking = new Tracking({
        map: new DirtyMap(mapFile(`${folderOf(dataDir, uid)}/blockmap`)),
        ...(copies
          ? { capture: new CsiCbt({ kind: copies.kind, ...(await copies.open()) }) }
          : {
              capture: choose(uid, place, device),
              fallBack: (why) => new Rescan(known.get(uid)?.device ?? device, why),
            }),
        event,
      });
      known.set(uid, { place, device, tracking, asked });
      return tracking;
    },
    async forgetOthers(uids) {
      for (const [uid, { tracking }] of known) {
        if (uids.includes(uid)) continue;
        known.delete(uid);
        await tracking.close();
      }
      const kept = new Set(uids.map((uid) => basename(folderOf(dataDir, uid))));
      for (const name of await fs.readdir(`${dataDir}/replications`).catch(() => [])) {
        if (kept.has(name)) continue;
        const folder = `${dataDir}/replications/${name}`;
        const state = (await mapFile(`${folder}/blockmap`).read())?.header.state;
        // Not yet where the image's filesystem is not there: tried again at the next list.
        if ((await removeClones(name, state)) && (await removeSnapshot(folder)))
          await fs.rm(folder, { recursive: true, force: true });
      }
    },
    async run(signal) {
      if (typeof tracing !== 'string') await tracing.run(signal);
    },
    async close() {
      if (typeof tracing === 'string') return;
      tracing.drain();
      // Tracing goes on without us: what is written until the next agent comes waits in the ring.
      for (const { tracking } of known.values()) await tracking.detach();
      tracing.close();
    },
  };
}

interface Known {
  place: { path: string };
  device: BlockDevice;
  tracking: Tracking;
  /** For what its storage makes. */
  asked: StorageCopies | undefined;
}

function goesOn({ place, tracking }: Known, path: string): boolean {
  const { method } = tracking.capture;
  if (method === 'scan') return false;
  // Snapshots are of the claim, wherever its pod has it.
  return place.path === path || method === 'csi-cbt' || (method === 'ftrace' && statSync(path).isBlockDevice());
}

/** By the (resolved) data directory: several agents of one machine do not meet, and each finds its own again. */
export function traceInstance(dataDir: string): string {
  return `cdmr-${createHash('sha256').update(dataDir).digest('hex').slice(0, 16)}`;
}

function openTracer(dataDir: string, clock: Clock): Tracer | string {
  try {
    return new Tracer(openTracefs({ instance: traceInstance(dataDir) }), clock);
  } catch (error) {
    return messageOf(error);
  }
}
