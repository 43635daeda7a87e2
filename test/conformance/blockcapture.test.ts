import { inOwnMounts } from '../ownmounts.ts';

if (inOwnMounts(import.meta.filename)) {
  const { default: t } = await import('tap');
  const { adversaryTests } = await import('./blockrounds.ts');
  t.setTimeout(600_000);
  await adversaryTests(t, 6);
}
