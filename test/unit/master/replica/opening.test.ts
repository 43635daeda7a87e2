/** What of the head's index is believed when a replica is opened. */
import t from 'tap';
import { BlockIndex } from '../../../../master/replica/blockindex.ts';
import { granuleBytes, granuleHash } from '../../../../proto/granule.ts';
import { dataOf, imageOf, put, recovered, rig, writer } from './blockreplica.ts';

const size = 10 * granuleBytes;

t.test('a head that stands at the newest commit with other content is made anew', async (t) => {
  const r = await rig(t);
  const before = await r.open();
  const { digest } = await put(before, await before.attach(writer), { 0: 1, 1: 2 }, size);
  await before.close();
  const index = new BlockIndex(`${r.indexFolder}/head.db`);
  for (const data of dataOf({ 1: 9 }, size)) index.stageData(data);
  if (index.newest) index.commit(index.newest);
  t.notOk(index.digest.equals(digest));
  index.close();

  const replica = await r.open();
  t.match(r.doubts.join(), /its digest is not that of commit 1/);
  t.ok(replica.head.digest.equals(digest));
  const session = await replica.attach(writer);
  // The source has got just what the head said already: the replica has it not.
  const hashes = Buffer.concat([1, 9].map((value) => granuleHash(Buffer.alloc(granuleBytes, value))));
  t.same([...replica.want(session, 0, 0, hashes)], [0b10]);
  await put(replica, session, { 1: 9 }, size);
  t.ok((await recovered(r, replica, 2)).equals(imageOf({ 0: 1, 1: 9 }, size)));
  await replica.close();
});
