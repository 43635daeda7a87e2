/**
 * A Debian root as it is installed, while packages are unpacked anew over those that are there and users are added: each copy
 * passes Debian's own check of its files, and has every file that was there all the time.
 */
import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import { countEntries } from './treevolume.ts';
import { long, openWorld } from './world.ts';

t.setTimeout(3_600_000);
const missing =
  (!long && 'long: npm run e2e -- debiantree') ||
  (process.getuid?.() !== 0 && 'needs root') ||
  (spawnSync('debootstrap', ['--version'], { stdio: 'ignore' }).status !== 0 && 'needs debootstrap');

const packages = ['coreutils', 'perl-base', 'grep', 'debconf'];
/** Without end; dpkg puts each file in the place of the old one by a rename. Counts in a file. */
const reinstalling = `cd /var/cache/apt/archives
  for at in $(seq 1000000); do
    for package in ${packages.join(' ')}; do dpkg --install --force-unsafe-io ./"$package"_*.deb; done
    useradd "user$at"; echo "$at" > /var/log/reinstalled
  done >/dev/null 2>&1`;

function isThere(path: string): boolean {
  return fs.lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}

t.test('a Debian root in use', { skip: missing }, async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'debian');
  const made = spawnSync('debootstrap', ['--variant=minbase', '--include=debsums', 'bookworm', source], { encoding: 'utf8' }); // prettier-ignore
  if (made.status !== 0) {
    t.pass('a root', { skip: `debootstrap: ${made.stdout.trim().split('\n').at(-1)}` });
    return;
  }
  t.comment(`${countEntries(source)} entries`);
  const always = packages.flatMap((name) =>
    fs
      .readFileSync(join(source, `var/lib/dpkg/info/${name}.list`), 'utf8')
      .split('\n')
      .filter((path) => path.startsWith('/') && isThere(join(source, path))),
  );
  const writer = spawn('chroot', [source, 'sh', '-c', reinstalling], { detached: true, stdio: 'ignore' });
  t.teardown(async () => {
    const ended = once(writer, 'exit');
    process.kill(-(writer.pid ?? 0), 'SIGKILL');
    await ended;
  });
  await world.startAgent();
  await world.replicate('debian', source, { volumeMode: 'Filesystem', rpoSeconds: 5 });
  await world.normal('debian', 0, 600);
  const counted = join(source, 'var/log/reinstalled');
  const count = (): number => (isThere(counted) ? Number(fs.readFileSync(counted, 'utf8')) : 0);
  for (let round = 1; round <= 5; round++) {
    const before = count();
    await world.until('packages are installed once more', async () => count() > before, 600);
    await world.normal('debian', Date.now(), 600);
    const recovery = await world.drill('debian', 'latest-data', undefined, 600);
    t.equal(recovery.status.outcome, 'success', recovery.status.message ?? '');
    const path = recovery.status.tasks[0]?.path ?? '';
    t.same(
      always.filter((name) => !isThere(join(path, name))),
      [],
      `round ${round}: ${always.length} names that are there all the time`,
    );
    const { status, stdout, stderr } = spawnSync('chroot', [path, 'debsums', '--silent'], { encoding: 'utf8' });
    t.equal(status, 0, `round ${round}: ${stdout}${stderr}`);
    t.match(fs.readFileSync(join(path, 'etc/passwd'), 'utf8'), /^user1:/m);
    fs.rmSync(path, { recursive: true });
  }
});
