import { inOwnMounts } from '../ownmounts.ts';

/** Of each of the nine arenas that need no device-mapper: more than 1,000 in all. The few of every run are test/conformance/blockcapture.test.ts. */
const rounds = 112;

if (inOwnMounts(import.meta.filename)) {
  const { default: t } = await import('tap');
  const { adversaryTests } = await import('../conformance/blockrounds.ts');
  const { long } = await import('./world.ts');
  if (long) await adversaryTests(t, rounds);
  else await t.test('many rounds of block captures', { skip: 'long: npm run e2e -- adversary' }, async () => undefined);
}
