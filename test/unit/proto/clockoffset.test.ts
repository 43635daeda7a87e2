import fc from 'fast-check';
import t from 'tap';
import { clockOffset, driftPpm } from '../../../proto/clockoffset.ts';

/** One ping over a line whose two ways take differently long, with a master that answers after a while. */
function ping(agentUs: number, masterOf: (agentUs: number) => number, outUs: number, heldUs: number, backUs: number) {
  return {
    agentSentUs: agentUs,
    masterReceivedUs: Math.round(masterOf(agentUs + outUs)),
    masterSentUs: Math.round(masterOf(agentUs + outUs + heldUs)),
    agentReceivedUs: agentUs + outUs + heldUs + backUs,
  };
}
const delay = fc.nat(2_000_000);

t.test('is never later than the truth, nor earlier than twice the error, whatever delays and drift', async () => {
  fc.assert(
    fc.property(
      fc.integer({ min: -4e15, max: 4e15 }),
      fc.double({ min: -driftPpm, max: driftPpm, noNaN: true }),
      fc.array(fc.tuple(delay, delay, delay, fc.nat(60_000_000)), { minLength: 1, maxLength: 20 }),
      fc.nat(3_600_000_000),
      (offsetUs, ppm, pings, laterUs) => {
        const startUs = 1_700_000_000_000_000;
        const masterOf = (agentUs: number): number => agentUs + offsetUs + ((agentUs - startUs) * ppm) / 1e6;
        const clock = clockOffset();
        let agentUs = startUs;
        for (const [out, held, back, pause] of pings) {
          clock.add(ping(agentUs, masterOf, out, held, back));
          agentUs += out + held + back + pause;
        }
        const atUs = agentUs + laterUs;
        const answer = clock.toMasterUs(atUs);
        const errorUs = clock.at(atUs)?.errorUs ?? 0;
        // Rounded instants and drift within one ping cost some microseconds.
        const slackUs = 5 + (6_000_000 * driftPpm) / 1e6;
        return (
          answer !== undefined && answer <= masterOf(atUs) + slackUs && answer >= masterOf(atUs) - 2 * errorUs - slackUs
        );
      },
    ),
  );
});

t.test('the best of the newest samples counts, and its error grows with age', async (t) => {
  const clock = clockOffset();
  t.equal(clock.toMasterUs(0), undefined);
  const masterOf = (agentUs: number): number => agentUs + 5_000_000;
  clock.add(ping(0, masterOf, 100, 10, 100));
  for (let at = 1; at <= 7; at++) clock.add(ping(at * 1000, masterOf, 40_000, 10, 90_000));
  t.equal(clock.at(10_000)?.offsetUs, 5_000_000);
  t.ok((clock.at(10_000)?.errorUs ?? 0) < 200);
  t.ok((clock.at(3_600_000_000)?.errorUs ?? 0) > 1_000_000);
  clock.add(ping(8000, masterOf, 40_000, 10, 90_000));
  t.ok((clock.at(150_000)?.errorUs ?? 0) >= 65_000, 'the ninth oldest is forgotten');
});

t.test('a clock that was set throws away what was measured before', async (t) => {
  const clock = clockOffset();
  clock.add(ping(0, (agentUs) => agentUs + 5_000_000, 100, 0, 100));
  clock.add(ping(1_000_000, (agentUs) => agentUs - 60_000_000, 3000, 0, 3000));
  t.equal(clock.at(1_000_000)?.offsetUs, -60_000_000);
  clock.add({ agentSentUs: 10, masterReceivedUs: 0, masterSentUs: 0, agentReceivedUs: 5 });
  t.equal(clock.at(1_000_000)?.offsetUs, -60_000_000, 'a ping of negative duration is no sample');
});
