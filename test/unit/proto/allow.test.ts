import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { existsSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { allowList, type Allow } from '../../../proto/allow.ts';

const root = realpathSync(mkdtempSync(join(tmpdir(), 'allow-')));
t.teardown(() => rmSync(root, { recursive: true }));
const at = (path: string): string => join(root, path);
const csi = 'kubelet/pods/uid/volumes/kubernetes.io~csi/pv1';

for (const folder of [
  'vol/sub',
  'volume-beside',
  'data/state',
  'data/recoveries/one',
  `${csi}/mount/sub`,
  'kubelet/pods/uid/volumes/kubernetes.io~empty-dir/cache',
  'kubelet/pods/uid/volumes/kubernetes.io~secret/token',
  'kubelet/pods/uid/volumes/kubernetes.io~nfs/pv2',
  'kubelet/pods/uid/volumeDevices/kubernetes.io~csi',
  'kubelet/plugins/kubernetes.io/csi/driver/hash/globalmount',
  'kubelet/pki',
  'elsewhere',
])
  mkdirSync(at(folder), { recursive: true });
for (const file of [`${csi}/vol_data.json`, 'vol/image', 'images.img', 'elsewhere/secret'])
  writeFileSync(at(file), 'x');
for (const [link, target] of [
  ['vol/to-etc', '/etc'],
  ['vol/to-passwd', '/etc/passwd'],
  ['vol/to-elsewhere', at('elsewhere')],
  ['vol/up', '..'],
  ['vol/nowhere', at('elsewhere/not-yet')],
  ['vol/inside', 'sub'],
  ['vol/to-data', at('data')],
  [`${csi}/mount/escape`, at('elsewhere')],
  ['into', at('vol/sub')],
] as const)
  symlinkSync(target, at(link));

const rules = {
  allow: [at('vol'), at('images.img')],
  own: [at('data')],
  recoveries: [at('data/recoveries')],
  kubelet: at('kubelet'),
};
const allow = allowList(rules);

async function verdict(what: Allow['mayRead'], path: string): Promise<string> {
  return what(path).then(
    (real) => real,
    (error: unknown) => `${(error as { code: string }).code}: ${(error as Error).message}`,
  );
}

t.test('what may be read', async (t) => {
  const yes: [path: string, real?: string][] = [
    ['vol'],
    ['vol/'],
    ['vol//sub/.', 'vol/sub'],
    ['vol/image'],
    ['images.img'],
    ['vol/inside', 'vol/sub'],
    ['into', 'vol/sub'],
    ['data/recoveries/one'],
    [`${csi}/mount`],
    [`${csi}/mount/sub`],
    ['kubelet/pods/uid/volumes/kubernetes.io~nfs/pv2'],
    ['kubelet/plugins/kubernetes.io/csi/driver/hash/globalmount'],
  ];
  for (const [path, real = path.replace(/\/$/, '')] of yes) {
    t.equal(await verdict(allow.mayRead, `${root}/${path}`), at(real), path);
  }
  const no: [path: string, why: RegExp][] = [
    ['volume-beside', /^SourceRefused: .*--allow .*volume-beside/],
    ['elsewhere', /^SourceRefused: .*hostPath.*--allow/],
    ['elsewhere/none', /^SourceRefused: .*--allow/],
    ['vol/none', /^SourceGone: /],
    ['vol/to-etc', /^SourceRefused: .*that is \/etc\) is in the system directory/],
    ['vol/to-passwd', /^SourceRefused: .*system directory/],
    ['vol/to-elsewhere/secret', /^SourceRefused: .*that is .*elsewhere\/secret\)/],
    ['vol/up/elsewhere', /^SourceRefused/],
    ['vol/../elsewhere', /^SourceRefused: .*'\.\.'/],
    ['vol/nowhere', /^SourceRefused/],
    ['vol/to-data', /^SourceRefused: .*own data/],
    ['', /^SourceRefused: .*holds this program's own data/],
    ['data', /^SourceRefused: .*own data/],
    ['data/state', /^SourceRefused: .*own data/],
    ['data/recoveries', /^SourceRefused: .*own data/],
    [csi, /^SourceRefused/],
    [`${csi}/vol_data.json`, /^SourceRefused/],
    [`${csi}/mount/escape`, /^SourceRefused: .*elsewhere/],
    ['kubelet', /^SourceRefused: .*kubelet/],
    ['kubelet/pki', /^SourceRefused/],
    ['kubelet/pods/uid/volumes/kubernetes.io~empty-dir/cache', /^SourceRefused: .*emptyDir.*PersistentVolumeClaim/],
    ['kubelet/pods/uid/volumes/kubernetes.io~secret/token', /^SourceRefused: .*Secret/],
  ];
  for (const [path, why] of no) t.match(await verdict(allow.mayRead, `${root}/${path}`), why, path || '(all of it)');
});

t.test('ephemeral volumes and own data stay refused though listed', async (t) => {
  const wide = allowList({ ...rules, allow: [root] });
  t.equal(await verdict(wide.mayRead, at('elsewhere')), at('elsewhere'));
  t.match(await verdict(wide.mayRead, root), /own data/);
  t.match(await verdict(wide.mayRead, at('data/state')), /own data/);
  t.match(await verdict(wide.mayRead, at('kubelet/pods/uid/volumes/kubernetes.io~empty-dir/cache')), /emptyDir/);
});

t.test('what own data lie on is refused', async (t) => {
  const layered = allowList({ ...rules, ownLayers: async () => [at('images.img')] });
  t.match(await verdict(layered.mayRead, at('images.img')), /own data lie on/);
  t.equal(await verdict(layered.mayRead, at('vol/image')), at('vol/image'));
});

t.test('system directories can be neither listed nor used', async (t) => {
  for (const entry of [
    '/',
    '//',
    '/etc',
    '/etc/',
    '/usr/share',
    '/proc/self',
    '/sys',
    '/dev',
    '/run/x',
    '/var',
    '/var/lib/.',
  ]) {
    t.throws(() => allowList({ ...rules, allow: [entry] }), { code: 'SourceRefused' }, entry);
  }
  t.throws(() => allowList({ ...rules, allow: ['relative'] }), { message: /absolute/ });
  for (const path of ['/', '/etc', '/usr/bin', '/proc/self/root', '/dev', '/dev/null', 'relative', '/etc\0']) {
    t.match(await verdict(allow.mayRead, path), /^SourceRefused/, path);
    t.match(await verdict(allow.mayWriteRecovery, path), /^TargetRefused/, path);
  }
});

t.test('where a recovery may write', async (t) => {
  for (const path of ['vol', 'vol/new', 'vol/new/deep', 'data/recoveries/two', `${csi}/mount/new`]) {
    t.equal(await verdict(allow.mayWriteRecovery, at(path)), at(path), path);
  }
  t.equal(await verdict(allow.mayWriteRecovery, at('into/new')), at('vol/sub/new'));
  const no: [path: string, why: RegExp][] = [
    ['elsewhere/new', /--allow .*elsewhere\/new/],
    ['vol/to-elsewhere/new', /that is .*elsewhere\/new/],
    ['vol/to-etc/new', /system directory/],
    ['vol/nowhere', /./],
    ['vol/nowhere/new', /./],
    ['vol/image/new', /ENOTDIR/],
    ['data/new', /own data/],
    ['data/recoveries', /own data/],
    ['data/recoveries/../state', /'\.\.'/],
  ];
  for (const [path, why] of no) {
    const answer = await verdict(allow.mayWriteRecovery, `${root}/${path}`);
    t.match(answer, /^TargetRefused/, path);
    t.match(answer, why, path);
  }
});

t.test('a block device is allowed by its path', async (t) => {
  const device = ['/dev/loop0', '/dev/vda', '/dev/sda', '/dev/nvme0n1'].find(
    (path) => existsSync(path) && statSync(path).isBlockDevice(),
  );
  if (!device) return t.pass('no block device here');
  t.match(await verdict(allow.mayRead, device), /^SourceRefused: .*--allow/);
  const listed = allowList({ ...rules, allow: [device] });
  t.equal(await verdict(listed.mayRead, device), device);
  t.match(await verdict(listed.mayWriteRecovery, device), /^TargetRefused: .*device/);
  const link = at('kubelet/pods/uid/volumeDevices/kubernetes.io~csi/pv3');
  symlinkSync(device, link);
  t.equal(await verdict(allow.mayRead, link), device, 'a raw block volume of a pod');
  symlinkSync(device, at('elsewhere/device'));
  t.match(await verdict(allow.mayRead, at('elsewhere/device')), /^SourceRefused/);
});
