import { DatabaseSync } from 'node:sqlite';
import t from 'tap';
import { appendFileSync } from 'node:fs';
import { join } from 'node:path';
import { asReplicationError, systemErrorCode } from '../../../proto/errors.ts';
import { isOfStorage, isSqliteBusy, isSqliteDamage, rollBack, transaction } from '../../../proto/sqlite.ts';
import { loopMount, missingForLoop } from '../../loop.ts';

t.test('a transaction that a full disk ended says that the disk is full', async (t) => {
  const database = new DatabaseSync(':memory:');
  database.exec('CREATE TABLE big (bytes BLOB); PRAGMA max_page_count = 40');
  const insert = database.prepare('INSERT INTO big VALUES (zeroblob(4000))');
  const fill = (): void => {
    for (let i = 0; i < 1000; i++) insert.run();
  };
  const error = t.throws(() => transaction(database, fill)) as unknown as Error;
  t.ok(isOfStorage(error), error.message);
  t.notOk(isSqliteDamage(error) || isSqliteBusy(error));
  t.equal(asReplicationError(error).code, 'TargetFull');
  t.notOk(database.isTransaction, 'nothing is left open');
  t.equal(database.prepare('SELECT count(*) AS n FROM big').get()?.['n'], 0, 'and nothing half done');
  t.doesNotThrow(() => rollBack(database), 'rolling back once more is no error');
  t.equal(
    transaction(database, () => 7),
    7,
  );
});

t.test('a database with a log that is opened on a full disk says so', { skip: missingForLoop('ext4') }, async (t) => {
  const { mountPoint } = await loopMount(t, 'ext4', 16);
  const path = join(mountPoint, 'database');
  const database = new DatabaseSync(path);
  database.exec('PRAGMA journal_mode = WAL; CREATE TABLE one (a INTEGER)');
  database.close();
  for (let bytes = 2 ** 20; bytes >= 1; bytes = Math.floor(bytes / 2)) fill(join(mountPoint, 'filler'), bytes);
  const again = new DatabaseSync(path);
  t.teardown(() => again.close());
  const error = t.throws(() => again.prepare('SELECT * FROM one').all()) as unknown as Error;
  t.equal(asReplicationError(error).code, 'TargetFull', error.message);
  t.ok(isOfStorage(error));
});

/** In pieces, until one of them does not fit. */
function fill(path: string, pieceBytes: number): void {
  try {
    for (const piece = Buffer.alloc(pieceBytes); ;) appendFileSync(path, piece);
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOSPC') throw error;
  }
}

t.test('a column whose name has changed in the file is damage', (t) => {
  const database = new DatabaseSync(':memory:');
  database.exec('CREATE TABLE node (slou INTEGER PRIMARY KEY) STRICT');
  const error = t.throws(() => database.prepare('SELECT slot FROM node'));
  t.ok(isSqliteDamage(error));
  t.notOk(isOfStorage(error));
  t.end();
});
