/** Where a claim is read, by what the API server says: the pure part of sources by claim. */
import t from 'tap';
import { kubeconfigOf } from '../../../master/kubernetes/clusters.ts';
import { connectApi } from '../../../master/kubernetes/api.ts';
import { claimOf, placeOf, quantity, type Claim, type Pod } from '../../../master/kubernetes/claimplace.ts';
import { nameFor, protectedClaims } from '../../../master/kubernetes/protection.ts';

const claim: Claim = {
  namespace: 'shop',
  name: 'data',
  uid: 'u',
  labels: {},
  annotations: {},
  volumeMode: 'Filesystem',
  accessModes: ['ReadWriteOnce'],
  volumeName: 'pv-1',
  bound: true,
  capacityBytes: 1,
  ending: false,
};
const pod = (uid: string, more: Partial<Pod> = {}): Pod => ({
  uid,
  name: uid,
  node: 'a',
  phase: 'Running',
  ending: false,
  createdMs: 1,
  claims: ['data'],
  ...more,
});
const volume = { name: 'pv-1', csi: { driver: 'd', volumeHandle: 'h' }, kind: 'csi' };
const at = (agent: string, uid: string) => ({
  agent,
  path: `/var/lib/kubelet/pods/${uid}/volumes/kubernetes.io~csi/pv-1/mount`,
});
const place = (pods: Pod[], now = { agent: '', path: '' }, more: object = {}) =>
  placeOf(
    { claim, volume, pods, now, hasAgent: (node) => node !== 'bare', kubelet: () => '/var/lib/kubelet', ...more },
    'shop/data',
  );

t.test('the pod that runs decides, and nothing moves without need', async (t) => {
  t.same(place([pod('1')]), at('a', '1'));
  t.same(place([pod('1'), pod('2')], at('a', '2')), at('a', '2'), 'the present place stays');
  t.same(place([pod('1'), pod('2', { createdMs: 5 })]), at('a', '2'), 'else the newest');
  const ending = pod('1', { ending: true });
  const waiting = pod('2', { node: 'b', phase: 'Pending' });
  t.same(place([ending, waiting], at('a', '1')), at('a', '1'), 'until it has ended it is there');
  t.same(place([ending, { ...waiting, phase: 'Running' }], at('a', '1')), at('b', '2'), 'a node that was lost');
  t.same(place([waiting], at('a', '1')), at('b', '2'));
  t.same(place([pod('1', { phase: 'Succeeded' }), pod('3', { claims: ['other'] })]), {
    reason: 'ClaimNotMounted',
    message: 'no pod that runs uses shop/data: it can be read while one does. The copy stays as it is',
  });
});

t.test('block volumes are links, other folders of a kubelet are taken', async (t) => {
  const block = { claim: { ...claim, volumeMode: 'Block' }, kubelet: () => '/k' };
  t.same(place([pod('1')], undefined, block), { agent: 'a', path: '/k/pods/1/volumeDevices/kubernetes.io~csi/pv-1' });
});

t.test('each reason has its word', async (t) => {
  const reason = (more: object, pods = [pod('1')]) => place(pods, undefined, more);
  t.match(reason({ claim: undefined }), { reason: 'ClaimUnknown' });
  t.match(reason({ claim: { ...claim, bound: false } }), { reason: 'ClaimUnbound' });
  t.match(reason({ volume: 'absent' }), { reason: 'ClaimUnbound' });
  t.match(reason({ volume: { trouble: 'forbidden' } }), { reason: 'ClusterGone', message: /forbidden/ });
  t.match(reason({ volume: { name: 'x', csi: undefined, kind: 'hostPath' } }), { reason: 'ClaimRefused' });
  t.match(reason({ claim: { ...claim, accessModes: ['ReadWriteMany'] } }), { reason: 'ClaimRefused' });
  t.match(reason({}, [pod('1', { node: 'bare' })]), { reason: 'NoAgent' });
  t.equal(reason({ volume: undefined }), undefined, 'not known yet');
});

t.test('what asks for protection, and what does not', async (t) => {
  const key = 'replicator.cdm.datacommand.co.kr/protect';
  const names = (claims: Claim[], namespace: object = {}) => {
    const found = { name: 'shop', labels: {}, annotations: {}, ...namespace };
    return [...protectedClaims('', { claims: () => claims, namespace: () => found })];
  };
  t.same(names([claim]), []);
  const own = { ...claim, labels: { [key]: 'fast' } };
  t.match(names([own]), [{ problem: undefined, replication: { spec: { target: { storageClass: 'fast' } } } }]);
  t.same(
    names([{ ...claim, annotations: { [key]: 'false' } }], { labels: { [key]: 'true' } }),
    [],
    'its own word first',
  );
  t.equal(names([claim, { ...claim, name: 'b' }], { annotations: { [key]: 'true' } }).length, 2, 'a whole namespace');
  t.match(names([{ ...own, accessModes: ['ReadWriteMany'] }]), [{ problem: /ReadWriteMany/ }]);
  const rpo = { [key]: 'true', 'replicator.cdm.datacommand.co.kr/rpo-seconds': 'soon' };
  t.match(names([{ ...claim, annotations: rpo }]), [{ problem: /no number/ }]);
  t.not(nameFor('', { namespace: 'a', name: 'b-c' }), nameFor('', { namespace: 'a-b', name: 'c' }));
  t.match(nameFor('prod', { namespace: 'x'.repeat(63), name: 'y.'.repeat(100) + 'y' }), /^[a-z0-9-]{1,63}$/);
});

t.test('objects and quantities are read as they come', async (t) => {
  const object = { metadata: { name: 'c', namespace: 'n', uid: 'u', creationTimestamp: '' }, spec: {} };
  t.match(claimOf(object), { volumeMode: 'Filesystem', volumeName: '', bound: false, capacityBytes: 0 });
  t.same(['10Gi', '1500M', '1e3', '7', '', 'x', '100m'].map(quantity), [10 * 2 ** 30, 15e8, 1000, 7, 0, 0, 1]);
});

t.test('a Secret of a cluster names no files and runs no programs', async (t) => {
  const secret = (data: Record<string, string>) =>
    kubeconfigOf({
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: { name: 's' },
      type: 'Opaque',
      data: Object.fromEntries(
        Object.entries(data).map(([key, value]) => [key, Buffer.from(value).toString('base64')]),
      ),
    });
  t.throws(() => secret({ token: 'x' }), /neither kubeconfig nor server and token/);
  t.ok(connectApi({ inline: secret({ server: 'https://127.0.0.1:1', token: 'x' }) }));
  const config = JSON.parse(secret({ server: 'https://127.0.0.1:1', token: 'x' })) as {
    users: { user: object }[];
    clusters: { cluster: object }[];
  };
  const withUser = (user: object) => JSON.stringify({ ...config, users: [{ name: 'user', user }] });
  for (const user of [
    { exec: { command: '/bin/true', apiVersion: 'client.authentication.k8s.io/v1' } },
    { 'client-certificate': '/etc/passwd', 'client-key': '/etc/passwd' },
    { 'auth-provider': { name: 'x' } },
    { tokenFile: '/etc/passwd' },
    { 'token-file': '/etc/passwd' },
  ])
    t.throws(() => connectApi({ inline: withUser(user) }), /files or programs/, JSON.stringify(user));
  const files = [{ name: 'cluster', cluster: { server: 'https://a', 'certificate-authority': '/etc/passwd' } }];
  t.throws(() => connectApi({ inline: JSON.stringify({ ...config, clusters: files }) }), /files or programs/);
});
