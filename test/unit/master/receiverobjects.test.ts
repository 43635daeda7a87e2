import t from 'tap';
import {
  claimBytes,
  podTrouble,
  quantityBytes,
  quantityOf,
  type Claim,
  type Pod,
} from '../../../master/kubernetes/receiverobjects.ts';

t.test('sizes of claims are whole MiB, and read however the cluster writes them', (t) => {
  t.equal(quantityOf(claimBytes(8 << 20)), '1036Mi');
  t.equal(quantityOf(claimBytes(1)), '1025Mi');
  for (const [text, bytes] of [
    ['1036Mi', 1036 * 2 ** 20],
    ['1Gi', 2 ** 30],
    ['1086324736', 1086324736],
    ['128974848k', 128974848000],
    ['1e3', 1000],
    ['1.5Gi', 1.5 * 2 ** 30],
  ] as const)
    t.equal(quantityBytes(text), bytes, text);
  t.equal(quantityBytes('much'), Infinity, 'nothing is made smaller or grown by what is not understood');
  t.end();
});

t.test('a pod that cannot be dialled yet says why in the words of the cluster', (t) => {
  const claim = (phase: string): Claim => ({
    metadata: { name: 'c' },
    spec: { accessModes: [], resources: { requests: { storage: '1Gi' } } },
    status: { phase },
  });
  const pod = (status: Pod['status']): Pod => ({
    metadata: { name: 'p' },
    spec: { containers: [] },
    ...(status && { status }),
  });
  t.equal(podTrouble(pod({ phase: 'Running', podIP: '10.0.0.1' }), claim('Bound')), undefined);
  t.match(podTrouble(pod({ phase: 'Running' }), claim('Bound')), /pod p is Running/, 'without an address');
  const conditions = [
    { type: 'PodScheduled', status: 'False', reason: 'Unschedulable', message: '0/3 nodes are available' },
  ];
  t.match(
    podTrouble(pod({ phase: 'Pending', conditions }), claim('Pending')),
    /its claim is Pending; Unschedulable: 0\/3 nodes/,
  );
  const containerStatuses = [{ state: { waiting: { reason: 'ImagePullBackOff', message: 'no such image' } } }];
  t.match(podTrouble(pod({ phase: 'Pending', containerStatuses }), claim('Bound')), /ImagePullBackOff: no such image/);
  t.match(podTrouble(pod(undefined), claim('Bound')), /Pending: kubectl describe/);
  t.end();
});
