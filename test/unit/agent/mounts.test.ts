import { mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import {
  deviceText,
  layersUnder,
  mountOf,
  parseMountinfo,
  parseSuperblock,
  readBlockDevices,
  readMounts,
  readSuperblock,
  superblockBytes,
  wholeFilesystem,
  type Mount,
} from '../../../agent/mounts.ts';
import { loopMount, missingForLoop, run } from '../../loop.ts';

const root = mkdtempSync(join(tmpdir(), 'mounts-'));
t.teardown(() => rmSync(root, { recursive: true }));

await t.test('mountinfo', async (t) => {
  const lines = [
    '36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root ro,errors=continue',
    String.raw`40 1 8:1 / /with\040space\011tab\134back rw - xfs /dev/sd\040a rw`,
    '41 1 0:40 / /nfs rw - nfs4 server:/export rw',
    '42 41 0:41 / /nfs ro shared:3 - tmpfs tmpfs rw',
    'nonsense',
    '43 1 8:2 / /no-dash rw ext4 /dev/sdb rw',
    '',
  ];
  t.same(parseMountinfo(Buffer.from(lines.join('\n'))), [
    { device: '98:0', root: '/mnt1', mountPoint: '/mnt2', type: 'ext3', source: '/dev/root', readOnly: true },
    {
      device: '8:1',
      root: '/',
      mountPoint: '/with space\ttab\\back',
      type: 'xfs',
      source: '/dev/sd a',
      readOnly: false,
    },
    { device: '0:40', root: '/', mountPoint: '/nfs', type: 'nfs4', source: 'server:/export', readOnly: false },
    { device: '0:41', root: '/', mountPoint: '/nfs', type: 'tmpfs', source: 'tmpfs', readOnly: true },
  ]);
  const korean = Buffer.from('1 0 8:1 / /볼륨 rw - ext4 /dev/sda rw\n1 0 8:2 / /bad\xff rw - ext4 /dev/sdb rw\n');
  t.equal(parseMountinfo(korean)[0]?.mountPoint, '/볼륨');
});

await t.test('a path belongs to the last mount on the longest mount point above it', async (t) => {
  const mounts = parseMountinfo(
    Buffer.from(
      ['/ 1', '/a 2', '/a/b 3', '/a 4', '/ab 5']
        .map((line) => line.split(' '))
        .map(([point, number]) => `1 0 8:${number} / ${point} rw - ext4 /dev/x rw`)
        .join('\n'),
    ),
  );
  for (const [path, device] of [
    ['/', '8:1'],
    ['/a', '8:4'],
    ['/a/c', '8:4'],
    ['/a/b/c', '8:3'],
    ['/abc', '8:1'],
    ['/ab/c', '8:5'],
  ] as const)
    t.equal(mountOf(path, mounts)?.device, device, path);
  t.equal(mountOf('/a', []), undefined);
});

await t.test('block devices from sysfs', async (t) => {
  const put = (path: string, content: string): void => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), `${content}\n`);
  };
  const device = (path: string, dev: string, sectors: number, extra: Record<string, string> = {}): void => {
    put(`sys/devices/${path}/dev`, dev);
    put(`sys/devices/${path}/size`, String(sectors));
    for (const [name, content] of Object.entries(extra)) put(`sys/devices/${path}/${name}`, content);
    mkdirSync(join(root, 'sys/class/block'), { recursive: true });
    symlinkSync(join(root, 'sys/devices', path), join(root, 'sys/class/block', path.split('/').at(-1) ?? ''));
  };
  device('pci/block/sda', '8:0', 4096);
  device('pci/block/sda/sda1', '8:1', 2048, { partition: '1', 'holders/dm-0': '' });
  device('virtual/block/dm-0', '253:0', 1024, { 'dm/name': 'vg-lv', 'slaves/sda1': '' });
  device('virtual/block/loop0', '7:0', 512, {
    'loop/backing_file': '/mnt/image file.img',
    'loop/offset': '1048576',
    'loop/sizelimit': '0',
    'loop/dio': '1',
  });
  device('virtual/block/loop1', '7:1', 0);
  device('virtual/block/ram0', '1:0', 8);
  device('pci/block/cciss!c0d0', '104:0', 8);
  const devices = await readBlockDevices(join(root, 'sys'));
  t.match(
    devices.map(({ path, kind, sizeBytes, device }) => ({ path, kind, sizeBytes, device })),
    [
      { path: '/dev/cciss/c0d0', kind: 'disk', sizeBytes: 4096, device: '104:0' },
      { path: '/dev/mapper/vg-lv', kind: 'dm', sizeBytes: 524288, device: '253:0' },
      { path: '/dev/loop0', kind: 'loop', sizeBytes: 262144, device: '7:0' },
      { path: '/dev/sda', kind: 'disk', sizeBytes: 2097152, device: '8:0' },
      { path: '/dev/sda1', kind: 'partition', sizeBytes: 1048576, device: '8:1' },
    ],
  );
  t.match(devices[2]?.loop, {
    backingFile: '/mnt/image file.img',
    offsetBytes: 1048576,
    limitBytes: 0,
    directIo: true,
  });
  const mounts = parseMountinfo(
    Buffer.from(
      [
        '1 0 253:0 / / rw - ext4 /dev/mapper/vg-lv rw',
        '2 1 7:0 / /in-image rw - xfs /dev/loop0 rw',
        '3 1 104:0 / /mnt rw - ext4 /dev/cciss/c0d0 rw',
      ].join('\n'),
    ),
  );
  const under = layersUnder(mounts[1] as Mount, mounts, devices);
  t.same([...under.devices], ['loop0', 'cciss!c0d0']);
  t.same([...under.images], ['/mnt/image file.img']);
  t.same([...under.filesystems], ['7:0', '104:0']);
  const system = layersUnder(mounts[0] as Mount, mounts, devices);
  t.same([...system.devices], ['dm-0', 'sda1', 'sda'], 'from the logical volume to its disk');
});

await t.test('superblocks', async (t) => {
  const id = Buffer.from('00112233445566778899aabbccddeeff', 'hex');
  const uuid = '00112233-4455-6677-8899-aabbccddeeff';
  const image = (...parts: [offset: number, bytes: Buffer | string][]): Buffer => {
    const bytes = Buffer.alloc(superblockBytes);
    for (const [offset, part] of parts) {
      (typeof part === 'string' ? Buffer.from(part, 'latin1') : part).copy(bytes, offset);
    }
    return bytes;
  };
  const ext = (compatible: number, incompatible: number, readOnly: number): Buffer => {
    const features = Buffer.alloc(12);
    [compatible, incompatible, readOnly].forEach((bits, at) => features.writeUInt32LE(bits, at * 4));
    return image([0x438, Buffer.from([0x53, 0xef])], [0x45c, features], [0x468, id]);
  };
  for (const [bytes, type, expected] of [
    [ext(0x4, 0x2 | 0x40, 0x3), 'ext4', uuid],
    [ext(0x4, 0x6, 0x3), 'ext3', uuid],
    [ext(0, 0x2, 0x1), 'ext2', uuid],
    [image([0, 'XFSB'], [32, id]), 'xfs', uuid],
    [image([0x10040, '_BHRfS_M'], [0x10020, id]), 'btrfs', uuid],
    [image([4086, 'SWAPSPACE2'], [1036, id]), 'swap', uuid],
    [image([0, 'LUKS\xba\xbe\0\x02'], [168, `${uuid}\0`]), 'crypto_LUKS', uuid],
    [image([512, 'LABELONE'], [536, 'LVM2 001'], [544, 'a'.repeat(32)]), 'LVM2_member', 'a'.repeat(32)],
    [image([512, 'EFI PART'], [568, id]), 'gpt', '33221100-5544-7766-8899-aabbccddeeff'],
  ] as const)
    t.same(parseSuperblock(bytes), { type, id: expected }, type);
  t.equal(parseSuperblock(Buffer.alloc(superblockBytes)), undefined);
  t.equal(parseSuperblock(Buffer.alloc(0)), undefined);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 5000 }), (bytes) => {
      parseSuperblock(bytes);
    }),
  );
  t.equal(await readSuperblock(join(root, 'none')), undefined);
});

for (const type of ['ext2', 'ext3', 'ext4', 'xfs', 'btrfs']) {
  const missing = spawnSync('sh', ['-c', `command -v mkfs.${type} blkid`]).status === 0 ? false : `needs mkfs.${type}`;
  await t.test(`${type} as blkid tells it`, { skip: missing }, async (t) => {
    const image = join(root, `image-${type}`);
    writeFileSync(image, '');
    truncateSync(image, 400 << 20);
    run(`mkfs.${type}`, '-q', image);
    const [id, found] = ['UUID', 'TYPE'].map((tag) => run('blkid', '-p', '-o', 'value', '-s', tag, image).trim());
    t.same(await readSuperblock(image), { type: found, id });
  });
}

await t.test(
  'the filesystem that is wholly in an image or on a device',
  { skip: missingForLoop('ext4') },
  async (t) => {
    const { image, device, mountPoint, directory } = await loopMount(t, 'ext4', 32);
    const find = async (path: string): ReturnType<typeof wholeFilesystem> =>
      wholeFilesystem(path, await readMounts(), await readBlockDevices());
    t.equal((await find(image)).mount?.mountPoint, mountPoint);
    t.equal((await find(device)).mount?.mountPoint, mountPoint);
    symlinkSync(image, join(directory, 'link'));
    t.equal((await find(join(directory, 'link'))).mount?.mountPoint, mountPoint);
    const other = join(directory, 'other');
    writeFileSync(other, 'x');
    t.match(await find(other), { mount: undefined, reason: /no filesystem/ });
    run('umount', mountPoint);
    t.match(await find(image), { mount: undefined, reason: /no filesystem/ });
  },
);

await t.test('btrfs, whose mounts have numbers of their own', { skip: missingForLoop('btrfs') }, async (t) => {
  const { image, mountPoint } = await loopMount(t, 'btrfs', 200);
  const found = await wholeFilesystem(image, await readMounts(), await readBlockDevices());
  t.match(found, { mount: { mountPoint, type: 'btrfs', root: '/' }, reason: '' });
});

await t.test('device numbers', async (t) => {
  t.equal(deviceText(0x801n), '8:1');
  t.equal(deviceText(0x103_00n), '259:0');
  t.equal(deviceText(0x1000_0000n | 0x801n), `8:${0x10001}`);
});
