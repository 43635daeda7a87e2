/** An image with bytes that are not there any more: by a failing disk, or because somebody cut it. */
import t from 'tap';
import type { Disk } from '../../../../proto/effects.ts';
import { granuleBytes } from '../../../../proto/granule.ts';
import { folder, imageOf, none, put, recovered, rig, writer, type Rig } from './blockreplica.ts';

const size = 10 * granuleBytes;
const image = `${folder}/base/image.raw`;
const content = Object.fromEntries([...Array(10).keys()].map((at) => [at, at + 1]));

/** `fails` says of each read of the image whether it is one too many for the disk. */
function failing(plain: Disk, fails: (position: number) => boolean): Disk {
  return {
    ...plain,
    async open(path, mode) {
      const file = await plain.open(path, mode);
      if (path !== image) return file;
      return {
        ...file,
        async read(buffer, position) {
          if (fails(position)) throw Object.assign(new Error('EIO: i/o error, read'), { code: 'EIO' });
          return file.read(buffer, position);
        },
      };
    },
  };
}

async function cut(r: Rig): Promise<void> {
  const file = await r.disk.open(image, 'write');
  await file.truncate(4.5 * granuleBytes);
  await file.close();
}

t.test('what the disk cannot read any more is found by a scrub, and healed', async (t) => {
  const r = await rig(t);
  let broken = false;
  r.disk = failing(r.disk, () => broken);
  const replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, content, size);
  broken = true;
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 10, 'all of that read');
  broken = false;
  await put(replica, session, content, size);
  t.ok((await recovered(r, replica, 2)).equals(imageOf(content, size)));
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 0);
  await replica.close();
});

t.test('what somebody cut off the image is found by a scrub, and healed', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, content, size);
  await cut(r);
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 6, 'the half one too');
  await put(replica, session, content, size);
  t.ok((await recovered(r, replica, 2)).equals(imageOf(content, size)));
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 0);
  await replica.close();
});
