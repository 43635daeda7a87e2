import t from 'tap';
import { adversaryTests } from '../conformance/blockrounds.ts';
import { long } from './world.ts';

/** Of each of the ten arenas: more than 1,000 in all. The few of every run are test/conformance/blockcapture.test.ts. */
const rounds = 110;

if (long) await adversaryTests(t, rounds);
else await t.test('many rounds of block captures', { skip: 'long: npm run e2e -- adversary' }, async () => undefined);
