import t from 'tap';
import type { Static } from 'typebox';
import { check } from '../../../master/api/check.ts';
import * as S from '../../../master/api/schema.ts';
import type * as R from '../../../master/resources.ts';

// The schemas and the resources must agree, field by field: this file does not compile when they do not.
type Same<A, B> = (<T>() => T extends Flat<A> ? 1 : 2) extends <T>() => T extends Flat<B> ? 1 : 2 ? true : false;
/** Intersections and mapped types written out, so that only the fields are compared. */
type Flat<T> = T extends (infer I)[] ? Flat<I>[] : T extends object ? { [K in keyof T]: Flat<T[K]> } : T;
type Shown<T> = Omit<T, 'requests' | 'identity'>;
const agreed: [
  Same<Static<typeof S.Replication>, Shown<R.Replication>>,
  Same<Static<typeof S.Agent>, Shown<R.Agent>>,
  Same<Static<typeof S.AgentVolume>, R.AgentVolume>,
  Same<Static<typeof S.StorageClass>, Shown<R.StorageClass>>,
  Same<Static<typeof S.Snapshot>, Shown<R.Snapshot>>,
  Same<Static<typeof S.Recovery>, Shown<R.Recovery>>,
  Same<Static<typeof S.Point>, R.PointView>,
] = [true, true, true, true, true, true, true];

t.test('the schemas agree with the resources', async (t) => t.ok(agreed.every(Boolean)));

t.test('paths have one spelling and never climb', async (t) => {
  const { path } = S.ReplicationSpec.properties.source.properties;
  const fits = (value: string): boolean => {
    try {
      check(path, value);
      return true;
    } catch {
      return false;
    }
  };
  for (const good of ['/a', '/dev/vdb', '/a/.b', '/...', '/.x/y z', '/ä']) t.ok(fits(good), good);
  for (const bad of ['', 'a', '/', '/a/', '//a', '/a//b', '/a/..', '/../a', '/./a', '/a/.', '/a\0', '/a\n/../b'])
    t.notOk(fits(bad), JSON.stringify(bad));
  t.notOk(fits(`/${'x'.repeat(4095)}`), 'too long');
});

t.test('a check fills defaults in that are not shared between requests', async (t) => {
  const given = () => ({
    metadata: { name: 'a' },
    spec: { source: { agent: 'a', path: '/x' }, target: { storageClass: 'c' } },
  });
  const first = check(S.ReplicationInput, given());
  const second = check(S.ReplicationInput, given());
  first.spec.source.include.push('*');
  first.spec.trigger.continuous = true;
  t.same(second.spec.source.include, []);
  t.not(first.spec.trigger, second.spec.trigger);
});

t.test('names are RFC 1123 labels', async (t) => {
  const name = new RegExp(S.namePattern, 'u');
  for (const good of ['a', '0', 'a-b', 'a'.repeat(63)]) t.match(good, name);
  for (const bad of ['', '-a', 'a-', 'A', 'a.b', 'a_b', 'a'.repeat(64), 'a\n'])
    t.notMatch(bad, name, JSON.stringify(bad));
});
