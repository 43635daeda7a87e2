import t from 'tap';
import { GroupCut, type GroupLine } from '../../../agent/groupcut.ts';
import { groupCuts, groupPoints, type GroupMember, type GroupSeat } from '../../../master/groupcuts.ts';
import { ReplicationError } from '../../../proto/errors.ts';
import { bell } from '../../../proto/stream.ts';
import type { GroupAnswer, GroupAsk } from '../../../proto/wire.ts';
import { SimClock } from '../../sim/clock.ts';
import { Dice } from '../../sim/dice.ts';

/** A line with delays that may break, as the Mirror call is one. */
class Line implements GroupLine {
  readonly #asks: GroupAsk[] = [];
  readonly #bell = bell();
  readonly #seat: GroupSeat;
  readonly #clock: SimClock;
  readonly #dice: Dice;
  /** Messages keep their order. */
  #atMs = { up: 0, down: 0 };
  isBroken = false;
  calls = 0;

  constructor(join: (say: (ask: GroupAsk) => void) => GroupSeat, clock: SimClock, dice: Dice) {
    this.#clock = clock;
    this.#dice = dice;
    this.#seat = join((ask) => this.#later('down', () => this.#hear(ask)));
  }

  #later(way: 'up' | 'down', work: () => void): void {
    const atMs = Math.max(this.#atMs[way], this.#clock.nowMs + this.#dice.below(20));
    this.#atMs[way] = atMs;
    this.#clock.after(atMs - this.#clock.nowMs, () => {
      if (!this.isBroken) work();
    });
  }

  #hear(ask: GroupAsk): void {
    if (ask.step === 'call') this.calls++;
    else this.#asks.push(ask);
    this.#bell.ring();
  }

  async answer(answer: GroupAnswer): Promise<void> {
    if (this.isBroken) throw new ReplicationError('Disconnected', 'broken');
    if (answer.step === 'ready') this.#asks.length = 0;
    this.#later('up', () => this.#seat.hear(answer));
  }

  async asked(late?: Promise<unknown>): Promise<GroupAsk | undefined> {
    let isLate = false;
    const done = (): void => {
      isLate = true;
      this.#bell.ring();
    };
    late?.then(done, done);
    while (this.#asks.length === 0 && !isLate) {
      if (this.isBroken) throw new ReplicationError('Disconnected', 'broken');
      await this.#bell.rung();
    }
    return this.#asks.shift();
  }

  mayCommit(cut: string, sourceUs: number): boolean {
    return this.#seat.mayCommit(cut, sourceUs);
  }

  break(): void {
    this.isBroken = true;
    this.#seat.leave();
    this.#bell.ring();
  }
}

interface Committed {
  uid: string;
  cut: string;
  sourceUs: number;
}

/** Members that freeze, fail, lose their freeze and their line at random, for a while. */
async function play(seed: number, hostile: boolean) {
  const dice = new Dice(seed);
  const clock = new SimClock();
  const machine = clock.machine(1e12, () => 0);
  const maxFreezeMs = 200;
  const members: GroupMember[] = Array.from({ length: 1 + dice.below(4) }, (_, index) => ({
    uid: `uid-${index}`,
    name: `member-${index}`,
    initialized: true,
    paused: false,
    maxFreezeMs,
    hookSeconds: 0,
  }));
  const cuts = groupCuts({
    clock: machine,
    random: { bytes: (length: number) => dice.fork(`cut ${clock.nowMs} ${clock.fired}`).bytes(length) },
    members: () => members,
  });
  const committed: Committed[] = [];
  const still: { uid: string; fromUs: number; toUs: number }[] = [];
  const refused: string[] = [];
  const endMs = 60_000;

  async function member({ uid }: GroupMember, mine: Dice): Promise<void> {
    let line = new Line((say) => cuts.join('g', uid, say), clock, mine);
    const failing = (): boolean => hostile && mine.chance(0.06);
    while (clock.nowMs < endMs) {
      await clock.sleep(mine.below(800));
      if (hostile && mine.chance(0.03)) clock.after(mine.below(300), () => line.break());
      let group: GroupCut | undefined;
      try {
        group = await GroupCut.gather(line, (ms) => clock.sleep(ms), async () => undefined); // prettier-ignore
        if (!group) throw new Error('nobody is to be alone');
        if (failing()) throw new ReplicationError('NoConsistentCut', 'no way');
        const { prepared } = { prepared: () => group?.prepared() };
        // A way that is none is followed by the next one, which asks again.
        await prepared()?.catch(prepared);
        await clock.sleep(mine.below(20));
        const fromMs = clock.nowMs;
        const holdsMs = failing() ? mine.below(60) : maxFreezeMs;
        const alone = await group.frozen();
        const toMs = Math.min(clock.nowMs, fromMs + holdsMs);
        still.push({ uid, fromUs: (1e12 + fromMs) * 1000, toUs: (1e12 + toMs) * 1000 });
        if (alone !== undefined) throw new ReplicationError('NoConsistentCut', alone);
        if (clock.nowMs > fromMs + holdsMs) throw new ReplicationError('NoConsistentCut', 'it did not hold');
        await clock.sleep(mine.below(300));
        const sourceUs = await group.held();
        if (!line.mayCommit(group.cut, sourceUs)) throw new Error('told to commit, and not let');
        committed.push({ uid, cut: group.cut, sourceUs });
      } catch (error) {
        if (!(error instanceof ReplicationError)) throw error;
        refused.push(error.message);
        if (error.code === 'NoConsistentCut') await group?.failed(error.message).catch(() => undefined);
        if (line.isBroken) line = new Line((say) => cuts.join('g', uid, say), clock, mine);
      }
    }
    line.break();
  }
  const playing = Promise.all(members.map((one) => member(one, dice.fork(one.uid))));
  let over = false;
  const done = (): void => void (over = true);
  playing.then(done, done);
  await clock.runUntil(() => over, 4 * endMs);
  if (!over) throw new Error('somebody waits for ever');
  await playing;
  return { members, committed, still, refused };
}

t.test('every common cut is a moment at which all members stood still', async (t) => {
  let points = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const { members, committed, still } = await play(seed, true);
    const moved = committed.flatMap(({ cut, sourceUs }) =>
      members
        .filter(({ uid }) => !still.some((one) => one.uid === uid && one.fromUs <= sourceUs && sourceUs <= one.toUs))
        .map(({ name }) => `${name} at cut ${cut}`),
    );
    t.same(moved, [], `seed ${seed}: nobody moved at the moment of a common cut`);
    points += committed.length;
  }
  t.ok(points > 500, `${points} points`);
});

t.test('without faults every cut is one of all members', async (t) => {
  const { members, committed, refused } = await play(7, false);
  const byCut = Map.groupBy(committed, ({ cut }) => cut);
  t.ok(byCut.size > 10, `${byCut.size} cuts`);
  // The last ones end with the game.
  const sizes = new Set([...byCut.values()].slice(0, -1).map(({ length }) => length));
  t.same([...sizes], [members.length]);
  t.same(
    refused.filter((why) => !/is not being mirrored|broke/.test(why)),
    [],
  );
});

function quiet(change: Partial<GroupMember>[] = [{}, {}]) {
  const clock = new SimClock();
  const members = change.map((one, index) => ({
    uid: `${index}`,
    name: `member-${index}`,
    initialized: true,
    paused: false,
    maxFreezeMs: 500,
    hookSeconds: 0,
    ...one,
  }));
  const random = { bytes: (length: number) => Buffer.alloc(length, 7) };
  const cuts = groupCuts({ clock: clock.machine(0, () => 0), random: random, members: () => members });
  const heard: string[][] = members.map(() => []);
  const join = (index: number) =>
    cuts.join('g', `${index}`, ({ step, message }) => heard[index]?.push(message === '' ? step : `${step} ${message}`));
  return { clock, heard, join };
}
const ready: GroupAnswer = { cut: '', step: 'ready', message: '' };

t.test('a member without a first point keeps nobody waiting', async (t) => {
  const { heard, join } = quiet([{}, { initialized: false }]);
  join(0).hear(ready);
  t.same(heard[0], ['alone']);
});

t.test('a member that is away or paused is named', async (t) => {
  const { heard, join } = quiet([{}, { paused: true }]);
  join(0).hear(ready);
  t.same(heard[0], ['abandon group g has no common cut: member-1 is paused']);
});

t.test('the others are called, and one that does not come in time is named', async (t) => {
  const { clock, heard, join } = quiet();
  const [first] = [join(0), join(1)];
  first.hear(ready);
  t.same(heard, [[], ['call']]);
  await clock.runUntil(() => false, 31_000);
  t.same(heard, [['abandon group g has no common cut: member-1 was not ready within 30 s'], ['call']]);
});

t.test('one that hangs while the others stand still', async (t) => {
  const { clock, heard, join } = quiet();
  const seats = [join(0), join(1)];
  const all = (step: GroupAnswer['step']): void => {
    for (const seat of seats) seat.hear({ cut: step === 'ready' ? '' : '07'.repeat(12), step, message: '' });
  };
  all('ready');
  all('prepared');
  seats[0]?.hear({ cut: '07'.repeat(12), step: 'frozen', message: '' });
  t.same(heard[0], ['prepare', 'freeze']);
  await clock.runUntil(() => false, 3000);
  t.same(heard[0]?.[2], 'abandon group g has no common cut: member-1 was not frozen within 3 s');
  t.notOk(seats[0]?.mayCommit('07'.repeat(12), 0), 'and nobody may commit it');
});

t.test('what only some members have is no point of the group', async (t) => {
  const point = (sequence: number, groupCut: string) => ({
    ...{ sequence, groupCut, sourceUs: sequence, committedUs: sequence },
    ...{ consistency: 'filesystem', digest: Buffer.alloc(16) },
  });
  const a = { uid: 'a', points: [point(1, ''), point(2, 'x'), point(3, 'y'), point(4, 'z')] };
  const b = { uid: 'b', points: [point(7, 'x'), point(8, ''), point(9, 'z')] };
  t.same(
    groupPoints([a, b]).map(({ cut, points }) => [cut, points.map(({ point }) => point.sequence)]),
    [
      ['x', [2, 7]],
      ['z', [4, 9]],
    ],
  );
});
