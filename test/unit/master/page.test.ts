/** What of the page can be looked at without a browser: its texts, its numbers, and that it has no way around its policy. */
import t from 'tap';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const folder = join(import.meta.dirname, '../../../master/page');
const sources = readdirSync(folder)
  .filter((name) => name.endsWith('.js'))
  .map((name) => ({ name, text: readFileSync(join(folder, name), 'utf8') }));
Object.defineProperty(globalThis, 'localStorage', { value: { getItem: () => 'en', setItem: () => undefined } });

interface Texts {
  words: Record<string, [string, string]>;
  setLanguage: (language: string) => void;
  t: (key: string, values?: Record<string, string>) => string;
}
interface Formats {
  size: (bytes: number | null) => string;
  span: (seconds: number | null) => string;
  learnClock: (status: { lastSyncTime: string; lagSeconds: number }) => void;
  nowMs: () => number;
}
async function load<T>(name: string): Promise<T> {
  return (await import(join(folder, name))) as T;
}

interface Views {
  inOrder: (list: object[]) => { metadata: { name: string } }[];
}

t.test('replications in trouble come first, then those that are not there yet; names as people count', async (t) => {
  const { inOrder } = await load<Views>('replicationviews.js');
  const one = (name: string, state: string, reason?: string): object => ({
    metadata: { name },
    status: { state, conditions: [{ type: 'Degraded', status: reason === undefined ? 'False' : 'True', reason }] },
  });
  const list = [
    one('vol10', 'NORMAL'),
    one('vol2', 'NORMAL'),
    one('new', 'PREPARING'),
    one('old', 'NORMAL', 'Late'),
    one('z', 'FAILED', 'SourceGone'),
    one('b10', 'ERROR', 'SpaceLow'),
    one('b9', 'ERROR', 'SpaceLow'),
  ];
  t.same(
    inOrder(list).map(({ metadata }) => metadata.name),
    ['b9', 'b10', 'z', 'old', 'new', 'vol2', 'vol10'],
  );
});

interface Plot {
  groupsOf: (items: number[], x: (item: number) => number) => { at: number; items: number[] }[];
}

t.test('marks that would cover each other are one, with what it stands for in its order', async (t) => {
  const { groupsOf } = await load<Plot>('plot.js');
  t.same(groupsOf([], Number), []);
  const marks = groupsOf([40, 0, 17, 17, 18, 100], Number);
  t.same(marks, [
    { at: 0, items: [0, 17, 17] },
    { at: 18, items: [18] },
    { at: 40, items: [40] },
    { at: 100, items: [100] },
  ]);
});

t.test('every text is there in both languages with the same places, and every one that is used', async (t) => {
  const { words, setLanguage, t: say } = await load<Texts>('text.js');
  const places = (text: string): string[] => [...text.matchAll(/\{\w+\}/g)].map(([place]) => place).sort();
  for (const [key, [english, korean]] of Object.entries(words)) {
    t.ok(english !== '' && korean !== '', key);
    t.same(places(english), places(korean), key);
  }
  const code = sources.filter(({ name }) => name !== 'text.js');
  const used = code.flatMap(({ text }) => [...text.matchAll(/\bt\('(\w+)'/g)].map(([, key]) => key ?? ''));
  t.ok(used.length > 100);
  t.same(
    used.filter((key) => !(key in words)),
    [],
    'used and not there',
  );
  const all = code.map(({ text }) => text).join('\n');
  t.same(
    // Some keys are values of the API: verbs, types, places.
    Object.keys(words).filter((key) => !new RegExp(`\\b${key}\\b`).test(all)),
    [],
    'there and not used',
  );
  setLanguage('ko');
  t.equal(say('ageOfTarget', { age: '1 s', target: '5 s' }), '1 s / 목표 5 s');
});

t.test('numbers are as people read them', async (t) => {
  const { size, span, learnClock, nowMs } = await load<Formats>('format.js');
  t.same([null, 0, 1023, 1536, 5 * 2 ** 40].map(size), ['–', '0 B', '1023 B', '1.5 KiB', '5.0 TiB']);
  t.same([null, 0.84, 59, 310, 3600, 11_100, 187_200].map(span), [
    '–',
    '0.8 s',
    '59 s',
    '5 min 10 s',
    '1 h',
    '3 h 5 min',
    '2 d 4 h',
  ]);
  // The master says: synced a minute ago. A browser whose clock is an hour behind must not show an hour.
  const masterMs = Date.now() + 3_600_000;
  learnClock({ lastSyncTime: new Date(masterMs - 60_000).toISOString(), lagSeconds: 60 });
  t.ok(Math.abs(nowMs() - masterMs) < 1000);
});

t.test('the page parses no HTML, holds no style and no script of its own, and asks nobody but its master', (t) => {
  for (const { name, text } of sources)
    t.notMatch(
      text,
      /innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?:\/\/(?!www\.w3\.org)/,
      name,
    );
  const html = readFileSync(join(folder, 'index.html'), 'utf8');
  t.notMatch(html, /<style|style=|<script(?! type="module" src="\/page\/main\.js"><\/script>)|\son\w+=|https?:/);
  t.end();
});
