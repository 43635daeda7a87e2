import t from 'tap';
import { globSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { openDatabase } from '../../../master/database.ts';
import { eventCodes, eventLog } from '../../../master/events.ts';
import type { EventChange } from '../../../master/events.ts';
import { eventsDocument } from '../../../master/eventsdoc.ts';
import type { EventInput } from '../../../master/engine.ts';

const startMs = Date.parse('2026-11-20T00:00:00.000Z');
function setup(maxEvents?: number) {
  const clock = { ms: startMs, nowMs: () => clock.ms };
  const database = openDatabase(':memory:');
  return { clock, database, log: eventLog(database, clock, maxEvents) };
}
function event(message: string, more: Partial<EventInput> = {}): EventInput {
  return { code: 'FullScan', level: 'INFO', message, object: 'Replication/a', ...more };
}
async function take(changes: AsyncIterable<EventChange>, count: number): Promise<EventChange[]> {
  const taken: EventChange[] = [];
  for await (const change of changes) if (taken.push(change) === count) break;
  return taken;
}

t.test('events are listed newest first, by level and time, in pages', async (t) => {
  const { clock, log } = setup();
  for (let index = 0; index < 25; index++) {
    clock.ms += 1000;
    log.emit(event(`m${index}`, { level: index % 5 === 0 ? 'ERROR' : 'INFO' }));
  }
  t.equal(log.list({ limit: 1 }).items[0]?.message, 'm24');
  const seen: string[] = [];
  for (let before: number | null | undefined; before !== null;) {
    const page = log.list({ limit: 7, ...(before === undefined ? {} : { before }) });
    seen.push(...page.items.map((item) => item.message));
    before = page.next;
  }
  t.same(
    seen,
    Array.from({ length: 25 }, (_, index) => `m${24 - index}`),
  );
  const errors = log.list({ limit: 2, level: 'WARNING' });
  t.same(
    errors.items.map((item) => item.message),
    ['m20', 'm15'],
  );
  t.equal(log.list({ limit: 100, sinceMs: startMs + 24_000 }).items.length, 2);
  t.match(log.list({ limit: 1 }).items[0], { kind: 'Event', service: 'replication', count: 1, code: 'FullScan' });
});

t.test('the same event within a minute is counted, not added, and written at most once a second', async (t) => {
  const { clock, log } = setup();
  for (let index = 0; index < 5000; index++) {
    clock.ms += 1;
    log.emit(event('same'));
  }
  t.ok(log.version() <= 6, `${log.version()} writes for 5,000 equal events in five seconds`);
  t.match(log.list({ limit: 10 }).items, [{ count: 5000, firstTime: new Date(startMs + 1).toISOString() }]);
  t.equal(log.list({ limit: 10 }).items.length, 1);
  log.emit(event('same', { object: 'Replication/b' }));
  t.equal(log.list({ limit: 10 }).items.length, 2, 'another object is another event');
  clock.ms += 60_001;
  log.emit(event('same'));
  t.equal(log.list({ limit: 10 }).items.length, 3, 'after a minute it is a new one');
});

t.test('many different events do not make the memory of repeats grow, and their counts are kept', async (t) => {
  const { log } = setup();
  log.emit(event('first'));
  log.emit(event('first'));
  for (let index = 0; index < 1500; index++) log.emit(event(`m${index}`));
  const first = log.list({ limit: 1501 }).items.find((item) => item.message === 'first');
  t.equal(first?.count, 2);
});

t.test('only the newest are kept, and a watch from before them is expired', async (t) => {
  const { log, clock, database } = setup(100);
  for (let index = 0; index < 250; index++) log.emit(event(`m${index}`));
  t.equal(log.list({ limit: 1000 }).items.length, 100);
  const signal = new AbortController().signal;
  t.throws(() => log.watch({ since: 100, filter: {}, signal }), /not known here/);
  t.throws(() => log.watch({ since: 251, filter: {}, signal }), /not known here/);
  const again = eventLog(database, clock, 100);
  t.throws(() => again.watch({ since: 100, filter: {}, signal }), /not known here/, 'after a restart too');
  t.equal((await take(again.watch({ since: 150, filter: {}, signal }), 100)).at(-1)?.object.message, 'm249');
});

t.test('a watch gets each event once, and the counting up of an event as a change of it', async (t) => {
  const { log, clock } = setup();
  const stop = new AbortController();
  const taking = take(log.watch({ since: 0, filter: { level: 'INFO' }, signal: stop.signal }), 3);
  log.emit(event('a'));
  log.emit(event('b', { level: 'TRACE' }));
  await new Promise(setImmediate);
  log.emit(event('c'));
  clock.ms += 2000;
  log.emit(event('a'));
  t.same(
    (await taking).map(({ type, object }) => [type, object.message, object.count, object.id]),
    [
      ['ADDED', 'a', 1, '1'],
      ['ADDED', 'c', 1, '3'],
      ['MODIFIED', 'a', 2, '1'],
    ],
  );
  const ending = take(log.watch({ since: log.version(), filter: {}, signal: stop.signal }), 1);
  stop.abort();
  t.same(await ending, []);
});

t.test('every code that agents send is known', async (t) => {
  const root = new URL('../../..', import.meta.url).pathname;
  const sources = globSync('agent/**/*.ts', { cwd: root }).map((path) => readFileSync(`${root}${path}`, 'utf8'));
  const codes = sources.flatMap((text) =>
    [...text.matchAll(/code: ((?:'\w+'(?: \| )?)+)[,;]\s+level:/g)].flatMap(([, words]) => words?.match(/\w+/g) ?? []),
  );
  t.ok(codes.includes('CutRefused') && codes.includes('CaptureLost'));
  t.same(
    codes.filter((code) => !Object.hasOwn(eventCodes, code ?? '')),
    [],
  );
});

t.test('a code that is not known becomes AgentEvent, and texts are bounded', async (t) => {
  const { log } = setup();
  log.emit(event('x'.repeat(10_000), { code: 'constructor' }));
  const item = log.list({ limit: 1 }).items[0];
  t.match(item, { code: 'AgentEvent', message: /^constructor: x+\.\.\.$/ });
  t.equal(item?.message.length, 4096);
});

t.test('every code is CamelCase, and explained', async (t) => {
  for (const [code, { text }] of Object.entries(eventCodes)) {
    t.match(code, /^([A-Z][a-z]+)+$/);
    t.match(text, /^[A-Z].+\.$/);
  }
});

t.test('every code that the programs emit is in the table', async (t) => {
  const emitted = new Set<string>();
  for (const side of ['master', 'agent']) {
    const folder = new URL(`../../../${side}/`, import.meta.url);
    for (const file of readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) =>
      name.endsWith('.ts'),
    ))
      for (const match of readFileSync(new URL(file, folder), 'utf8').matchAll(
        /(?:emit\(\{\s*code:|tell\([^,()]+,)\s*'([A-Z]\w+)'/g,
      ))
        emitted.add(match[1] ?? '');
  }
  t.ok(emitted.size > 5, [...emitted].join(' '));
  for (const code of emitted) t.ok(Object.hasOwn(eventCodes, code), code);
});

t.test('the document for users has every code as the table has it', async (t) => {
  const text = readFileSync(join(import.meta.dirname, '../../../master/EVENTS.md'), 'utf8');
  t.equal(text, eventsDocument(), 'npm run definitions writes it anew');
  for (const code of Object.keys(eventCodes)) t.match(text, `\n- \`${code}\`: `);
});
