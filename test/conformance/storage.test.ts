import { mkdirSync, writeFileSync } from 'node:fs';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { receiverStorage } from '../../master/receiver/driver.ts';
import type { OnDemandReplica } from '../../master/replica/ondemand.ts';
import { OpenSet } from '../../master/replica/openset.ts';
import { openStorage, type StorageDriver } from '../../master/storage.ts';
import type { Clock } from '../../proto/effects.ts';
import { systemDisk, systemEffects } from '../../proto/system.ts';
import { loopMount, missingForLoop, missingForTmpfs, tmpfsMount } from '../loop.ts';
import { startReceiver } from '../receiver.ts';
import { storageSuite, type StorageKind } from './storage.ts';

async function directory(
  folder: string,
  reflink: boolean,
  { disk = systemDisk, openReplicas = 500 } = {},
): Promise<StorageKind> {
  const openSet = new OpenSet<OnDemandReplica>(openReplicas);
  const copies = join(folder, 'copies');
  const path = join(folder, 'class');
  mkdirSync(copies);
  // Kernels and rights differ in what they can: the promise is that it is used where it is there.
  const probe = join(folder, 'probe');
  writeFileSync(probe, '');
  const immutable = (await disk.immutable?.(probe, true)) === true;
  await disk.immutable?.(probe, false);
  return {
    open: (clock) =>
      openStorage({ driver: 'directory', parameters: { path } }, { ...systemEffects, disk }, clock, openSet),
    ...{ folder: path, disk, copies, reflink, immutable },
  };
}

t.test('directory on XFS with reflinks', { skip: missingForLoop('xfs') }, async (t) => {
  const { mountPoint } = await loopMount(t, 'xfs', 320, ['-m', 'reflink=1']);
  const kind = await directory(mountPoint, true);
  t.ok(kind.immutable, 'files can be made immutable');
  await storageSuite(t, kind);
});

t.test('directory on ext4, each replica closed after each use', { skip: missingForLoop('ext4') }, async (t) => {
  const { mountPoint } = await loopMount(t, 'ext4', 128);
  await storageSuite(t, await directory(mountPoint, false, { openReplicas: 0 }));
});

t.test('directory on tmpfs', { skip: missingForTmpfs() }, async (t) => {
  await storageSuite(t, await directory(tmpfsMount(t), false));
});

t.test('directory where nothing can be shared or made immutable, as on NFS', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'storage-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const copying = {
    ...systemDisk,
    immutable: async () => false,
    async clone(from: string, to: string): Promise<'copy'> {
      await cp(from, to, { errorOnExist: true, force: false });
      return 'copy';
    },
  };
  await storageSuite(t, await directory(folder, false, { disk: copying }));
});

t.test('a receiver on ext4', { skip: missingForLoop('ext4') }, async (t) => {
  const { mountPoint: folder } = await loopMount(t, 'ext4', 128);
  const receiver = await startReceiver(t, folder);
  const copies = join(folder, 'copies');
  mkdirSync(copies);
  const open = (clock: Clock): StorageDriver => receiverStorage(receiver.line(clock));
  await storageSuite(t, { open, folder, copies, disk: systemDisk, reflink: false, immutable: true });
});
