/** Which filesystems count as changed from elsewhere, by the numbers of the kernel's own header. */
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { remoteKind, remoteKindOf } from '../../../../agent/capture/hints.ts';

const header = '/usr/include/linux/magic.h';
const skip = !fs.existsSync(header) && `needs ${header}`;

function magic(name: string): number {
  const found = new RegExp(`^#define\\s+${name}\\s+(0x[0-9a-f]+)`, 'im').exec(fs.readFileSync(header, 'utf8'));
  if (!found) throw new Error(`${header} has no ${name}`);
  return Number(found[1]);
}

t.test('what other machines write to is known by its number', { skip }, async (t) => {
  const kinds = {
    NFS_SUPER_MAGIC: 'nfs',
    CIFS_SUPER_MAGIC: 'cifs',
    SMB2_SUPER_MAGIC: 'smb2',
    CEPH_SUPER_MAGIC: 'ceph',
    V9FS_MAGIC: '9p',
    FUSE_SUPER_MAGIC: 'fuse',
    OCFS2_SUPER_MAGIC: 'ocfs2',
    AFS_FS_MAGIC: 'afs',
    AFS_SUPER_MAGIC: 'afs',
    CODA_SUPER_MAGIC: 'coda',
  };
  for (const [name, kind] of Object.entries(kinds)) {
    t.equal(remoteKindOf(magic(name)), kind, name);
    t.equal(remoteKindOf(magic(name) | 0), kind, `${name}, with a sign`);
  }
});

t.test('what this machine alone writes to is not', { skip }, async (t) => {
  for (const name of ['EXT4', 'XFS', 'BTRFS', 'F2FS', 'OVERLAYFS'])
    t.equal(remoteKindOf(magic(`${name}_SUPER_MAGIC`)), undefined, name);
  t.equal(remoteKindOf(magic('TMPFS_MAGIC')), undefined);
  t.equal(await remoteKind('/proc'), undefined);
  t.equal(await remoteKind(tmpdir()), undefined);
  t.equal(await remoteKind('/proc/is not there'), undefined);
});
