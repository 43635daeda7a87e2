import t from 'tap';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { Bitmap, pageGranules } from '../../../../agent/capture/bitmap.ts';

const length = 3 * pageGranules + 77;
const near = fc.oneof(
  fc.nat(40),
  fc.integer({ min: pageGranules - 20, max: pageGranules + 20 }),
  fc.integer({ min: length - 40, max: length + 40 }),
);
const step = fc.record({
  kind: fc.constantFrom('add' as const, 'delete' as const),
  first: near,
  size: fc.oneof(fc.nat(20), fc.constant(Infinity)),
});

t.test('is a set of numbers, whatever is added and taken away', async () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 12 }), (steps) => {
      const bits = new Bitmap(length);
      const model = new Set<number>();
      const touched = new Set<number>();
      for (const { kind, first, size } of steps) {
        const before = new Set(model);
        bits[kind](first, first + size, (page) => touched.add(page));
        for (let i = first; i < Math.min(length, first + size); i++) model[kind](i);
        if (before.size !== model.size) assert(touched.size > 0);
      }
      assert.equal(bits.count, model.size);
      const runs: number[] = [];
      for (const { first, end } of bits.runs()) for (let i = first; i < end; i++) runs.push(i);
      assert(runs.length === model.size && runs.every((index) => model.has(index)));
      const other = new Bitmap(length);
      for (let page = 0; page < bits.pageCount; page++) other.load(page, bits.page(page) ?? Buffer.alloc(0));
      assert(other.count === bits.count && [...other.runs()].every(({ first }) => bits.has(first)));
      bits.resize(pageGranules + 3);
      bits.resize(length);
      assert.equal(bits.count, [...model].filter((index) => index < pageGranules + 3).length);
    }),
    { numRuns: 60 },
  );
});

t.test('runs are as short as asked', async (t) => {
  const bits = new Bitmap(200);
  bits.add(10, 100);
  t.same(bits.next(0, 16), { first: 10, end: 26 });
  t.same(bits.next(95, 16), { first: 95, end: 100 });
  t.equal(bits.next(100), undefined);
});
