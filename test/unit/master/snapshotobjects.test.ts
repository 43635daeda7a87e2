import t from 'tap';
import { cloneOf, ownerOf, showingPodOf, shownClaimOf } from '../../../master/kubernetes/snapshotobjects.ts';

const of = { uid: 'u', replication: 'shop' };
const snapshot = { metadata: { name: 's', uid: 'su', namespace: 'shop' } };
const at = { node: 'node-a', image: 'ours' };

t.test('what is made of a claim is of its mode', (t) => {
  for (const volumeMode of ['Block', 'Filesystem'] as const) {
    const volume = { volumeMode, storageClassName: 'fast', bytes: 1 };
    t.match(shownClaimOf(snapshot, of, volume), { spec: { volumeMode, dataSource: { kind: 'VolumeSnapshot' } } });
    t.match(cloneOf('c', of, 'data', volume), { spec: { volumeMode, dataSource: { name: 'data' } } });
  }
  t.end();
});

t.test('a filesystem is mounted read-only by the claim, a device is not to be had so', (t) => {
  const block = JSON.stringify(showingPodOf(ownerOf(snapshot), of, { ...at, volumeMode: 'Block' }));
  t.match(block, '"volumeDevices":[{"name":"snapshot","devicePath":"/dev/snapshot"}]');
  t.notMatch(block, 'readOnly":');
  t.match(showingPodOf(ownerOf(snapshot), of, { ...at, volumeMode: 'Filesystem' }), {
    spec: {
      containers: [{ volumeMounts: [{ name: 'snapshot', mountPath: '/snapshot', readOnly: true }] }],
      volumes: [{ persistentVolumeClaim: { claimName: 's', readOnly: true } }],
    },
  });
  t.end();
});
