import t from 'tap';
import type { Static } from 'typebox';
import { check } from '../../../master/api/check.ts';
import { namePattern } from '../../../master/api/schema.ts';
import type { Agent, AgentVolume } from '../../../master/api/schema/agent.ts';
import type { Group } from '../../../master/api/schema/group.ts';
import type { Recovery } from '../../../master/api/schema/recovery.ts';
import type { RecoverySchedule } from '../../../master/api/schema/recoveryschedule.ts';
import { ReplicationInput, ReplicationSpec } from '../../../master/api/schema/replication.ts';
import type { Point, Replication } from '../../../master/api/schema/replication.ts';
import type { Snapshot } from '../../../master/api/schema/snapshot.ts';
import type { StorageClass } from '../../../master/api/schema/storageclass.ts';
import type * as R from '../../../master/resources.ts';

// The schemas and the resources must agree, field by field: this file does not compile when they do not.
type Same<A, B> = (<T>() => T extends Flat<A> ? 1 : 2) extends <T>() => T extends Flat<B> ? 1 : 2 ? true : false;
/** Intersections and mapped types written out, so that only the fields are compared. */
type Flat<T> = T extends (infer I)[] ? Flat<I>[] : T extends object ? { [K in keyof T]: Flat<T[K]> } : T;
type Shown<T> = Omit<T, 'requests' | 'identity' | 'job'>;
const agreed: [
  Same<Static<typeof Replication>, Shown<R.Replication>>,
  Same<Static<typeof Agent>, Shown<R.Agent>>,
  Same<Static<typeof AgentVolume>, R.AgentVolume>,
  Same<Static<typeof StorageClass>, Shown<R.StorageClass>>,
  Same<Static<typeof Snapshot>, Shown<R.Snapshot>>,
  Same<Static<typeof Recovery>, Shown<R.Recovery>>,
  Same<Static<typeof Point>, R.PointView>,
  Same<Static<typeof Group>, R.Group>,
  Same<Static<typeof RecoverySchedule>, R.RecoverySchedule>,
] = [true, true, true, true, true, true, true, true, true];

t.test('the schemas agree with the resources', async (t) => t.ok(agreed.every(Boolean)));

t.test('paths have one spelling and never climb', async (t) => {
  const { path } = ReplicationSpec.properties.source.properties;
  const fits = (value: string): boolean => {
    try {
      check(path, value);
      return true;
    } catch {
      return false;
    }
  };
  // Empty: of a claim, until the master has found it; without one it is refused (api.test.ts).
  for (const good of ['', '/a', '/dev/vdb', '/a/.b', '/...', '/.x/y z', '/ä']) t.ok(fits(good), good);
  for (const bad of ['a', '/', '/a/', '//a', '/a//b', '/a/..', '/../a', '/./a', '/a/.', '/a\0', '/a\n/../b'])
    t.notOk(fits(bad), JSON.stringify(bad));
  t.notOk(fits(`/${'x'.repeat(4095)}`), 'too long');
});

t.test('a check fills defaults in that are not shared between requests', async (t) => {
  const given = () => ({
    metadata: { name: 'a' },
    spec: { source: { agent: 'a', path: '/x' }, target: { storageClass: 'c' } },
  });
  const first = check(ReplicationInput, given());
  const second = check(ReplicationInput, given());
  first.spec.source.include.push('*');
  first.spec.trigger.continuous = true;
  t.same(second.spec.source.include, []);
  t.not(first.spec.trigger, second.spec.trigger);
});

t.test('names are RFC 1123 labels', async (t) => {
  const name = new RegExp(namePattern, 'u');
  for (const good of ['a', '0', 'a-b', 'a'.repeat(63)]) t.match(good, name);
  for (const bad of ['', '-a', 'a-', 'A', 'a.b', 'a_b', 'a'.repeat(64), 'a\n'])
    t.notMatch(bad, name, JSON.stringify(bad));
});
