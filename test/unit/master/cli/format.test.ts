import t from 'tap';
import {
  age,
  liveLine,
  painter,
  percent,
  plain,
  progressBar,
  size,
  span,
  table,
} from '../../../../master/cli/format.ts';

const noPaint = painter(false, {});

t.test('columns are aligned, cells that are empty are a dash, lines have no blanks at their end', async (t) => {
  const text = table(['NAME', 'STATE', 'AGE'], [['orders', 'NORMAL', '5m'], ['a', '', '1d']], noPaint); // prettier-ignore
  t.equal(text, 'NAME     STATE    AGE\norders   NORMAL   5m\na        -        1d\n');
});

t.test('colours: on a terminal only, never with NO_COLOR, and they do not move columns', async (t) => {
  t.equal(painter(true, { NO_COLOR: '1' })('x', 'red'), 'x');
  t.equal(painter(true, { TERM: 'dumb' })('x', 'red'), 'x');
  t.equal(painter(false, {})('x', 'red'), 'x');
  const painted = table(['STATE', 'AGE'], [['FAILED', '5m']], painter(true, {}));
  t.match(painted, '\x1b[31mFAILED\x1b[0m');

  t.equal(painted.replaceAll(/\x1b\[\d+m/g, ''), 'STATE    AGE\nFAILED   5m\n');
});

t.test('what comes from elsewhere cannot drive the terminal', async (t) => {
  t.equal(plain('a\x1b[2Jb\r\nc\u202ed\u009be'), 'a?[2Jb??c?d?e');
  t.equal(table(['PATH'], [['/x\x1b]0;title\x07']], noPaint), 'PATH\n/x?]0;title?\n');
});

t.test("ages are kubectl's", async (t) => {
  const ages: [number, string][] = [
    [-3, '0s'], [0, '0s'], [119.9, '119s'], [120, '2m'], [200, '3m20s'], [660, '11m'], [7199, '119m'],
    [7200, '2h'], [13_200, '3h40m'], [172_800, '2d'], [190_800, '2d5h'], [864_000 * 4, '40d'],
  ]; // prettier-ignore
  for (const [seconds, text] of ages) t.equal(age(seconds), text);
  t.equal(age(null), '-');
  t.strictSame([0.84, 9.94, 9.96, 200, null].map(span), ['0.8s', '9.9s', '9s', '3m20s', '-']);
});

t.test('sizes have three digits', async (t) => {
  const sizes: [number | null, string][] = [
    [0, '0 B'], [999, '999 B'], [1000, '1.0 KiB'], [1024 * 980, '980 KiB'], [1024 ** 2 * 99.94, '99.9 MiB'],
    [1024 ** 4 * 10, '10.0 TiB'], [null, '-'],
  ]; // prettier-ignore
  for (const [bytes, text] of sizes) t.equal(size(bytes), text);
});

t.test('a progress bar is full only when all is done, and an empty volume is done', async (t) => {
  const at = (bytesDone: number, bytesTotal: number) => ({
    bytesDone,
    bytesTotal,
    bytesPerSecond: 1024 ** 2,
    secondsLeft: 9,
  });
  t.equal(percent(at(999_999, 1_000_000)), '99%');
  t.equal(percent(at(0, 0)), '100%');
  t.equal(progressBar(at(512, 1024), 8), '[####----]  50%  512 B of 1.0 KiB  1.0 MiB/s  9s left');
  t.notMatch(progressBar({ ...at(1, 2), secondsLeft: null }), /left/);
});

t.test('off a terminal a live line is a plain line, printed when it changes', async (t) => {
  const written: string[] = [];
  const live = liveLine({ isTTY: false, write: (text: string) => written.push(text) } as unknown as NodeJS.WriteStream);
  for (const text of ['a', 'a', 'b']) live.show(text);
  live.end();
  t.strictSame(written, ['a\n', 'b\n']);
  const bars = [0, 3, 9, 10, 11, 99, 100].map((bytesDone) => `copying  ${progressBar({ bytesDone, bytesTotal: 100 })}`);
  written.length = 0;
  for (const text of [...bars, 'done']) live.show(text);
  t.strictSame(
    written,
    [bars[0], bars[3], bars[5], bars[6], 'done'].map((text) => `${text}\n`),
    'each tenth of a bar',
  );
});

t.test('on a terminal a live line is as wide as the terminal, colours apart', async (t) => {
  const written: string[] = [];
  const write = (text: string) => written.push(text);
  const live = liveLine({ isTTY: true, columns: 11, write } as unknown as NodeJS.WriteStream);
  live.show('\x1b[32mRunning\x1b[0m  copying');
  t.strictSame(written, ['\r\x1b[K\x1b[32mRunning\x1b[0m  c']);
});
