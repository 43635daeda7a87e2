/** Trees that real programs use meanwhile, judged by those programs' own checks on the recovered copies. */
import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import { loopMount, missingForLoop, run } from '../loop.ts';
import { long, openWorld } from './world.ts';

t.setTimeout(long ? 7_200_000 : 900_000);
const missing =
  missingForLoop('xfs') || (spawnSync('git', ['--version'], { stdio: 'ignore' }).status !== 0 && 'needs git');

/** Commits, branches, packs, without end. */
const committing = `cd "$1" && git init -q . && git config user.name n && git config user.email e@example.com && git config gc.auto 20
  for i in $(seq 1000000); do
    echo "$i" >> "file$((i % 50))"; mkdir -p "d$((i % 7))"; echo "$i" > "d$((i % 7))/f$i"
    git add -A && git commit -qm "commit $i" && [ $((i % 10)) -ne 0 ] || git branch -f "b$((i / 10 % 5))"
    [ $((i % 25)) -ne 0 ] || git gc -q
  done`;
/** Delivers as a mail server does: whole in tmp, renamed to new, later to cur with flags, at last removed; one after the other. */
const delivering = `const fs = require('node:fs'), { createHash } = require('node:crypto'); const root = process.argv[1];
  for (const folder of ['tmp', 'new', 'cur']) fs.mkdirSync(root + '/' + folder, { recursive: true });
  let at = 0;
  setInterval(() => {
    const name = 'mail' + String(++at).padStart(8, '0');
    const body = (name + ' ').repeat(1 + at % 900);
    const fd = fs.openSync(root + '/tmp/' + name, 'w');
    fs.writeSync(fd, createHash('sha1').update(body).digest('hex') + body); fs.fsyncSync(fd); fs.closeSync(fd);
    fs.renameSync(root + '/tmp/' + name, root + '/new/' + name);
    const older = 'mail' + String(at - 20).padStart(8, '0');
    if (at > 20) fs.renameSync(root + '/new/' + older, root + '/cur/' + older + ':2,S');
    if (at > 300) fs.rmSync(root + '/cur/mail' + String(at - 300).padStart(8, '0') + ':2,S');
  }, 10);`;

t.test('a git repository and a maildir in use: each copy passes their own checks', { skip: missing }, async (t) => {
  const { mountPoint } = await loopMount(t, 'xfs', 1024);
  const world = await openWorld(t, { allow: [mountPoint] });
  for (const name of ['repository', 'maildir']) fs.mkdirSync(join(mountPoint, name));
  const writers = [
    spawn('sh', ['-c', committing, 'sh', join(mountPoint, 'repository')], { stdio: 'ignore' }),
    spawn(process.execPath, ['-e', delivering, join(mountPoint, 'maildir')], { stdio: 'ignore' }),
  ];
  t.teardown(async () => {
    for (const writer of writers) {
      const ended = once(writer, 'exit');
      writer.kill('SIGKILL');
      await ended;
    }
  });
  await world.startAgent();
  await world.replicate('used', mountPoint, {
    volumeMode: 'Filesystem',
    consistency: 'filesystem',
    maxFreezeMs: 5000,
  });
  await world.normal('used', 0, 300);
  let newest = 0;
  for (let round = 1; round <= (long ? 30 : 2); round++) {
    await world.normal('used', Date.now(), 300);
    const { path, recovery } = await world.copyOf('used');
    t.equal(recovery.status.point?.consistency, 'filesystem');
    const repository = join(path, 'repository');
    const fsck = spawnSync('git', ['-c', 'safe.directory=*', '-C', repository, 'fsck', '--full', '--strict'], {
      encoding: 'utf8',
    });
    t.equal(fsck.status, 0, `round ${round}: ${fsck.stdout}${fsck.stderr}`);
    const commits = Number(run('git', '-c', 'safe.directory=*', '-C', repository, 'rev-list', '--count', 'HEAD'));
    t.ok(commits > newest, `${commits} commits`);
    newest = commits;
    const mails = ['new', 'cur'].flatMap((folder) =>
      fs.readdirSync(join(path, 'maildir', folder)).map((name) => join(path, 'maildir', folder, name)),
    );
    const broken = mails.filter((mail) => {
      const text = fs.readFileSync(mail, 'utf8');
      return createHash('sha1').update(text.slice(40)).digest('hex') !== text.slice(0, 40);
    });
    t.same(broken, [], `${mails.length} mails are whole`);
    const numbers = mails.map((mail) => Number(/mail(\d+)/.exec(mail)?.[1])).sort((a, b) => a - b);
    t.same(
      numbers.filter((number, at) => at > 0 && number !== (numbers[at - 1] ?? 0) + 1),
      [],
      'each mail once, none missing in between',
    );
    fs.rmSync(path, { recursive: true });
  }
});
