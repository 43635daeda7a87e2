import t from 'tap';
import { maxFaults, restores, type Restores } from '../../../master/restores.ts';
import type { RestoreCall } from '../../../master/offering.ts';
import { ReplicationError } from '../../../proto/errors.ts';
import { protocolVersion, type Restore } from '../../../proto/wire.ts';

const restore: Restore = {
  ...{ uid: 'r/db', name: 'r', replicaUid: 'x', fencingGeneration: '2', path: '/dev/db', volumeMode: 'Block' },
  ...{ sizeBytes: 65536, compare: false, include: [], exclude: [] },
};

/** An agent's call: it says which restore it is for, and nothing else. */
function called(): RestoreCall {
  async function* receive() {
    yield { restore: { protocol: protocolVersion, uid: restore.uid } };
  }
  return { receive: receive(), cancel: () => undefined } as unknown as RestoreCall;
}
const call = (all: Restores) => all.serve('node-a', called(), new AbortController().signal).catch(() => undefined);

t.test('what fails again and again though the line holds is given up, and says what to do', async (t) => {
  const all = restores(() => undefined);
  let attempts = 0;
  const done = all.run(
    'node-a',
    restore,
    async () => {
      attempts += 1;
      throw new ReplicationError('TargetFailed', 'write /dev/db: EIO');
    },
    new AbortController().signal,
  );
  const thrown = t.rejects(done, { code: 'TargetFailed', message: /EIO; tried 10 times\. See to \/dev\/db on node-a/ });
  for (let i = 0; i < maxFaults - 1; i++) await call(all);
  t.equal(all.restoresFor('node-a').length, 1, 'it is asked for until then');
  await call(all);
  await thrown;
  t.equal(attempts, maxFaults);
  t.same(all.restoresFor('node-a'), [], 'and no more');
});

t.test('a line that breaks is waited for, however often', async (t) => {
  const all = restores(() => undefined);
  let attempts = 0;
  const done = all.run(
    'node-a',
    restore,
    async () => {
      attempts += 1;
      if (attempts <= 3 * maxFaults) throw new ReplicationError('Disconnected', 'the line broke');
      return attempts;
    },
    new AbortController().signal,
  );
  for (let i = 0; i <= 3 * maxFaults; i++) await call(all);
  t.equal(await done, 3 * maxFaults + 1);
});

t.test('what a person must change is told at once', async (t) => {
  const all = restores(() => undefined);
  const done = all.run(
    'node-a',
    restore,
    () => Promise.reject(new ReplicationError('SourceInUse', 'it is mounted')),
    new AbortController().signal,
  );
  const thrown = t.rejects(done, { code: 'SourceInUse', message: 'it is mounted' });
  await call(all);
  await thrown;
});
