/**
 * What every capture does, whatever the volume: after each cut that is committed the replica is the volume at that cut, over
 * crashes at any step; what the replica has does not cross again; nothing changed is proven only when nothing did.
 */
import type { Test } from 'tap';
import type { Refusal } from '../../agent/refusal.ts';
import type { Source } from '../../agent/source.ts';
import { ModelReplica } from './modelreplica.ts';

/** A volume and its capture on this machine. */
export interface Captured {
  mode: 'Block' | 'Filesystem';
  /** A source over what the last one left behind. */
  open(): Source;
  /** As after kill -9: what the source keeps on disk stays as it is at this moment; the object is not used any more. */
  crash(source: Source): Promise<void>;
  /** What the agent keeps is lost. */
  forget(): void;
  remove(): Promise<void>;
}

/** Who writes to the volume. */
export interface Adversary {
  /** Some changes; none under way when it returns. */
  change(): Promise<void>;
  /** How the replica differs from the volume as it is now; empty = not at all. */
  differences(replica: ModelReplica): Promise<string[]>;
}

const never = new AbortController().signal;

export async function attach(source: Source, replica: ModelReplica): Promise<{ whole: boolean; reason: string }> {
  replica.discard();
  await source.facts();
  return source.attach(replica.welcome(), () => replica.manifest());
}

export async function commit(source: Source, replica: ModelReplica, point: boolean): Promise<void> {
  const sequence = replica.sequence + 1;
  await source.prepare(sequence);
  replica.commit(sequence, source.commitSizeBytes(), point);
  await source.committed(sequence, point, replica.welcome().digest);
}

/** Round, cut, commit. `commitEvery`: progress commits after so many pieces. Answers why there is no point, if so. */
export async function sync(
  source: Source,
  replica: ModelReplica,
  options: { whole?: boolean; commitEvery?: number } = {},
): Promise<Refusal | undefined> {
  let pieces = 0;
  const progress = async (): Promise<void> => {
    if (options.commitEvery && ++pieces % options.commitEvery === 0 && !source.isIndivisible)
      await commit(source, replica, false);
  };
  for await (const piece of source.round(options.whole ?? false, () => undefined, never)) {
    replica.take(piece);
    await progress();
  }
  const cut = await source.cut(never);
  try {
    for await (const piece of cut.pieces(never)) {
      replica.take(piece);
      await progress();
    }
    const broken = await cut.broken();
    if (broken === undefined) await commit(source, replica, true);
    return broken;
  } finally {
    await cut.release();
  }
}

/** Where a crash strikes in a sync. */
const crashes = ['in the round', 'in the cut', 'before prepare', 'after prepare', 'after commit', 'after ack'] as const;

async function crashing(
  captured: Captured,
  replica: ModelReplica,
  at: (typeof crashes)[number],
  seed: number,
): Promise<void> {
  const source = captured.open();
  const { whole } = await attach(source, replica);
  let left = at === 'in the round' ? seed % 7 : Infinity;
  for await (const piece of source.round(whole, () => undefined, never)) {
    if (left-- <= 0) break;
    replica.take(piece);
  }
  if (at === 'in the round') return captured.crash(source);
  const cut = await source.cut(never);
  left = at === 'in the cut' ? seed % 5 : Infinity;
  for await (const piece of cut.pieces(never)) {
    if (left-- <= 0) break;
    replica.take(piece);
  }
  if (at === 'in the cut') return captured.crash(source);
  const sequence = replica.sequence + 1;
  const isCut = (await cut.broken()) === undefined;
  if (at !== 'before prepare') await source.prepare(sequence);
  if (at === 'after commit' || at === 'after ack') replica.commit(sequence, source.commitSizeBytes(), isCut);
  if (at === 'after ack') await source.committed(sequence, isCut, replica.welcome().digest);
  await captured.crash(source);
}

export function captureConformance(
  t: Test,
  name: string,
  makeSource: () => Promise<Captured>,
  adversary: (captured: Captured, seed: number) => Adversary,
  seeds: number[] = [1],
  /** Whether it can tell that nothing was changed. */
  provesRest = true,
): Promise<unknown> {
  return t.test(`capture: ${name}`, async (suite) => {
    for (const seed of seeds) {
      await suite.test(`each cut brings the volume as it is (seed ${seed})`, async (t) => {
        const captured = await makeSource();
        t.teardown(() => captured.remove());
        const writer = adversary(captured, seed);
        const replica = new ModelReplica(captured.mode);
        const source = captured.open();
        await writer.change();
        const { whole } = await attach(source, replica);
        for (let round = 0; round < 25; round++) {
          const options = {
            whole: round === 0 ? whole : round % 10 === 9,
            commitEvery: round % 3 === 0 ? 1 + (round % 5) : 0,
          };
          t.equal(await sync(source, replica, options), undefined, 'the cut held');
          t.strictSame(await writer.differences(replica), [], `cut ${round}`);
          await writer.change();
        }
        await source.close();
      });

      await suite.test(`a crash anywhere loses nothing and invents nothing (seed ${seed})`, async (t) => {
        const captured = await makeSource();
        t.teardown(() => captured.remove());
        const writer = adversary(captured, seed + 1000);
        const replica = new ModelReplica(captured.mode);
        for (let round = 0; round < 24; round++) {
          await writer.change();
          const at = crashes[(round * 7 + seed) % crashes.length] as (typeof crashes)[number];
          if (round % 8 === 7) captured.forget();
          await crashing(captured, replica, at, round + seed);
          if (round % 3 === 1) await writer.change();
          if (round % 4 === 2) continue; // crash after crash
          const source = captured.open();
          const { whole } = await attach(source, replica);
          t.equal(await sync(source, replica, { whole, commitEvery: round % 5 }), undefined);
          t.strictSame(await writer.differences(replica), [], `after a crash ${at}, round ${round}`);
          if (round % 2) await source.close();
          else await captured.crash(source);
        }
      });
    }

    await suite.test('what the replica has does not cross again', async (t) => {
      const captured = await makeSource();
      t.teardown(() => captured.remove());
      const writer = adversary(captured, 42);
      const replica = new ModelReplica(captured.mode);
      await writer.change();
      let source = captured.open();
      await sync(source, replica, await attach(source, replica));
      const { sentBytes } = replica;
      await source.close();
      captured.forget();
      source = captured.open();
      t.equal((await attach(source, replica)).whole, true, 'an agent that lost its memory compares');
      await sync(source, replica, { whole: true });
      t.equal(replica.sentBytes, sentBytes);
      await sync(source, replica, { whole: true });
      t.equal(replica.sentBytes, sentBytes);
      t.equal(replica.mismatched, 0, 'and finds nothing wrong');
      t.strictSame(await writer.differences(replica), []);
      await source.close();
    });

    if (!provesRest) return;
    await suite.test('nothing changed is proven only when nothing did', async (t) => {
      const captured = await makeSource();
      t.teardown(() => captured.remove());
      const writer = adversary(captured, 43);
      const replica = new ModelReplica(captured.mode);
      await writer.change();
      const source = captured.open();
      await attach(source, replica);
      t.equal(await source.unchangedUntil(), undefined, 'there is no point yet');
      await sync(source, replica);
      let before = Date.now();
      // A change in the clock tick of the read cannot be told: then there is one more cut.
      let until = await source.unchangedUntil();
      for (let tries = 0; until === undefined && tries < 50; tries++) {
        await sync(source, replica);
        before = Date.now();
        until = await source.unchangedUntil();
      }
      t.ok(until !== undefined && until / 1000 >= before - 1 && until / 1000 <= Date.now() + 1, `${until}`);
      for (let round = 0; round < 10; round++) {
        await writer.change();
        const differs = (await writer.differences(replica)).length > 0;
        if (differs) t.equal(await source.unchangedUntil(), undefined);
        await sync(source, replica);
      }
      t.strictSame(await writer.differences(replica), []);
      await source.close();
    });
  });
}
