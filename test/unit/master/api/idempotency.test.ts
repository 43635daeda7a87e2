import t from 'tap';
import { idempotency, keepMs, maxAnswers } from '../../../../master/api/idempotency.ts';

function setup() {
  const records = new Map<string, string>();
  const clock = { ms: 0, nowMs: () => clock.ms };
  const store = {
    getRecord: (_table: string, key: string) => records.get(key),
    putRecord: (_table: string, key: string, value: string | undefined) =>
      void (value === undefined ? records.delete(key) : records.set(key, value)),
    listRecords: () => [...records].map(([key, value]) => ({ key, value })).reverse(),
  };
  return { records, clock, open: () => idempotency(store, clock) };
}
const answer = { status: 201, body: '{}' };

t.test('answers belong to caller and key, for 24 hours, over restarts', async (t) => {
  const { clock, open, records } = setup();
  open().keep('a', 'k', 'POST /x', answer);
  clock.ms = keepMs - 1;
  t.match(open().find('a', 'k', 'POST /x'), answer);
  t.equal(open().find('b', 'k', 'POST /x'), undefined, 'not of another caller');
  t.throws(() => open().find('a', 'k', 'POST /y'), /new key/);
  clock.ms = keepMs;
  t.equal(open().find('a', 'k', 'POST /y'), undefined);
  t.equal(records.size, 0);
});

t.test('at most so many are kept, the oldest go first', async (t) => {
  const { open, records, clock } = setup();
  const kept = open();
  for (let index = 0; index <= maxAnswers; index++) {
    clock.ms += 1;
    kept.keep('a', `k${index}`, 'r', answer);
  }
  t.equal(records.size, maxAnswers);
  t.equal(kept.find('a', 'k0', 'r'), undefined);
  t.match(open().find('a', `k${maxAnswers}`, 'r'), answer);
});
