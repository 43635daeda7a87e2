import t from 'tap';
import { OpenSet } from '../../../../master/replica/openset.ts';
import { Dice } from '../../../sim/dice.ts';

class One {
  isIdle = true;
}

t.test('those used last stay open, whatever is used and whoever is busy', (t) => {
  for (let seed = 1; seed <= 200; seed++) {
    const dice = new Dice(seed);
    const bound = dice.below(6);
    const set = new OpenSet<One>(bound);
    const all = Array.from({ length: 12 }, () => new One());
    /** Open ones, least recently used first. */
    let model: One[] = [];
    for (let step = 0; step < 200; step++) {
      const one = dice.pick(all);
      one.isIdle = dice.chance(0.7);
      if (dice.chance(0.1)) {
        set.closed(one);
        model = model.filter((other) => other !== one);
      } else {
        set.used(one);
        model = [...model.filter((other) => other !== one), one];
      }
      const expected = model.filter(({ isIdle }) => isIdle).slice(0, Math.max(0, model.length - bound));
      const named = set.surplus();
      if (named.length !== expected.length || named.some((other, index) => other !== expected[index]))
        t.fail(`seed ${seed}, step ${step}: ${named.length} named, ${expected.length} expected`);
      for (const other of named) set.closed(other);
      model = model.filter((other) => !named.includes(other));
      if (set.size !== model.length) t.fail(`seed ${seed}: ${set.size} open`);
      if (set.size > bound && model.some(({ isIdle }) => isIdle)) t.fail(`seed ${seed}: more open than at work`);
    }
  }
  t.pass('200 seeds');
  t.end();
});
