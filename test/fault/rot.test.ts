/**
 * Storage that changes what it holds without a word: bits are flipped in every kind of file of a replica, of block and of file
 * volumes, closed and in use. What is damaged is found, named, and refused or repaired from the source; never served,
 * never spread into what comes later.
 *
 * REPLICATOR_LONG=1: 150 trials for each kind of file (REPLICATOR_TRIES: another number). REPLICATOR_SEED begins elsewhere; a failure names its own.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { asReplicationError, ReplicationError } from '../../proto/errors.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import { randomOf } from '../unit/master/replica/treemodel.ts';
import { checkCopies, commit, none, offerAll, openReplica, removeCopy, send, Source, writer } from './subject.ts';
import { compare, refusals } from './subject.ts';
import { chosenSeed } from '../seed.ts';

t.setTimeout(3_600_000);
const trials = Number(process.env['REPLICATOR_TRIES'] ?? (process.env['REPLICATOR_LONG'] ? 150 : 1));
const firstSeed = chosenSeed();
const root = fs.mkdtempSync(join(fs.existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'replica-rot-'));
t.teardown(() => {
  // Locked snapshots are immutable where the filesystem can do that.
  spawnSync('chattr', ['-R', '-i', root]);
  fs.rmSync(root, { recursive: true, force: true });
});

const generation = '5';

/** Points in the base, points in the journal, snapshots, and open databases as a killed process leaves them. */
async function made(mode: VolumeMode): Promise<{ source: Source; closed: string; killed: string }> {
  const source = new Source(mode, 3);
  const [closed, killed] = [join(root, `${mode}-closed`), join(root, `${mode}-killed`)];
  const folder = join(root, `${mode}-made`);
  const replica = await openReplica(folder, mode);
  const session = await replica.attach({ ...writer, generation, sizeBytes: source.sizeBytes });
  const points = async (count: number): Promise<void> => {
    for (let at = 0; at < count; at++) {
      await send(replica, session, source.change(mode === 'Block' ? 8 : 14));
      await commit(replica, session, source, at % 4 !== 3);
    }
  };
  await points(6);
  const { newestPoint } = replica;
  assert.ok(newestPoint);
  await replica.snapshot('old', newestPoint, none, () => undefined, Date.now() + 1e9);
  await replica.advance(0, none);
  await points(8);
  await replica.noteDrill(replica.newestPoint?.sequence ?? 0, 5);
  await replica.close();
  execFileSync('cp', ['-a', folder, closed]);
  const again = await openReplica(folder, mode);
  const other = await again.attach({ ...writer, generation, sizeBytes: source.sizeBytes });
  await send(again, other, source.change());
  await commit(again, other, source);
  execFileSync('cp', ['-a', folder, killed]);
  await again.close();
  return { source, closed, killed };
}

function filesOf(folder: string): string[] {
  return fs
    .readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !entry.name.endsWith('-shm'))
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .filter((path) => fs.statSync(join(folder, path)).size > 0);
}

/** What a kind of file is called when it is told of. */
function kindOf(path: string): string {
  if (path.includes('tree/')) return path.startsWith('base') ? 'base/tree' : 'snapshot/tree';
  return path.replace(/^snapshots\/[^/]+/, 'snapshot').replace(/\d{16}/, 'segment');
}

function flip(path: string, random: (below: number) => number): string {
  const { size, mtimeNs } = fs.statSync(path, { bigint: true });
  const file = fs.openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  // Half of the time where something is: databases are mostly empty.
  const whole = fs.readFileSync(path);
  let at = random(Number(size));
  if (random(2)) while (whole[at] === 0 && at < whole.length - 1) at++;
  const bit = random(8);
  fs.readSync(file, byte, 0, 1, at);
  byte[0] = (byte[0] ?? 0) ^ (1 << bit);
  fs.writeSync(file, byte, 0, 1, at);
  fs.closeSync(file);
  // Rot leaves no trace in the times either.
  const time = `@${mtimeNs / 1_000_000_000n}.${String(mtimeNs % 1_000_000_000n).padStart(9, '0')}`;
  if (path.includes('/tree/')) execFileSync('touch', ['-d', time, path]);
  return `bit ${bit} of byte ${at} of ${size}`;
}

/** One trial; answers what became of the damage. */
async function trial(
  { source, closed, killed }: Awaited<ReturnType<typeof made>>,
  kind: string,
  seed: number,
): Promise<'unharmed' | 'refused' | 'repaired' | 'not opened'> {
  const { mode } = source;
  const random = randomOf(Math.imul(seed, 0x9e3779b1) >>> 1);
  const folder = join(root, 'trial');
  const scratch = join(root, 'scratch');
  fs.rmSync(scratch, { recursive: true, force: true });
  execFileSync('rm', ['-rf', folder]);
  fs.mkdirSync(scratch);
  const from = [closed, killed].filter((one) => filesOf(one).some((path) => kindOf(path) === kind));
  execFileSync('cp', ['-a', from[random(from.length)] ?? closed, folder]);
  const files = filesOf(folder).filter((path) => kindOf(path) === kind);
  const file = files[random(files.length)] ?? '';
  const doubts: string[] = [];
  const inUse = random(3) === 0;
  const log: string[] = [];
  try {
    if (!inUse) log.push(flip(join(folder, file), random));
    let replica;
    try {
      replica = await openReplica(folder, mode, (why) => doubts.push(why));
    } catch (error) {
      const { message } = asReplicationError(error);
      const said = error instanceof ReplicationError && (message.includes(folder) || message.includes(file));
      assert.ok(said, `what does not open says which file: ${String(error)}`);
      return 'not opened';
    }
    try {
      if (inUse) log.push(`${flip(join(folder, file), random)} while it is open`);
      assert.ok(BigInt(replica.generation) >= BigInt(generation), 'I4: no generation is forgotten');
      // Bytes of an image are proven when they are read.
      const isContent = /image\.raw$|tree$/.test(kind);
      const mayRefuse = (): boolean => true;
      const refused = await checkCopies(replica, source, scratch, { verify: true, mayRefuse });
      if (!isContent) await checkCopies(replica, source, scratch, { verify: false, mayRefuse });
      log.push(...refused);
    } finally {
      await replica.close();
    }
    const { cured } = await cure(folder, source, scratch, doubts, log, kind);
    if (!cured) return 'refused';
    return doubts.length === 0 && log.length === 1 ? 'unharmed' : 'repaired';
  } catch (error) {
    const text = [...log, ...doubts.map((why) => `doubt: ${why}`)].join('\n  ');
    throw new Error(`REPLICATOR_SEED=${seed} ${mode} ${file}\n  ${text}\n  ${(error as Error).stack ?? ''}`);
  }
}

/** Sessions as an agent has them, each after the other until a point is there; it and all later ones are right. */
async function cure(
  folder: string,
  source: Source,
  scratch: string,
  doubts: string[],
  log: string[],
  kind: string,
): Promise<{ cured: boolean }> {
  const { mode } = source;
  const moment = source.moment();
  for (let attempt = 1; ; attempt++) {
    try {
      const replica = await openReplica(folder, mode, (why) => doubts.push(why));
      try {
        const session = await replica.attach({ ...writer, generation: '6', sizeBytes: source.sizeBytes });
        const { badGranules } = await replica.scrub(session, none, () => undefined);
        if (badGranules > 0) log.push(`scrub: ${badGranules} bad`);
        await offerAll(replica, session, moment);
        const record = await commit(replica, session, source, true, false);
        const copy = async (what: string): Promise<void> => {
          const point = replica.newestPoint;
          assert.equal(point?.sequence, record.sequence, what);
          if (!point) return;
          await replica.recover(point, `${scratch}/cured`, { verify: true, signal: none, progress: () => undefined });
          await compare(`${scratch}/cured`, moment, `${what}, the point that came after it`);
          await removeCopy(`${scratch}/cured`, mode);
        };
        await copy('from the journal');
        await replica.advance(0, none);
        await copy('from the base');
        const again = await replica.scrub(session, none, () => undefined);
        assert.equal(again.badGranules, 0, 'nothing is bad any more');
        return { cured: true };
      } finally {
        await replica.close();
      }
    } catch (error) {
      const { code, message } = asReplicationError(error, 'TargetFailed');
      if (!(error instanceof ReplicationError) || !refusals.includes(code)) throw error;
      log.push(`${kind}, attempt ${attempt}: ${code} ${message}`);
      if (attempt < 4) continue;
      assert.ok(message.includes(folder), `what cannot be cured says which file: ${message}`);
      return { cured: false };
    }
  }
}

for (const mode of ['Block', 'Filesystem'] as const) {
  t.test(`${mode}: a flipped bit is never served`, async (t) => {
    const subject = await made(mode);
    const kinds = new Set([subject.closed, subject.killed].flatMap((folder) => filesOf(folder).map(kindOf)));
    for (const kind of [...kinds].sort()) {
      await t.test(kind, async (t) => {
        const outcomes: Record<string, number> = {};
        const failures: string[] = [];
        for (let seed = firstSeed; seed < firstSeed + trials; seed++) {
          try {
            const outcome = await trial(subject, kind, seed);
            outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
          } catch (error) {
            failures.push((error as Error).message);
          }
        }
        t.comment(`${kind}: ${JSON.stringify(outcomes)}`);
        t.same(failures.slice(0, 3), [], `${failures.length} of ${trials}`);
      });
    }
  });
}
