import t from 'tap';
import { mergePatch } from '../../../../master/api/patch.ts';

t.test('the examples of RFC 7396', async (t) => {
  const examples: [unknown, unknown, unknown][] = [
    [{ a: 'b' }, { a: 'c' }, { a: 'c' }],
    [{ a: 'b' }, { b: 'c' }, { a: 'b', b: 'c' }],
    [{ a: 'b' }, { a: null }, {}],
    [{ a: 'b', b: 'c' }, { a: null }, { b: 'c' }],
    [{ a: ['b'] }, { a: 'c' }, { a: 'c' }],
    [{ a: 'c' }, { a: ['b'] }, { a: ['b'] }],
    [{ a: { b: 'c' } }, { a: { b: 'd', c: null } }, { a: { b: 'd' } }],
    [{ a: [{ b: 'c' }] }, { a: [1] }, { a: [1] }],
    [
      ['a', 'b'],
      ['c', 'd'],
      ['c', 'd'],
    ],
    [{ a: 'b' }, ['c'], ['c']],
    [{ a: 'foo' }, null, null],
    [{ a: 'foo' }, 'bar', 'bar'],
    [{ e: null }, { a: 1 }, { e: null, a: 1 }],
    [[1, 2], { a: 'b', c: null }, { a: 'b' }],
    [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
  ];
  for (const [target, patch, result] of examples) {
    const before = JSON.stringify([target, patch]);
    t.strictSame(mergePatch(target, patch), result);
    t.equal(JSON.stringify([target, patch]), before, 'changes neither');
  }
});

t.test('a key such as __proto__ is only a key', async (t) => {
  const result = mergePatch({}, JSON.parse('{"__proto__": {"admin": true}}'));
  t.equal((result as { admin?: boolean }).admin, undefined);
  t.equal(({} as { admin?: boolean }).admin, undefined);
});
