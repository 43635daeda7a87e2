import t from 'tap';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DirtyMap, type MapStore } from '../../../../agent/capture/dirtymap.ts';
import { formatHeader, mapFile, parseHeader } from '../../../../agent/capture/mapfile.ts';
import { granuleBytes } from '../../../../proto/granule.ts';

const granules = 40;
const sizeBytes = granules * granuleBytes - 100;
const digest = (sequence: number): Buffer => Buffer.alloc(16, sequence);

/** A store that dies at the step that it is told to, with what was written before it. */
class DyingStore implements MapStore {
  header: Buffer | undefined;
  readonly pages = new Map<number, Buffer>();
  left = Infinity;

  #step(): void {
    if (--this.left < 0) throw new Error('killed');
  }

  async read() {
    const header = this.header && parseHeader(this.header);
    return header && { header, pages: [...this.pages] };
  }

  async writePages(pages: [number, Buffer | undefined][]): Promise<void> {
    for (const [number, bytes] of pages) {
      this.#step();
      this.pages.set(number, Buffer.from(bytes ?? Buffer.alloc(4096)));
    }
  }

  async writeHeader(header: Parameters<MapStore['writeHeader']>[0]): Promise<void> {
    this.#step();
    this.header = formatHeader(header);
  }

  async sync(): Promise<void> {
    this.#step();
  }
}

async function fresh(store: MapStore): Promise<DirtyMap> {
  const map = new DirtyMap(store);
  map.resize(sizeBytes);
  map.adopt(1, digest(1), true);
  map.passed();
  map.take(0, granules);
  map.handed(0, granules);
  await map.prepare(2, '1');
  await map.committed(2, digest(2));
  await map.persist('ftrace', { at: 0 });
  return map;
}

t.test('a mark leaves the map when its commit is acknowledged, and not if it was made anew meanwhile', async (t) => {
  const map = await fresh(new DyingStore());
  t.equal(map.dirtyBytes, 0);
  map.markBytes(granuleBytes - 1, 2);
  t.same(map.next(0, 99), { first: 0, end: 2 });
  map.take(0, 2);
  map.markBytes(0, 1);
  map.handed(0, 2);
  t.equal(map.dirtyBytes, 2 * granuleBytes, 'both until the commit');
  await map.prepare(3, '1');
  await map.committed(3, digest(3));
  t.same(map.next(0, 99), { first: 0, end: 1 });
  t.equal(map.dirtyBytes, granuleBytes);
});

t.test('what a commit did not carry stays: taken and not handed out, or of a session that failed', async (t) => {
  const map = await fresh(new DyingStore());
  map.markBytes(0, 4 * granuleBytes);
  map.take(0, 3);
  map.handed(0, 1);
  await map.prepare(3, '1');
  await map.committed(3, digest(3));
  t.equal(map.dirtyBytes, 3 * granuleBytes, 'read ahead of the commit');
  map.handed(1, 2);
  map.back();
  t.same(map.next(0, 99), { first: 1, end: 4 });
});

t.test('what is handed out while a commit is under way belongs to the next one', async (t) => {
  const map = await fresh(new DyingStore());
  map.markBytes(0, 3 * granuleBytes);
  map.take(0, 2);
  map.handed(0, 2);
  await map.prepare(3, '1');
  // Written again, read again, and another one.
  map.markBytes(0, 1);
  map.take(0, 1);
  map.handed(0, 1);
  map.take(2, 3);
  map.handed(2, 3);
  await map.committed(3, digest(3));
  t.equal(map.dirtyBytes, 2 * granuleBytes);
  t.equal(map.next(0, 99), undefined, 'nothing is to be read anew');
  map.back();
  t.same([...map.dirty.runs()], [{ first: 0, end: 1 }, { first: 2, end: 3 }]); // prettier-ignore
  map.take(0, 3);
  map.handed(0, 3);
  await map.prepare(4, '1');
  map.back();
  t.same([...map.dirty.runs()], [{ first: 0, end: 3 }], 'of a session that failed before the answer'); // prettier-ignore
});

t.test('growth is marked with the granule that was the last one', async (t) => {
  const map = await fresh(new DyingStore());
  map.resize(sizeBytes + 2 * granuleBytes);
  t.same(map.next(0, 99), { first: granules - 1, end: granules + 2 });
  map.markBytes(0, Infinity);
  t.equal(map.dirtyBytes, sizeBytes + 2 * granuleBytes, 'and never more than the volume has');
  const aligned = await fresh(new DyingStore());
  aligned.resize(granules * granuleBytes);
  aligned.take(0, granules);
  aligned.resize((granules + 1) * granuleBytes);
  t.same(aligned.next(0, 99), { first: granules - 1, end: granules + 1 }, 'a whole one too: nobody tells of it');
});

t.test('a commit whose head cannot be written leaves the marks that the head of before needs', async (t) => {
  const store = new DyingStore();
  const map = await fresh(store);
  map.markBytes(0, 1);
  await map.persist('ftrace', { at: 1 });
  map.take(0, 1);
  map.handed(0, 1);
  await map.prepare(3, '1');
  // Pages can be written, and no header any more.
  store.writeHeader = async () => Promise.reject(new Error('full'));
  await map.committed(3, digest(3));
  await map.persist('ftrace', { at: 1 });
  const next = new DirtyMap(store);
  await next.load();
  t.ok(next.belongsTo(2, digest(2), '2'), 'the replica may lose its newest commit with its disk');
  t.ok(next.dirty.has(0));
});

t.test('the map belongs to the replica where it was left, or whose commit was on its way', async (t) => {
  const store = new DyingStore();
  const map = await fresh(store);
  await map.prepare(3, '1');
  const next = async (): Promise<DirtyMap> => {
    const one = new DirtyMap(store);
    t.same(await one.load(), { method: 'ftrace', state: { at: 0 } });
    return one;
  };
  t.ok((await next()).belongsTo(2, digest(2), '1'));
  t.ok((await next()).belongsTo(3, digest(9), '1'), 'the answer was lost');
  t.notOk((await next()).belongsTo(2, digest(9), '1'));
  t.notOk((await next()).belongsTo(4, digest(4), '1'));
  t.notOk((await next()).belongsTo(1, digest(1), '1'));
  t.notOk((await next()).belongsTo(3, digest(9), '2'), 'the commit of another writer');
  t.ok((await next()).belongsTo(2, digest(2), '2'), 'what is known by its digest is known');
});

t.test('killed at any step, the next agent finds every mark that the replica needs', async () => {
  const step = fc.constantFrom('mark', 'read', 'commit', 'send', 'ack', 'fail', 'persist' as const);
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(step, fc.nat(granules - 1), fc.integer({ min: 1, max: 6 })), { maxLength: 30 }),
      fc.nat(40),
      async (steps, killedAfter) => {
        const store = new DyingStore();
        const map = await fresh(store);
        // What the volume and the replica hold; the capture's state counts the writes that are marked.
        const volume = new Array<number>(granules).fill(0);
        let replica = [...volume];
        let read = new Map<number, number>();
        let sequence = 2;
        let writes = 0;
        store.left = killedAfter;
        let known = { sequence, writes: 0 };
        // A commit that is durable and not yet acknowledged: what is read meanwhile belongs to the next.
        let isSent = false;
        let killed = false;
        const noteFailure = (): void => {
          killed ||= map.failure !== undefined;
        };
        for (const [kind, at, size] of steps) {
          if (killed) break;
          if (kind === 'mark') {
            for (let i = at; i < Math.min(granules, at + size); i++) volume[i] = ++writes;
            map.markBytes(at * granuleBytes, size * granuleBytes);
          } else if (kind === 'read') {
            for (let run = map.next(at, size); run; run = undefined) {
              map.take(run.first, run.end);
              for (let i = run.first; i < run.end; i++) read.set(i, volume[i] ?? 0);
              map.handed(run.first, run.end);
            }
          } else if (kind === 'ack' && isSent) {
            await map.committed(sequence, digest(sequence));
            isSent = false;
          } else if (kind === 'commit' || kind === 'ack' || kind === 'send') {
            if (isSent) continue;
            await map.prepare(sequence + 1, '1');
            noteFailure();
            if (killed) break;
            sequence++;
            replica = replica.map((value, index) => read.get(index) ?? value);
            read = new Map();
            if (kind === 'commit') break; // durable, and killed before the answer
            if (kind === 'ack') await map.committed(sequence, digest(sequence));
            else isSent = true;
          } else if (kind === 'fail') {
            map.back();
            read = new Map();
            // The next session finds what is durable.
            assert(map.belongsTo(sequence, digest(sequence), '1'));
            isSent = false;
          } else {
            const state = { at: writes };
            if (await map.persist('ftrace', state)) known = { sequence, writes };
          }
          noteFailure();
        }
        const next = new DirtyMap(store);
        const loaded = await next.load();
        assert(loaded, 'there is a map');
        assert(next.belongsTo(sequence, digest(sequence), '1'), 'and it is of this replica');
        const { at: marked } = loaded?.state as { at: number };
        assert(marked >= known.writes);
        // The capture brings what was written after its state; all before must be marked where the replica lacks it.
        for (let i = 0; i < granules; i++) {
          const written = volume[i] ?? 0;
          if (written <= marked && replica[i] !== written) assert(next.dirty.has(i), `granule ${i}`);
        }
      },
    ),
    { numRuns: 400 },
  );
});

t.test('a file: what was kept is found again, what is damaged is no map', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'map-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'deep', 'map');
  const big = 5 * 2 ** 40;
  const map = new DirtyMap(mapFile(path));
  t.equal(await map.load(), undefined, 'there is none');
  map.resize(big);
  map.markBytes(3 * granuleBytes, 1);
  map.markBytes(big - 1, 1);
  t.equal(await map.persist('ftrace', { some: 'state' }, true), true);
  const again = new DirtyMap(mapFile(path));
  t.same(await again.load(), { method: 'ftrace', state: { some: 'state' } });
  t.same([...again.dirty.runs()], [...map.dirty.runs()]);
  t.equal(again.sizeBytes, big);

  const bytes = readFileSync(path);
  writeFileSync(path, bytes.with(30, 1));
  t.equal(await new DirtyMap(mapFile(path)).load(), undefined, 'a header that does not add up');
  truncateSync(path, 100);
  t.equal(await new DirtyMap(mapFile(path)).load(), undefined, 'one cut short');
});

t.test('a map that cannot be written says so, and works on', async (t) => {
  const map = new DirtyMap(mapFile('/dev/full'));
  map.resize(sizeBytes);
  t.equal(await map.persist('ftrace', {}), false);
  t.match(map.failure, /ENOSPC/);
  map.markBytes(0, 1);
  t.equal(map.dirty.count > 0, true);
});
