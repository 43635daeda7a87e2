import t from 'tap';
import { blockedBy } from '../../../../master/recovery/turn.ts';
import type { Recovery, RecoverySpec, RecoveryState } from '../../../../master/resources.ts';

let count = 0;
function one(of: string, type: RecoverySpec['type'], state: RecoveryState = 'Waiting'): Recovery {
  const [kind, name] = of.split('/');
  const uid = String(count++);
  return {
    metadata: { name: uid, uid, creationTimestamp: new Date(count * 1000).toISOString() },
    spec: { [kind ?? '']: name, type },
    status: { state },
  } as unknown as Recovery;
}
const groupOf = (replication: string) => (replication.startsWith('g') ? 'g' : undefined);

t.test('one recovery of a group at a time, in the order in which they were asked for', async (t) => {
  const first = one('group/g', 'drill');
  const second = one('group/g', 'drill');
  const member = one('replication/g1', 'drill');
  const all = [second, member, first];
  t.equal(blockedBy(first, all, groupOf), undefined);
  t.equal(blockedBy(second, all, groupOf), first);
  t.ok(blockedBy(member, all, groupOf), 'a member takes its group');
  first.status.state = 'Running';
  t.equal(blockedBy(member, all, groupOf), first);
  for (const state of ['Pausing', 'Paused', 'Cancelling', 'RollingBack'] as const) {
    first.status.state = state;
    t.equal(blockedBy(second, all, groupOf), first, state);
  }
  first.status.state = 'Completed';
  t.equal(blockedBy(second, all, groupOf), undefined, 'a drill that is complete holds nobody up');
  second.status.state = 'Cancelled';
  t.equal(blockedBy(member, all, groupOf), undefined);
});

t.test('a failover holds its group until somebody decides', async (t) => {
  const failover = one('group/g', 'failover', 'Completed');
  const drill = one('group/g', 'drill');
  t.equal(blockedBy(drill, [failover, drill], groupOf), failover);
  failover.status.state = 'Failed';
  t.equal(blockedBy(drill, [failover, drill], groupOf), failover);
  failover.status.state = 'Confirmed';
  t.equal(blockedBy(drill, [failover, drill], groupOf), undefined);
});

t.test('without a group drills run side by side, and a failover waits for none of them', async (t) => {
  const drill = one('replication/a', 'drill', 'Running');
  const other = one('replication/a', 'drill');
  const failover = one('replication/a', 'failover');
  const next = one('replication/a', 'failover');
  const all = [drill, other, failover, next];
  t.equal(blockedBy(other, all, groupOf), undefined);
  t.equal(blockedBy(failover, all, groupOf), undefined);
  t.equal(blockedBy(next, all, groupOf), failover);
  t.equal(blockedBy(one('replication/b', 'failover'), all, groupOf), undefined);
});
