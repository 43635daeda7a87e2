import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Replica } from '../../../../master/replica/replica.ts';
import { asReplicationError } from '../../../../proto/errors.ts';
import { granuleBytes } from '../../../../proto/granule.ts';
import { systemEffects } from '../../../../proto/system.ts';
import type { VolumeMode } from '../../../../proto/wire.ts';
import { compare, commit, none, openReplica, removeCopy, send, Source, writer } from '../../../fault/subject.ts';
import { commitOf, dataOf } from './blockreplica.ts';
import { randomOf } from './treemodel.ts';

const scratch = fs.existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
const quiet = { signal: none, progress: () => undefined };

/** A base that stands at a point, and points in the journal after it. */
async function made(folder: string, mode: VolumeMode, seed: number) {
  const source = new Source(mode, seed);
  const replica = await openReplica(folder, mode);
  const session = await replica.attach({ ...writer, generation: '1', sizeBytes: source.sizeBytes });
  const points = async (count: number): Promise<void> => {
    for (let at = 0; at < count; at++) {
      await send(replica, session, source.change(mode === 'Block' ? 6 : 20));
      await commit(replica, session, source);
    }
  };
  await points(6);
  await replica.advance(0, none);
  await points(4);
  return { source, replica };
}

/** Three pages of hashes. */
async function large(folder: string): Promise<Replica> {
  const sizeBytes = 40 << 20;
  const replica = await openReplica(folder, 'Block');
  const session = await replica.attach({ ...writer, generation: '1', sizeBytes });
  for (const data of dataOf({ 0: 1, 300: 2, 600: 3 }, sizeBytes)) await replica.data(session, data);
  await replica.commit(session, commitOf(1, sizeBytes));
  await replica.advance(0, none);
  return replica;
}

function contentFiles(folder: string): string[] {
  return (
    fs
      .readdirSync(join(folder, 'base'), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && !entry.name.startsWith('index.db'))
      .map((entry) => join(entry.parentPath, entry.name))
      // Names need not be text.
      .filter((path) => (fs.statSync(path, { throwIfNoEntry: false })?.size ?? 0) > 0)
  );
}

function flip(path: string, at: number): void {
  const { atime, mtime } = fs.statSync(path);
  const file = fs.openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  fs.readSync(file, byte, 0, 1, at);
  byte[0] = (byte[0] ?? 0) ^ 4;
  fs.writeSync(file, byte, 0, 1, at);
  fs.closeSync(file);
  fs.utimesSync(path, atime, mtime);
}

for (const mode of ['Block', 'Filesystem'] as const)
  t.test(`${mode}: a point is told to be wrong exactly when a copy that was handed out unread is`, async (t) => {
    const root = fs.mkdtempSync(join(scratch, 'proof-'));
    t.teardown(() => fs.rmSync(root, { recursive: true, force: true }));
    const seen = { right: 0, wrong: 0 };
    for (let seed = 1; seed <= 8; seed++) {
      const folder = join(root, String(seed));
      const { source, replica } = await made(folder, mode, seed);
      const random = randomOf(seed);
      const files = contentFiles(folder);
      const file = files[random(files.length)];
      const at = file === undefined ? 0 : random(fs.statSync(file).size);
      if (file !== undefined) flip(file, at);
      for (const point of replica.points) {
        const path = join(root, 'copy');
        await replica.recover(point, path, { verify: false, ...quiet });
        const known = source.momentOf(point);
        if (!known) throw new Error('a point that was never committed');
        const wrong = await compare(path, known.moment, '').then(
          () => false,
          () => true,
        );
        await removeCopy(path, mode);
        const { bad, badGranules } = await replica.prove(point, quiet);
        t.equal(badGranules > 0, wrong, `seed ${seed}, point ${point.sequence}, byte ${at} of ${file}: ${bad.join()}`);
        const granule = Math.floor(at / granuleBytes) * granuleBytes;
        if (wrong) t.match(bad[0], mode === 'Block' ? `byte ${granule}` : new RegExp(`^byte ${granule} of "`));
        seen[wrong ? 'wrong' : 'right']++;
      }
      await replica.close();
      fs.rmSync(folder, { recursive: true });
    }
    t.ok(seen.wrong > 3 && seen.right > 3, JSON.stringify(seen));
  });

t.test('it is read in slices, others come between, and it can be broken off', async (t) => {
  for (const mode of ['Block', 'Filesystem'] as const) {
    const folder = fs.mkdtempSync(join(scratch, 'proof-'));
    t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
    const first = mode === 'Block' ? await large(join(folder, 'r')) : (await made(join(folder, 'r'), mode, 5)).replica;
    await first.close();
    let nowMs = 0;
    let pauses = 0;
    let pausing = async (): Promise<void> => undefined;
    const replica = await Replica.open({
      // Each look at the clock is a second later: all slices are as short as they can be.
      effects: {
        ...systemEffects,
        clock: {
          nowMs: () => Date.now(),
          monotonicMs: () => (nowMs += 1000),
          sleep: async (_ms, signal) => {
            pauses++;
            await pausing();
            signal?.throwIfAborted();
          },
        },
      },
      place: { folder: join(folder, 'r'), indexFolder: join(folder, 'r') },
      mode,
    });
    const point = replica.newestPoint;
    if (!point) throw new Error('there is no point');
    const told: number[][] = [];
    // What wants the base for itself gets it between two slices.
    pausing = async () => replica.deleteSnapshot('none');
    const proven = await replica.prove(point, { signal: none, progress: (...bytes) => told.push(bytes) });
    t.equal(proven.badGranules, 0);
    t.ok(pauses > 1, `${pauses} pauses`);
    t.equal(told.at(-1)?.[0], told.at(-1)?.[1], 'it ends with all of it');
    const over = new AbortController();
    pausing = async () => over.abort(new Error('enough'));
    await t.rejects(replica.prove(point, { signal: over.signal, progress: () => undefined }), /enough/);
    pausing = async () => undefined;
    await replica.close();
    const code = await replica.prove(point, quiet).catch((error: unknown) => asReplicationError(error).code);
    t.type(code, 'string', 'one that was closed answers nothing');
    t.not(code, 'ReplicaDamaged');
  }
});
