import fc from 'fast-check';
import t from 'tap';
import { Bios } from '../../../../agent/capture/bios.ts';

/** One bio, told whole or with its last part only. */
interface Bio {
  first: number;
  sectors: number;
  isSplit: boolean;
  cut: number;
}
const bio: fc.Arbitrary<Bio> = fc.record({
  first: fc.nat({ max: 60 }),
  sectors: fc.integer({ min: 1, max: 20 }),
  isSplit: fc.boolean(),
  cut: fc.double({ min: 0, max: 1, noNaN: true }),
});

function eventsOf({ first, sectors, isSplit, cut }: Bio): ['queue' | 'done', number, number][] {
  const end = first + sectors;
  const told = isSplit ? Math.min(end - 1, first + Math.floor(cut * sectors)) : first;
  return [['queue', first, end], ['done', told, end]]; // prettier-ignore
}

t.test('in whatever order it is told, all is marked and each sector counted once', async () => {
  fc.assert(
    fc.property(
      fc.uniqueArray(bio, { maxLength: 12, selector: ({ first, sectors }) => first + sectors }),
      fc.array(fc.nat(), { minLength: 60, maxLength: 60 }),
      (bios, order) => {
        const told = bios
          .flatMap(eventsOf)
          .map((event, index) => ({ event, at: order[index] ?? 0 }))
          .toSorted((a, b) => a.at - b.at);
        const one = new Bios();
        const marked = new Set<number>();
        let sum = 0;
        for (const { event } of told) {
          const [kind, first, end] = event;
          const { sectors, ...range } = kind === 'queue' ? one.queued(first, end) : one.completed(first, end);
          sum += sectors;
          for (let at = range.first; at < range.end; at++) marked.add(at);
        }
        const isMarked = bios.every(({ first, sectors }) =>
          Array.from({ length: sectors }, (_, index) => first + index).every((sector) => marked.has(sector)),
        );
        return isMarked && sum === bios.reduce((all, { sectors }) => all + sectors, 0) && one.pendingSectors === 0;
      },
    ),
    { numRuns: 3000 },
  );
});

t.test('what is queued and not done yet may be counted by the device already', async (t) => {
  const bios = new Bios();
  t.same(bios.queued(8, 24), { sectors: 0, first: 8, end: 8 });
  t.equal(bios.pendingSectors, 16);
  t.same(bios.completed(16, 24), { sectors: 16, first: 8, end: 24 });
  t.equal(bios.pendingSectors, 0);
});

t.test('two that overlap and end at one sector: both are marked whole when the second one is done', async (t) => {
  const bios = new Bios();
  bios.queued(100, 200);
  bios.queued(150, 200);
  // It may have been the longer one.
  t.same(bios.completed(180, 200), { sectors: 100, first: 100, end: 200 });
  t.same(bios.completed(180, 200), { sectors: 50, first: 100, end: 200 });
});
