/** What of a replication's spec the schema cannot refuse by itself. */
import t from 'tap';
import { problemsOf } from '../../../master/problems.ts';
import { reverse } from '../../../master/recovery/failback.ts';
import type { Replication, ReplicationSpec } from '../../../master/resources.ts';

type Change = Partial<Omit<ReplicationSpec, 'source'>> & { source?: Partial<ReplicationSpec['source']> };

const pvc = { namespace: 'shop', name: 'data' };
const specOf = ({ source, ...spec }: Change): ReplicationSpec =>
  ({
    copyMethod: 'Direct',
    consistency: null,
    ...spec,
    source: { agent: '', path: '', volumeMode: 'Block', include: [], exclude: [], ...source },
  }) as ReplicationSpec;
const problems = (change: Change): string[] =>
  problemsOf(specOf(change), []).map(({ path, message }) => `${path}: ${message}`);

t.test('what the storage makes for a cut is of claims, and crash-consistent', async (t) => {
  for (const copyMethod of ['Snapshot', 'Clone'] as const) {
    t.same(problems({ copyMethod, source: { pvc } }), []);
    t.match(problems({ copyMethod }), [new RegExp(`^spec.copyMethod: ${copyMethod} needs source.pvc`)]);
    t.same(problems({ copyMethod, source: { pvc, volumeMode: 'Filesystem' } }), []);
    t.match(problems({ copyMethod, consistency: 'filesystem', source: { pvc } }), [/makes crash-consistent points/]);
    t.match(problems({ copyMethod, consistency: 'file', source: { pvc, volumeMode: 'Filesystem' } }), [
      /makes crash-consistent points/,
    ]);
    t.same(problems({ copyMethod, source: { pvc, storageClassName: 'fast' } }), []);
  }
});

t.test('its classes are not taken where nothing would come of them', async (t) => {
  const snapshots = { pvc, volumeSnapshotClassName: 'fast' };
  t.same(problems({ copyMethod: 'Snapshot', source: snapshots }), []);
  t.match(problems({ copyMethod: 'Clone', source: snapshots }), [/^spec.source.volumeSnapshotClassName: /]);
  t.match(problems({ source: { pvc, storageClassName: 'fast' } }), [/^spec.source.storageClassName: /]);
});

t.test('what fails back is on other storage', async (t) => {
  const source = { pvc, volumeSnapshotClassName: 'fast', storageClassName: 'fast' };
  const before = {
    ...{ metadata: { name: 'old', uid: 'u' }, status: { fencingGeneration: '1' }, requests: {} },
    spec: specOf({ copyMethod: 'Snapshot', source }),
  } as unknown as Replication;
  const onPath = reverse(before, 'new', { agent: 'a', path: '/p' }).spec;
  t.same(problemsOf(onPath, []), [], 'a path has no storage that is asked');
  t.equal(onPath.copyMethod, 'Direct');
  const onClaim = reverse(before, 'new', { pvc, agent: '', path: '' }).spec;
  t.equal(onClaim.copyMethod, 'Snapshot');
  t.same(onClaim.source, { pvc, agent: '', path: '', volumeMode: 'Block', include: [], exclude: [] });
});
