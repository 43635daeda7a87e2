import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import t from 'tap';
import { describeVolume, listVolumes } from '../../../agent/volumes.ts';
import { allowList } from '../../../proto/allow.ts';
import { decode, encode } from '../../../proto/wire.ts';
import { loopMount, missingForLoop, run } from '../../loop.ts';

const root = realpathSync(mkdtempSync(join(tmpdir(), 'volumes-')));
t.teardown(() => rmSync(root, { recursive: true }));
const at = (path: string): string => join(root, path);

function put(path: string, content: object | string = ''): void {
  mkdirSync(dirname(at(path)), { recursive: true });
  writeFileSync(at(path), typeof content === 'string' ? content : JSON.stringify(content));
}

const isRoot = process.getuid?.() === 0;
const csi = 'kubelet/pods/uid-1/volumes/kubernetes.io~csi';
for (const name of ['pvc-a', 'inline', 'half-made', 'unmounted'])
  mkdirSync(at(`${csi}/${name}/mount`), { recursive: true });
const mounted = isRoot ? ['pvc-a', 'inline', 'half-made'].map((name) => at(`${csi}/${name}/mount`)) : [];
for (const path of mounted) run('mount', '-t', 'tmpfs', '-o', 'size=64k', 'volume', path);
t.teardown(() => mounted.forEach((path) => run('umount', path)));
put(`${csi}/pvc-a/vol_data.json`, { driverName: 'csi.example', volumeHandle: 'vol-a', specVolID: 'pvc-a' });
put(`${csi}/inline/vol_data.json`, { driverName: 'csi.example', volumeLifecycleMode: 'Ephemeral' });
put(`${csi}/half-made/vol_data.json`, '{"driverNa');
put(`${csi}/unmounted/vol_data.json`, { driverName: 'csi.example', volumeHandle: 'vol-u', specVolID: 'unmounted' });
mkdirSync(at('kubelet/pods/uid-1/volumes/kubernetes.io~empty-dir/cache'), { recursive: true });
mkdirSync(at('tree'));
put('image');
truncateSync(at('image'), 12345);
put('tree/db.img', 'x');
put('tree/notes.txt', 'x');
mkdirSync(at('tree/below'));
put('tree/below/db.img', 'x');

const allow = [at('image'), at('tree'), at('absent')];
const rules = { allow, own: [at('data')], recoveries: [], kubelet: at('kubelet') };
const options = { mayRead: allowList(rules).mayRead, allow, kubelet: at('kubelet') };

await t.test('volumes of pods are listed with the names of their driver', async (t) => {
  const volumes = await listVolumes(options);
  const of = (path: string): object => volumes.find((volume) => volume.path === at(path)) ?? {};
  if (isRoot) {
    t.match(of(`${csi}/pvc-a/mount`), {
      kind: 'directory',
      volumeMode: 'Filesystem',
      csiDriver: 'csi.example',
      csiVolume: 'vol-a',
      persistentVolume: 'pvc-a',
      podUid: 'uid-1',
      eligible: true,
      reason: '',
    });
    t.match(of(`${csi}/inline/mount`), { eligible: false, reason: /ephemeral/, persistentVolume: '' });
    t.match(of(`${csi}/half-made/mount`), { eligible: true, persistentVolume: 'half-made', csiDriver: '' });
  }
  t.same(of(`${csi}/unmounted/mount`), {}, 'its driver has yet to mount it');
  t.match(of('image'), { kind: 'image', volumeMode: 'Block', sizeBytes: 12345, eligible: true });
  t.match(of('tree'), { kind: 'directory', volumeMode: 'Filesystem', eligible: true });
  t.match(of('tree/db.img'), { kind: 'image', volumeMode: 'Block', sizeBytes: 1, eligible: true });
  for (const path of ['tree/notes.txt', 'tree/below', 'tree/below/db.img'])
    t.same(of(path), {}, `${path} is not looked for`);
  t.same(of('absent'), {});
  const paths = volumes.map(({ path }) => path);
  t.same(paths, [...new Set(paths)].sort());
  for (const { eligible, reason } of volumes) t.equal(eligible, reason === '', 'a reason, or eligible');
  const sent = { inventory: { volumes } };
  t.same(decode('AgentMessage', encode('AgentMessage', sent)).inventory, sent.inventory, 'goes over the wire');
});

await t.test('a path that is asked for is described, or refused with the cure', async (t) => {
  t.match(await describeVolume(at('image'), options), { kind: 'image', eligible: true });
  t.match(await describeVolume(at('kubelet/pods/uid-1/volumes/kubernetes.io~empty-dir/cache'), options), {
    eligible: false,
    reason: /emptyDir.*PersistentVolumeClaim/,
  });
  t.match(await describeVolume(root, options), { eligible: false, reason: /own data/ });
  t.match(await describeVolume(tmpdir(), options), { eligible: false, reason: /--allow|own data/ });
  t.match(await describeVolume(at('absent'), options), { eligible: false, reason: /does not exist/ });
  t.match(await describeVolume('/', options), { eligible: false, reason: /system/ });
});

await t.test('devices and mounts', { skip: missingForLoop('ext4') }, async (t) => {
  const { device, image, mountPoint } = await loopMount(t, 'ext4', 32);
  const pv = at(`${csi}/pvc-b/mount`);
  mkdirSync(pv, { recursive: true });
  put(`${csi}/pvc-b/vol_data.json`, { driverName: 'csi.example', volumeHandle: 'vol-b', specVolID: 'pvc-b' });
  run('mount', '--bind', mountPoint, pv);
  t.teardown(() => run('umount', pv));
  const links = 'kubelet/pods/uid-1/volumeDevices/kubernetes.io~csi';
  mkdirSync(at(links), { recursive: true });
  symlinkSync(device, at(`${links}/pvc-c`));
  put('kubelet/plugins/kubernetes.io/csi/volumeDevices/pvc-c/data/vol_data.json', {
    driverName: 'csi.example',
    volumeHandle: 'vol-c',
    specVolID: 'pvc-c',
  });
  const volumes = await listVolumes(options);
  const of = (path: string): object => volumes.find((volume) => volume.path === path) ?? {};
  t.match(of(device), { kind: 'loop', sizeBytes: 32 << 20, filesystem: 'ext4', eligible: false, reason: /--allow/ });
  t.match(of(mountPoint), { kind: 'mount', filesystem: 'ext4', eligible: false, reason: /hostPath.*--allow/ });
  t.match(of(pv), { kind: 'mount', csiVolume: 'vol-b', filesystem: 'ext4', mountPoint: pv, eligible: true });
  t.match(of(at(`${links}/pvc-c`)), {
    kind: 'loop',
    volumeMode: 'Block',
    sizeBytes: 32 << 20,
    csiVolume: 'vol-c',
    filesystem: 'ext4',
    eligible: true,
  });
  t.match(of('/'), { eligible: false });
  const named = { ...options, mayRead: allowList({ ...rules, allow: [image] }).mayRead };
  t.match(await describeVolume(image, named), { kind: 'image', filesystem: 'ext4', mountPoint, eligible: true });
});
