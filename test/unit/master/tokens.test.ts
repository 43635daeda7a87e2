import t from 'tap';
import type { Test } from 'tap';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openDatabase } from '../../../master/database.ts';
import { sqliteStore } from '../../../master/store-sqlite.ts';
import { maxTokens, openTokens } from '../../../master/tokens.ts';
import { systemClock as clock } from '../../../proto/system.ts';

const random = { bytes: (length: number) => randomBytes(length) };
function setup(t: Test) {
  const folder = mkdtempSync(join(tmpdir(), 'tokens-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const store = sqliteStore(openDatabase(':memory:'), { clock, random });
  const adminFile = join(folder, 'admin.token');
  return { store, adminFile, open: () => openTokens({ store, clock, random, adminFile }) };
}

t.test('the first start makes the token of the admin, later ones keep it', async (t) => {
  const { open, adminFile } = setup(t);
  const secret = (await open()) && readFileSync(adminFile, 'utf8').trim();
  t.equal(statSync(adminFile).mode & 0o777, 0o600);
  const again = await open();
  t.equal(readFileSync(adminFile, 'utf8').trim(), secret);
  t.same(again.caller(secret), { name: 'admin', role: 'admin' });
  t.equal(again.caller(`${secret}x`), undefined);
  t.equal(again.caller(''), undefined);
  t.equal(again.delete('admin'), false);
});

t.test(
  'who removes or replaces the file has another token after a restart, and the old one is worthless',
  async (t) => {
    const { open, adminFile } = setup(t);
    await open();
    const first = readFileSync(adminFile, 'utf8').trim();
    rmSync(adminFile);
    const second = await open();
    t.equal(second.caller(first), undefined);
    t.equal(second.caller(readFileSync(adminFile, 'utf8').trim())?.role, 'admin');
    writeFileSync(adminFile, `${'k'.repeat(40)}\n`);
    t.equal((await open()).caller('k'.repeat(40))?.name, 'admin');
    writeFileSync(adminFile, 'short');
    await t.rejects(open(), /holds no token.*remove it/);
  },
);

t.test('tokens are there after a restart, by hash alone, and gone when deleted', async (t) => {
  const { open, store } = setup(t);
  const made = (await open()).create('ci', 'operator');
  const secret = made?.secret ?? '';
  const again = await open();
  t.same(again.caller(secret), { name: 'ci', role: 'operator' });
  t.equal(again.create('ci', 'user'), undefined, 'the name is taken');
  t.notMatch(JSON.stringify(store.listRecords('tokens')), secret);
  t.same(
    again.list().map(({ metadata }) => metadata.name),
    ['admin', 'ci'],
  );
  t.equal(again.delete('ci'), true);
  t.equal(again.caller(secret), undefined);
  t.equal((await open()).caller(secret), undefined);
});

t.test('there is a limit', async (t) => {
  const tokens = await setup(t).open();
  for (let index = 1; index < maxTokens; index++) tokens.create(`t${index}`, 'user');
  t.throws(() => tokens.create('more', 'user'), /delete those/);
});
