/**
 * The peers, each as its own users would run it, between two sides on this machine: receiving side as a daemon, data through
 * the loopback, encrypted where ours is to be compared with it, durable at the end.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { btrfs, rclone, restic } from './backuppeers.ts';
import type { Distance } from './distance.ts';
import { Shell } from './processes.ts';
import { Missing, type Subject } from './subject.ts';
import type { Volume } from './volumes.ts';

/** Found, or installed from the distribution where that may be done. @throws Missing */
export function need(command: string, packageName: string): void {
  const has = (): boolean =>
    spawnSync('sh', ['-c', `PATH=$PATH:/usr/sbin:/sbin command -v ${command}`], { stdio: 'ignore' }).status === 0;
  if (has()) return;
  if (process.getuid?.() === 0)
    spawnSync('sh', ['-c', `apt-get -qq update; apt-get -qq -y --no-install-recommends install ${packageName}`], {
      stdio: 'ignore',
      env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    });
  if (!has()) throw new Missing(`needs ${command} (package ${packageName})`);
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

async function listens(port: number, daemon: ChildProcess): Promise<void> {
  for (let left = 200; left > 0; left--) {
    if (daemon.exitCode !== null) throw new Error(`${daemon.spawnargs.join(' ')} ended with ${daemon.exitCode}`);
    const socket = connect(port, '127.0.0.1');
    const isOpen = await once(socket, 'connect').then(
      () => true,
      () => false,
    );
    socket.destroy();
    if (isOpen) return;
    await sleep(50);
  }
  throw new Error(`nothing listens at port ${port}`);
}

export async function daemonOf(port: number, command: string, args: string[]): Promise<ChildProcess> {
  const daemon = spawn('setpriv', ['--pdeathsig', 'KILL', command, ...args], { stdio: 'ignore' });
  await listens(port, daemon);
  return daemon;
}

export interface PeerOptions {
  folder: string;
  /** The target has the volume as it was. */
  isChange: boolean;
  /** Between the two sides. */
  distance: Distance;
  sizeBytes: number;
  /** Of rsync: durable by one sync of the target's filesystem at the end, not by an fsync of each file. */
  syncsOnce?: boolean;
}

interface Built {
  command: string;
  wireBytes(): number;
  daemons: ChildProcess[];
  /** Where the copy of the volume is. */
  target(volume: Volume): string;
  line(volume: Volume): string;
}

export async function subject(name: string, target: string, { daemons, ...built }: Built): Promise<Subject> {
  const shell = new Shell();
  return {
    name,
    command: built.command,
    wireBytes: () => built.wireBytes(),
    roots: () => [shell.pid, ...daemons.map(({ pid }) => pid ?? 0)],
    async reset(volume) {
      rmSync(target, { recursive: true, force: true });
      mkdirSync(target, { recursive: true });
      // What takes images by their name wants it to be there.
      if (volume.kind === 'image' && name === 'nbdcopy')
        spawnSync('truncate', ['-s', `${volume.sizeBytes}`, built.target(volume)]);
    },
    copy: (volume) => shell.run(built.line(volume)),
    async check(volume) {
      const compared = volume.kind === 'image' ? ['cmp'] : ['diff', '-r', '--no-dereference'];
      const { status, stdout } = spawnSync(
        compared[0] ?? '',
        [...compared.slice(1), volume.path, built.target(volume)],
        {
          encoding: 'utf8',
        },
      );
      if (status !== 0) throw new Error(`${name} copied something else: ${stdout.slice(0, 1000)}`);
    },
    async stop() {
      shell.end();
      for (const daemon of daemons) daemon.kill('SIGKILL');
    },
  };
}

/** The volume's name below a module of a daemon: a file, or the directory's content. */
function nameIn(volume: Volume): string {
  return volume.kind === 'image' ? 'image' : 'tree/';
}

export function withSlash(volume: Volume): string {
  return volume.kind === 'image' ? volume.path : `${volume.path}/`;
}

/** Its module `data` is the folder, which is made. */
export async function rsyncDaemon(target: string): Promise<{ port: number; daemon: ChildProcess }> {
  mkdirSync(target, { recursive: true });
  const port = await freePort();
  const config = `${target}.conf`;
  writeFileSync(
    config,
    `use chroot = no\nuid = ${process.getuid?.()}\ngid = ${process.getgid?.()}\n[data]\npath = ${target}\nread only = no\n`,
  );
  const flags = ['--daemon', '--no-detach', '--address=127.0.0.1', `--port=${port}`, `--config=${config}`];
  return { port, daemon: await daemonOf(port, 'rsync', flags) };
}

/** rsync with a daemon at the other end; through stunnel with a shared key, as VolSync has it, or in the clear. */
async function rsync(name: string, flags: string, isEncrypted: boolean, options: PeerOptions): Promise<Subject> {
  const { folder, distance, syncsOnce = false } = options;
  need('rsync', 'rsync');
  if (isEncrypted) need('stunnel', 'stunnel4');
  const target = join(folder, name);
  const [tlsPort, ownPort] = [await freePort(), await freePort()];
  const { port, daemon } = await rsyncDaemon(target);
  const daemons = [daemon];
  if (isEncrypted) {
    const secrets = join(folder, `${name}.psk`);
    writeFileSync(secrets, `bench:${'0123456789abcdef'.repeat(4)}\n`, { mode: 0o600 });
    const tunnel = async (at: number, lines: string[]): Promise<ChildProcess> => {
      const path = join(folder, `${name}-${at}.conf`);
      const common = ['foreground = yes', 'pid =', 'socket = l:TCP_NODELAY=1', 'socket = r:TCP_NODELAY=1'];
      writeFileSync(
        path,
        [
          ...common,
          '[rsync]',
          'ciphers = PSK',
          `PSKsecrets = ${secrets}`,
          `accept = 127.0.0.1:${at}`,
          ...lines,
          '',
        ].join('\n'),
      );
      return daemonOf(at, 'stunnel', [path]);
    };
    daemons.push(await tunnel(tlsPort, [`connect = 127.0.0.1:${port}`]));
    daemons.push(await tunnel(ownPort, ['client = yes', `connect = 127.0.0.1:${await distance.far(tlsPort)}`]));
  }
  const url = `rsync://127.0.0.1:${isEncrypted ? ownPort : await distance.far(port)}/data`;
  const way = `${isEncrypted ? 'through stunnel (TLS, shared key) to ' : ''}an rsync daemon`;
  const [fsync, sync] = syncsOnce ? ['', ` && sync -f '${target}'`] : [' --fsync', ''];
  return subject(name, target, {
    command: `rsync ${flags}${fsync} SOURCE ${way}${syncsOnce ? ', then sync -f' : ''}`,
    wireBytes: () => distance.wireBytes(isEncrypted ? 3 : 1),
    daemons,
    target: (volume) => join(target, nameIn(volume)),
    line: (volume) => `rsync ${flags}${fsync} '${withSlash(volume)}' '${url}/${nameIn(volume)}'${sync}`,
  });
}

async function nbdcopy({ folder, distance }: PeerOptions): Promise<Subject> {
  need('nbdcopy', 'libnbd-bin');
  need('nbdkit', 'nbdkit');
  const target = join(folder, 'nbdcopy');
  const image = join(target, 'image');
  mkdirSync(target, { recursive: true });
  const port = await freePort();
  // It opens the file at each connection.
  if (!existsSync(image)) writeFileSync(image, '');
  const daemon = await daemonOf(port, 'nbdkit', [
    '--foreground',
    '--ipaddr=127.0.0.1',
    `--port=${port}`,
    'file',
    image,
  ]);
  const dialed = await distance.far(port);
  return subject('nbdcopy', target, {
    command: 'nbdcopy --flush SOURCE nbd://127.0.0.1 to nbdkit file, in the clear, unchecked',
    wireBytes: () => distance.wireBytes(1),
    daemons: [daemon],
    target: () => image,
    line: (volume) => `nbdcopy --flush '${volume.path}' nbd://127.0.0.1:${dialed}`,
  });
}

/** By name; each for images, trees or both. */
export const peers: Record<string, { kinds: Volume['kind'][]; start(options: PeerOptions): Promise<Subject> }> = {
  'rsync-stunnel': {
    kinds: ['image', 'tree'],
    start: (options) =>
      rsync(
        'rsync-stunnel',
        options.isChange ? '-a --no-W --inplace --delete' : '-aW --inplace --delete',
        true,
        options,
      ),
  },
  volsync: { kinds: ['image', 'tree'], start: (options) => rsync('volsync', '-aAHSxz --delete', true, options) },
  rsync: {
    kinds: ['image', 'tree'],
    start: (options) =>
      rsync('rsync', options.isChange ? '-a --no-W --inplace --delete' : '-aW --inplace --delete', false, options),
  },
  nbdcopy: { kinds: ['image'], start: nbdcopy },
  rclone: { kinds: ['image', 'tree'], start: rclone },
  restic: { kinds: ['image', 'tree'], start: restic },
  btrfs: { kinds: ['image', 'tree'], start: btrfs },
};
