/** Peers with an archive or a filesystem of their own between the sides. */
import { spawnSync, type ChildProcess } from 'node:child_process';
import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { loopMount, missingForLoop, run } from '../loop.ts';
import { daemonOf, freePort, need, subject, withSlash, type PeerOptions } from './peers.ts';
import { Missing, type Subject } from './subject.ts';

const mib = 2 ** 20;

function serve(what: string, target: string, port: number, ...flags: string[]): Promise<ChildProcess> {
  mkdirSync(target, { recursive: true });
  return daemonOf(port, 'rclone', ['serve', what, target, `--addr=127.0.0.1:${port}`, '--config=/dev/null', ...flags]);
}

/** Over SFTP, as VolSync's rclone mover goes to whatever storage it is told; what it has written is synced, as it does not. */
export async function rclone({ folder, distance }: PeerOptions): Promise<Subject> {
  need('rclone', 'rclone');
  const target = join(folder, 'rclone');
  const port = await freePort();
  // What a reset removes is not to be remembered.
  const flags = ['--user=bench', '--pass=bench', '--dir-cache-time=1ms'];
  const daemon = await serve('sftp', target, port, ...flags);
  const password = spawnSync('rclone', ['obscure', 'bench'], { encoding: 'utf8' }).stdout.trim();
  const remote = `--sftp-host=127.0.0.1 --sftp-port=${await distance.far(port)} --sftp-user=bench --sftp-pass=${password}`;
  const name = ({ kind }: { kind: string }): string => (kind === 'image' ? 'image' : 'tree');
  return subject('rclone', target, {
    command: 'rclone sync --transfers 8 SOURCE to rclone serve sftp, then sync -f',
    wireBytes: () => distance.wireBytes(1),
    daemons: [daemon],
    target: (volume) => join(target, name(volume)),
    line: (volume) =>
      `rclone --config=/dev/null -q --transfers=8 ${remote} ${volume.kind === 'image' ? 'copyto' : 'sync'} '${volume.path}' ':sftp:${name(volume)}' && sync -f '${target}'`,
  });
}

/** A backup, as VolSync's restic mover makes it; it is restored to be compared, which is not timed. */
export async function restic({ folder, distance }: PeerOptions): Promise<Subject> {
  need('restic', 'restic');
  need('rclone', 'rclone');
  const target = join(folder, 'restic');
  const restored = join(folder, 'restored');
  const port = await freePort();
  const daemon = await serve('restic', target, port, '--cache-objects=false');
  const command = `RESTIC_PASSWORD=bench restic -q --cache-dir='${join(folder, 'cache')}' -r rest:http://127.0.0.1:${await distance.far(port)}/`;
  const made = await subject('restic', target, {
    command: 'restic backup SOURCE to rclone serve restic, in the clear (its own encryption), then sync -f',
    wireBytes: () => distance.wireBytes(1),
    daemons: [daemon],
    target: (volume) => join(restored, volume.path),
    line: (volume) => `${command} backup '${volume.path}' && sync -f '${target}'`,
  });
  const sh = (line: string): void => {
    const { status, stderr } = spawnSync('sh', ['-c', line], { encoding: 'utf8' });
    if (status !== 0) throw new Error(`${line}: ${stderr.slice(0, 1000)}`);
  };
  return {
    ...made,
    async reset(volume) {
      await made.reset(volume);
      sh(`${command} init`);
    },
    async check(volume) {
      rmSync(restored, { recursive: true, force: true });
      sh(`${command} restore latest --target '${restored}'`);
      await made.check(volume);
    },
  };
}

/** Snapshot of a subvolume, sent whole or as what differs from the one before, received on another btrfs. */
export async function btrfs({ folder, distance, sizeBytes }: PeerOptions): Promise<Subject> {
  const missing = missingForLoop('btrfs');
  if (missing !== false) throw new Missing(missing);
  need('socat', 'socat');
  const endings: (() => unknown)[] = [];
  const mount = async (): Promise<string> => {
    const sizeMiB = Math.ceil(sizeBytes / mib) * 3 + 512;
    return (await loopMount({ teardown: (end) => void endings.push(end) }, 'btrfs', sizeMiB)).mountPoint;
  };
  const [source, target] = [await mount(), await mount()];
  const volumes = join(source, 'volumes');
  run('btrfs', '-q', 'subvolume', 'create', volumes);
  const port = await freePort();
  const receive = `SYSTEM:btrfs -q receive "${target}" && sync -f "${target}"`;
  const daemon = await daemonOf(port, 'socat', [`TCP-LISTEN:${port},bind=127.0.0.1,reuseaddr,fork`, receive]);
  const dialed = await distance.far(port);
  let newest = 0;
  const made = await subject('btrfs', join(folder, 'btrfs'), {
    command:
      'btrfs subvolume snapshot -r, btrfs send [-p BEFORE] through socat to btrfs receive, in the clear, unchecked',
    wireBytes: () => distance.wireBytes(1),
    daemons: [daemon],
    target: (volume) => join(target, `snap-${newest}`, withSlash(volume).slice(volumes.length)),
    line() {
      const before = newest++;
      const parent = before === 0 ? '' : `-p '${source}/snap-${before}'`;
      const now = `${source}/snap-${newest}`;
      return (
        `btrfs -q subvolume snapshot -r '${volumes}' '${now}' && sync -f '${source}' && ` +
        `btrfs -q send ${parent} '${now}' | socat -t 3600 - TCP:127.0.0.1:${dialed} && test -d '${target}/snap-${newest}'`
      );
    },
  });
  return {
    ...made,
    volumes,
    async reset() {
      for (const side of [source, target])
        for (const name of readdirSync(side).filter((found) => found.startsWith('snap-')))
          run('btrfs', '-q', 'subvolume', 'delete', '--commit-after', join(side, name));
      newest = 0;
    },
    async stop() {
      await made.stop();
      for (const end of endings.reverse()) await end();
    },
  };
}
