import t from 'tap';
import { SimClock } from '../sim/clock.ts';
import { Dice } from '../sim/dice.ts';
import { SimDisk } from '../sim/disk.ts';
import { diskConformance } from './disk.ts';

for (const reflink of [true, false]) {
  await diskConformance(
    t,
    `simulated, ${reflink ? 'with' : 'without'} reflinks`,
    () => {
      const disk = new SimDisk({ clock: new SimClock(), dice: new Dice(1), reflink, capacityBytes: 1 << 30 });
      disk.slowChance = 0;
      return disk.mount();
    },
    async (disk) => {
      await disk.mkdir('/root');
      return '/root';
    },
    reflink ? 'reflink' : 'copy',
  );
}

t.test('what was synced survives a loss of power, and what was not may be lost', async (t) => {
  let lost = 0;
  for (let seed = 0; seed < 50; seed++) {
    const sim = new SimDisk({ clock: new SimClock(), dice: new Dice(seed), reflink: true, capacityBytes: 1 << 30 });
    sim.slowChance = 0;
    const disk = sim.mount();
    await disk.mkdir('/d');
    await disk.syncDirectory('/');
    const file = await disk.open('/d/a', 'write');
    await file.write([Buffer.alloc(3000, 1)], 0);
    await file.sync();
    await disk.syncDirectory('/d');
    await file.write([Buffer.alloc(3000, 2)], 3000);
    await (await disk.open('/d/b', 'write')).close();
    sim.crash(true);
    await t.rejects(file.read(Buffer.alloc(1), 0), { code: 'EIO' }, 'the process that was is gone');
    const after = sim.peek('/d/a');
    t.ok(after.subarray(0, 3000).equals(Buffer.alloc(3000, 1)));
    if (after.length < 6000 || !sim.paths().includes('/d/b')) lost++;
  }
  t.ok(lost > 10 && lost < 50, `${lost} of 50 lost something`);
});

t.test('without loss of power only what was under way is in doubt', async (t) => {
  const sim = new SimDisk({ clock: new SimClock(), dice: new Dice(3), reflink: true, capacityBytes: 1 << 30 });
  sim.slowChance = 0;
  const disk = sim.mount();
  const file = await disk.open('/a', 'write');
  await file.write([Buffer.alloc(100, 1)], 0);
  sim.crash(false);
  t.ok(sim.peek('/a').equals(Buffer.alloc(100, 1)));
});

t.test('a full disk refuses, and what a failed sync lost is seen until the power goes', async (t) => {
  const sim = new SimDisk({ clock: new SimClock(), dice: new Dice(4), reflink: false, capacityBytes: 3 * 65536 });
  sim.slowChance = 0;
  const disk = sim.mount();
  const file = await disk.open('/a', 'write');
  await t.rejects(file.write([Buffer.alloc(4 * 65536, 1)], 0), { code: 'ENOSPC' });
  await disk.syncDirectory('/');
  for (let i = 0; i < 20; i++) await file.write([Buffer.alloc(100, 1)], i * 100);
  sim.eioChance = 1;
  await t.rejects(file.sync(), { code: 'EIO' });
  sim.eioChance = 0;
  await file.sync();
  t.ok(sim.peek('/a').subarray(0, 2000).equals(Buffer.alloc(2000, 1)));
  sim.crash(true);
  t.notOk(sim.peek('/a').subarray(0, 2000).equals(Buffer.alloc(2000, 1)));
});
