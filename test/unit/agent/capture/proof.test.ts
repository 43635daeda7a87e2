import t from 'tap';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { Proof } from '../../../../agent/capture/proof.ts';

t.test('what adds up fits, at rest to the sector', async (t) => {
  const proof = new Proof();
  t.ok(proof.fits(100, { rq: 0, bio: 0 }, 116), 'a write ended in between');
  t.equal(proof.counterAt({ rq: 0, bio: 0 }), undefined, 'so it is not exact');
  t.ok(proof.fits(116, { rq: 8, bio: 0 }, 116));
  t.equal(proof.counterAt({ rq: 8, bio: 0 }), 116);
  t.ok(proof.fits(200, { rq: 92, bio: 0 }, 200));
  t.notOk(proof.fits(208, { rq: 92, bio: 0 }, 208), 'a write that no event told of');
  t.notOk(proof.fits(300, { rq: 300, bio: 0 }, 300), 'events that no counter knows');
  t.ok(proof.fits(200, { rq: 92, bio: 0 }, 208), 'what did not fit changed nothing');
});

t.test('a counter from before proves or refuses what came meanwhile', async (t) => {
  t.ok(new Proof(500).fits(500, { rq: 0, bio: 0 }, 500));
  t.ok(new Proof(500).fits(520, { rq: 20, bio: 0 }, 520));
  t.notOk(new Proof(500).fits(520, { rq: 12, bio: 0 }, 520));
  t.notOk(new Proof(500).fits(20, { rq: 0, bio: 0 }, 20), 'counters that began anew');
});

t.test('the event of the driver is learned, and the other one is no way out', async (t) => {
  for (const right of ['rq', 'bio'] as const) {
    const sums = { rq: 0, bio: 0 };
    const proof = new Proof();
    t.ok(proof.fits(10, sums, 10));
    sums[right] = 40;
    t.ok(proof.fits(50, sums, 50));
    t.equal(proof.counterAt(sums), 50);
    t.notOk(proof.fits(58, sums, 58), `${right} is the one`);
  }
});

t.test('any run of writes fits; a lost one is found at the next rest', async () => {
  const write = fc.record({ sectors: fc.integer({ min: 1, max: 64 }), isCounted: fc.boolean(), rest: fc.boolean() });
  fc.assert(
    fc.property(fc.array(write, { minLength: 1, maxLength: 30 }), fc.nat(29), (writes, losing) => {
      const proof = new Proof(1000);
      const losingProof = new Proof(1000);
      let counter = 1000;
      let [told, toldLess] = [0, 0];
      let isLost = false;
      writes.forEach(({ sectors, isCounted, rest }, index) => {
        const before = counter;
        // Told and counted at the look, or told before it and counted after.
        told += sectors;
        if (index === losing % writes.length) isLost = true;
        else toldLess += sectors;
        counter += sectors;
        const from = isCounted || rest ? counter : before;
        assert(proof.fits(from, { rq: told, bio: 0 }, counter));
        assert.equal(proof.counterAt({ rq: told, bio: 0 }), counter);
        const fits = losingProof.fits(from, { rq: toldLess, bio: 0 }, counter);
        if (isLost && from === counter) assert(!fits);
      });
    }),
    { numRuns: 100 },
  );
});
