import t from 'tap';
import { mappingDigest, readMapping, sameContent, type Table, type Target } from '../../../agent/mapping.ts';

const linear = (first: number, sectors: number, hash = 'a'): Target => ({ first, sectors, type: 'linear', hash });
const one = (...targets: Target[]): Table[] => [{ device: '253:0', targets }];

t.test('what lay there lies there still: growth at the end, and nothing else', async (t) => {
  const before = one(linear(0, 100), linear(100, 50, 'b'));
  t.ok(sameContent(before, one(linear(0, 100), linear(100, 50, 'b'))));
  t.ok(sameContent(before, one(linear(0, 100), linear(100, 70, 'b'))), 'the last one goes on');
  t.ok(sameContent(before, one(linear(0, 100), linear(100, 50, 'b'), linear(150, 9, 'c'))));
  for (const after of [
    one(linear(0, 100)),
    one(linear(0, 100), linear(100, 40, 'b')),
    one(linear(0, 110), linear(110, 40, 'b')),
    one(linear(0, 100, 'x'), linear(100, 50, 'b')),
    one(linear(0, 100), { ...linear(100, 50, 'b'), type: 'snapshot-merge' }),
    [],
  ]) {
    t.notOk(sameContent(before, after));
  }
  const striped = (sectors: number): Target => ({ ...linear(0, sectors), type: 'striped' });
  t.notOk(sameContent(one(striped(100)), one(striped(200))), 'stripes go elsewhere when there are more of them');
  const deep = [...before, { device: '253:1', targets: [linear(0, 500)] }];
  t.notOk(sameContent(deep, [...before, { device: '253:1', targets: [linear(0, 500, 'z')] }]), 'below, too');
  t.notOk(sameContent(deep, before));
});

t.test('the digest tells any change, and a device without a mapping has none', async (t) => {
  t.equal(mappingDigest([]), '');
  t.equal(mappingDigest(one(linear(0, 100))), mappingDigest(one(linear(0, 100))));
  t.not(mappingDigest(one(linear(0, 100))), mappingDigest(one(linear(0, 101))));
  t.same(readMapping('1:3'), [], 'no device of device-mapper');
});
