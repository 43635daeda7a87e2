/** The replicas of one receiver as a storage driver. Failure: a receiver that is not there is Disconnected. */
import { untilFromWire, type HoldDone } from '../../proto/holdwire.ts';
import type { StorageDriver } from '../storage.ts';
import { HoldCall, RemoteReplica, type Ask, type Line } from './remote.ts';

export function receiverStorage(line: Line): StorageDriver {
  const ask = (one: Ask): Promise<Partial<HoldDone>> => askOnce(line, one);
  return {
    open: (options) => RemoteReplica.open(line, options),
    async remove(uid) {
      await ask({ remove: { uid } });
    },
    async list() {
      return (await ask({ list: {} })).uids ?? [];
    },
    async locks(uid) {
      const { locked = [] } = await ask({ locks: { uid } });
      return new Map(locked.map(({ name, untilMs }) => [name, untilFromWire(untilMs)]));
    },
    async usage(uid) {
      const { known, baseBytes = 0, journalBytes = 0, snapshotBytes = 0 } = await ask({ usage: { uid } });
      return known === true ? { baseBytes, journalBytes, snapshotBytes } : undefined;
    },
    async space() {
      const { capacityBytes = 0, freeBytes = 0 } = await ask({ space: {} });
      return { capacityBytes, freeBytes };
    },
    async reflink() {
      return (await ask({ space: {} })).reflink === true;
    },
  };
}

/** A call for one question. */
async function askOnce(line: Line, ask: Ask): Promise<Partial<HoldDone>> {
  const call = await HoldCall.begin(
    line,
    () => undefined,
    () => undefined,
  );
  try {
    return await call.ask(ask);
  } finally {
    await call.end();
  }
}
