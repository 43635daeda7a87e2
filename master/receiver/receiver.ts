/**
 * Replicas on one volume, kept for a master that dials in: the calls of the service Receiver.
 *
 * Guarantees: a replica is open for one Hold call at a time. The newest one has it, unless it comes from a master of an older
 * term, which is turned away; those before it end first, with the Mirror calls that belong to them. Who may write stays the
 * replica's own rule (generations), so a master that lost the lead writes nothing even where terms are not known.
 * Nothing outside the volume is touched, nor a replica's folder by a copy.
 */
import { normalize } from 'node:path';
import type { Effects } from '../../proto/effects.ts';
import { ReplicationError } from '../../proto/errors.ts';
import type { HoldDone, HoldRequest } from '../../proto/holdwire.ts';
import type { Stream } from '../../proto/stream.ts';
import { protocolVersion, type MirrorReply, type MirrorRequest } from '../../proto/wire.ts';
import { Replica } from '../replica/replica.ts';
import { readHello, serveSession, type MirrorStream } from '../session.ts';
import { isReplicaFolder, openStorage } from '../storage.ts';
import { Hold, pointOf, type HoldStream } from './hold.ts';
import { toldClock } from './toldclock.ts';

export interface Receiver {
  hold(stream: HoldStream, signal: AbortSignal): Promise<void>;
  mirror(stream: MirrorStream, signal: AbortSignal): Promise<void>;
  read(stream: Stream<MirrorRequest, MirrorReply>, signal: AbortSignal): Promise<void>;
}

interface Open {
  /** Of HoldOpen: what Mirror calls name. */
  id: string;
  hold: Hold;
  /** Resolves when it is over and the replica is closed. */
  over: Promise<void>;
}

/** @param volume folder, absolute: each replica is a folder in it */
export function openReceiver(volume: string, system: Effects): Receiver {
  const clock = toldClock(system.clock);
  const effects = { ...system, clock: clock.now };
  const driver = openStorage({ driver: 'directory', parameters: { path: volume } }, effects, clock.trusted);
  /** By replica. */
  const open = new Map<string, Open>();
  const all = new Set<Hold>();
  let newestTerm = 0;

  function admit(term: number): void {
    const older = (): ReplicationError => new ReplicationError('Fenced', 'a newer master has taken over');
    if (term < newestTerm) throw older();
    newestTerm = term;
    for (const hold of all) if (hold.term < term) hold.ending.abort(older());
  }

  /** Opens the replica for this hold, once nobody else has it. */
  async function take(hold: Hold, request: NonNullable<HoldRequest['open']>, over: Promise<void>): Promise<void> {
    const { uid, name, volumeMode, hold: id } = request;
    if (!isReplicaFolder(`-${uid}`) || !/^[a-z0-9-]{1,63}$/.test(name))
      throw new ReplicationError('BadMessage', 'HoldOpen.uid or name is none of a replica');
    if (volumeMode !== 'Block' && volumeMode !== 'Filesystem')
      throw new ReplicationError('BadMessage', `HoldOpen.volume_mode ${volumeMode} is neither Block nor Filesystem`);
    if ([...open.values()].some((other) => other.hold === hold))
      throw new ReplicationError('BadMessage', 'HoldRequest.open comes once');
    const before = open.get(uid);
    open.set(uid, { id, hold, over });
    before?.hold.ending.abort(new ReplicationError('Fenced', 'the replica is held by a newer call of its master'));
    await before?.over;
    hold.ending.signal.throwIfAborted();
    const place = await driver.provision(name, uid);
    const onDoubt = (why: string): void => hold.doubt(why);
    const replica = await Replica.open({ effects, place, mode: volumeMode, trusted: clock.trusted, onDoubt });
    if (hold.ending.signal.aborted) await replica.close();
    hold.ending.signal.throwIfAborted();
    hold.replica = replica;
  }

  async function remove(own: Hold, uid: string): Promise<Partial<HoldDone>> {
    const held = open.get(uid);
    if (held?.hold === own) throw new ReplicationError('BadMessage', 'HoldRequest.remove: let it go first');
    await driver.mustBeUnlocked(uid);
    held?.hold.ending.abort(new ReplicationError('Stopped', 'the replica is being removed'));
    await held?.over;
    await driver.remove(uid);
    return {};
  }

  /** @throws NotAssigned */
  function heldBy(uid: string, id: string | undefined): { hold: Hold; replica: Replica } {
    const held = open.get(uid);
    const replica = held?.hold.replica;
    if (!replica || held.id !== id)
      throw new ReplicationError('NotAssigned', `replica ${uid} is not held by this master`);
    return { hold: held.hold, replica };
  }

  async function serveHold(stream: HoldStream, hold: Hold, over: Promise<void>, signal: AbortSignal): Promise<void> {
    for await (const request of stream.receive) {
      signal.throwIfAborted();
      hold.ending.signal.throwIfAborted();
      clock.tell(request.nowUs, request.trustedUs);
      const { cancel, open: opening, remove: removing, recover } = request;
      if (cancel) hold.cancel(cancel.id);
      else
        hold.begin(request, async (signal) => {
          if (opening) await take(hold, opening, over);
          if (opening || request.tick) return {};
          if (removing) return remove(hold, removing.uid);
          for (const path of [recover?.path, recover?.indexPath]) mustBeWithin(volume, path ?? '');
          return hold.run(request, signal);
        });
    }
  }

  return {
    async hold(stream, signal) {
      const first = await stream.receive.next();
      const hello = first.done === true ? undefined : first.value.hello;
      if (first.done === true || !hello) throw new ReplicationError('BadMessage', 'HoldRequest.hello must come first');
      if (hello.protocol !== protocolVersion) {
        const text = `the master speaks protocol ${hello.protocol}, this receiver ${protocolVersion}; upgrade the older one`;
        throw new ReplicationError('VersionMismatch', text);
      }
      admit(hello.term);
      clock.tell(first.value.nowUs, first.value.trustedUs);
      const hold = new Hold(stream, hello.term, driver, system.clock);
      const over = Promise.withResolvers<void>();
      const cut = (): void => hold.ending.abort(signal.reason);
      signal.addEventListener('abort', cut, { once: true });
      // What has the call end before its master does.
      const ended = new Promise<never>((_, reject) => {
        hold.ending.signal.addEventListener('abort', () => reject(hold.ending.signal.reason as Error), { once: true });
      });
      all.add(hold);
      try {
        await stream.send({ id: first.value.id, done: {} });
        await Promise.race([ended, serveHold(stream, hold, over.promise, signal)]);
      } finally {
        signal.removeEventListener('abort', cut);
        ended.catch(() => undefined);
        hold.ending.abort(new ReplicationError('Stopped', 'its master has let it go'));
        await hold.close();
        all.delete(hold);
        for (const [uid, { hold: other }] of open) if (other === hold) open.delete(uid);
        over.resolve();
      }
    },

    async read(stream, signal) {
      const first = await stream.receive.next();
      const asked = first.done === true ? undefined : first.value.restore;
      if (!asked) throw new ReplicationError('BadMessage', 'MirrorReply.restore must come first');
      const { uid, hold: id, sequence = 0 } = asked;
      const { hold, replica } = heldBy(uid, id);
      let number = 0;
      const ending = AbortSignal.any([signal, hold.ending.signal]);
      await replica.pour(pointOf(replica, sequence), (part) => stream.send({ number: ++number, ...part }), ending);
    },

    async mirror(stream, signal) {
      const hello = await readHello(stream);
      const { hold, replica } = heldBy(hello.replicationUid, hello.hold);
      // Groups are the master's: it has checked what it relays.
      const group = { hear: () => undefined, mayCommit: () => true, leave: () => undefined };
      const events = { onCommit: () => hold.tellState(), onVerified: () => hold.tellState(), group };
      const cancel = (): void => stream.cancel();
      hold.ending.signal.addEventListener('abort', cancel, { once: true });
      try {
        const ending = AbortSignal.any([signal, hold.ending.signal]);
        await serveSession(replica, hello.writer ?? '', hello, stream, system.clock, events, ending);
      } finally {
        hold.ending.signal.removeEventListener('abort', cancel);
        hold.tellState();
      }
    },
  };
}

/** @throws TargetRefused. Empty: nothing is written */
function mustBeWithin(volume: string, path: string): void {
  if (path === '') return;
  const [first = ''] = path.startsWith(`${volume}/`) ? path.slice(volume.length + 1).split('/') : [];
  if (first === '' || normalize(path) !== path || isReplicaFolder(first))
    throw new ReplicationError('TargetRefused', `${path} is not within ${volume}, or in a replica`);
}
