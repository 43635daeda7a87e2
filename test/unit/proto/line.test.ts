import t from 'tap';
import { Line } from '../../../proto/line.ts';
import { packPayload } from '../../../proto/payload.ts';

const mib = 2 ** 20;

function line() {
  let nowMs = 0;
  const clock = { nowMs: () => nowMs, monotonicMs: () => nowMs, sleep: () => Promise.resolve() };
  return { line: new Line(clock), pass: (ms: number) => (nowMs += ms) };
}

t.test('a line is as fast as what is under way is taken, whatever the ends do meanwhile', (t) => {
  const { line: one, pass } = line();
  t.equal(one.bytesPerSecond, undefined, 'nothing is known of it');
  for (let i = 0; i < 4; i++) {
    pass(500); // the sender reads
    one.sent(mib);
    pass(10);
    one.taken(mib, 0);
  }
  t.equal(Math.round(one.bytesPerSecond ?? 0), 100 * mib);
  const { line: other, pass: passOther } = line();
  other.sent(2 * mib);
  passOther(500);
  other.taken(2 * mib, 490);
  t.equal(Math.round(other.bytesPerSecond ?? 0), 200 * mib, 'the receiver worked for 490 ms of it');
  t.end();
});

t.test('a line that becomes slow is seen to', (t) => {
  const { line: one, pass } = line();
  for (let i = 0; i < 64; i++) {
    one.sent(mib);
    pass(1);
    one.taken(mib, 0);
  }
  for (let i = 0; i < 64; i++) {
    one.sent(mib);
    pass(100);
    one.taken(mib, 0);
  }
  t.ok((one.bytesPerSecond ?? 0) < 15 * mib, `${one.bytesPerSecond}`);
  t.end();
});

t.test('what is compressed: by choice, or where the line is slow and it shrinks', async (t) => {
  const text = Buffer.from('a row of a table; '.repeat(10_000));
  for (const bytesPerSecond of [undefined, 1e9])
    t.equal((await packPayload(text, 'auto', bytesPerSecond)).payload, text, `${bytesPerSecond}`);
  t.equal((await packPayload(text, 'auto', 1e6)).compression, 2);
  t.equal((await packPayload(text, 'zstd', 1e9)).compression, 2);
  t.equal((await packPayload(text, 'lz4', 1e9)).compression, 1);
  t.equal((await packPayload(text, 'none', 1e6)).payload, text);
});
