/** What a replica says that cannot be opened: SQLite does not say why it cannot make its files. */
import t from 'tap';
import { mkdirSync } from 'node:fs';
import { rig } from './blockreplica.ts';

t.test('where the disk is full it says so, else what the database says', async (t) => {
  for (const [freeBytes, code, message] of [
    [4096, 'TargetFull', /no space left on \/class\/r: unable to open database file/],
    [1 << 30, 'ERR_SQLITE_ERROR', /^unable to open database file$/],
  ] as const) {
    const r = await rig(t);
    r.disk = { ...r.disk, space: async () => ({ capacityBytes: 1 << 30, freeBytes }) };
    mkdirSync(`${r.indexFolder}/head.db`);
    await t.rejects(r.open(), { code, message });
  }
});
