import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import t from 'tap';
import { Replica } from '../../../../master/replica/replica.ts';
import { systemEffects } from '../../../../proto/system.ts';

for (const mode of ['Block', 'Filesystem'] as const) {
  t.test(`deleting a snapshot that was never made does nothing: ${mode}`, async (t) => {
    const folder = await mkdtemp(`${tmpdir()}/snapshot-`);
    t.teardown(() => rm(folder, { recursive: true, force: true }));
    const replica = await Replica.open({ effects: systemEffects, place: { folder, indexFolder: folder }, mode });
    t.teardown(() => replica.close());
    await replica.deleteSnapshot('never');
    t.equal(replica.snapshotPoint('never'), undefined);
  });
}
