/**
 * Worker hosts for tests: Debian with a real systemd and sshd, each in a network namespace of its own on one bridge with this
 * machine. The root folder is made once by test/parts/hosts and is only read: what a host writes is gone with it.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import { run } from '../loop.ts';

export const hostRoot = '/var/cache/cdm-replicator-tests/host';
const network = '10.213.77';
/** Address of this machine on the bridge. */
export const gateway = `${network}.1`;

export interface Host {
  name: string;
  address: string;
  /** A shell command as root; answers its output. @throws when its status is not 0 */
  sh(command: string): string;
  /** Its status instead. */
  status(command: string): number | null;
  /** Arguments of ssh(1) that reach it as root. */
  ssh: string[];
  /** A folder that is the same on the host (/shared) and here. */
  shared: string;
}

export interface Hosts {
  hosts: Host[];
  /** Private key that is let in as root. */
  keyFile: string;
  knownHosts: string;
}

/** Why there can be no hosts here, or false. */
export function missingForHosts(...more: string[]): string | false {
  if (process.getuid?.() !== 0) return 'needs root';
  for (const program of ['systemd-nspawn', 'ip', 'ssh', 'ssh-keygen', ...more])
    if (spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0) return `needs ${program}: run test/parts/hosts`;
  if (!existsSync(join(hostRoot, '.complete'))) return `needs ${hostRoot}: run test/parts/hosts`;
  return spawnSync('ip', ['link', 'show', 'cdmrbr']).status === 0 ? 'another run holds the bridge cdmrbr' : false;
}

/**
 * @param folders what is /shared on a host, by its name; else a new folder
 * @param devices block devices of this machine that a host sees, by its name; it may trace them
 */
export async function openHosts(
  t: Test,
  names: string[],
  folders: Record<string, string> = {},
  devices: Record<string, string[]> = {},
): Promise<Hosts> {
  const dir = mkdtempSync(join(tmpdir(), 'replicator-hosts-'));
  const children: ChildProcess[] = [];
  const undo: string[][] = [];
  t.teardown(async () => {
    for (const child of children) {
      // The host's own init first: of a killed systemd-nspawn alone it would stay, with all that runs there.
      spawnSync('pkill', ['-KILL', '-P', `${child.pid}`]);
      child.kill('SIGKILL');
      await new Promise((resolve) =>
        (child.exitCode ?? child.signalCode) !== null ? resolve(0) : child.once('exit', resolve),
      );
    }
    for (const argv of undo.reverse()) spawnSync('ip', argv);
    rmSync(dir, { recursive: true, force: true });
  });
  const ip = (...argv: string[]) => run('ip', ...argv);
  ip('link', 'add', 'cdmrbr', 'type', 'bridge');
  undo.push(['link', 'del', 'cdmrbr']);
  ip('addr', 'add', `${gateway}/24`, 'dev', 'cdmrbr');
  ip('link', 'set', 'cdmrbr', 'up');
  const keyFile = join(dir, 'key');
  run('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', keyFile);
  const knownHosts = join(dir, 'known_hosts');
  const hostKey = readFileSync(join(hostRoot, 'etc/ssh/ssh_host_ed25519_key.pub'), 'utf8')
    .split(' ')
    .slice(0, 2)
    .join(' ');
  const ssh = (address: string) => [
    ...['-i', keyFile, '-o', `UserKnownHostsFile=${knownHosts}`, '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=30'],
    `root@${address}`,
  ];

  const hosts = names.map((name, index): Host => {
    const address = `${network}.${10 + index}`;
    const shared = folders[name] ?? join(dir, name);
    mkdirSync(shared, { recursive: true });
    writeFileSync(knownHosts, `${address} ${hostKey}\n`, { flag: 'a' });
    const netns = `cdmr-${name}`;
    ip('netns', 'add', netns);
    undo.push(['netns', 'del', netns]);
    ip('link', 'add', `v-${name}`, 'type', 'veth', 'peer', 'name', 'host0', 'netns', netns);
    undo.push(['link', 'del', `v-${name}`]);
    ip('link', 'set', `v-${name}`, 'master', 'cdmrbr', 'up');
    ip('-n', netns, 'addr', 'add', `${address}/24`, 'dev', 'host0');
    ip('-n', netns, 'link', 'set', 'host0', 'up');
    ip('-n', netns, 'link', 'set', 'lo', 'up');
    const child = spawn(
      'setpriv',
      [
        ...['--pdeathsig', 'KILL', 'systemd-nspawn', '--quiet', '--register=no', '--keep-unit', '--boot'],
        ...[
          '--directory',
          hostRoot,
          '--volatile=overlay',
          '--machine',
          name,
          `--network-namespace-path=/run/netns/${netns}`,
        ],
        ...['--bind', `${shared}:/shared`, '--bind-ro', `${keyFile}.pub:/root/.ssh/authorized_keys`, '--console=pipe'],
        ...(devices[name] ?? []).map((device) => `--bind=${device}`),
        ...['--capability=all', '--resolv-conf=off', '--timezone=off'],
      ],
      {
        stdio: ['ignore', 'ignore', 'ignore'],
        // Else /sys is read-only, and with it the tracer.
        env: { ...process.env, ...(devices[name] && { SYSTEMD_NSPAWN_API_VFS_WRITABLE: '1' }) },
      },
    );
    children.push(child);
    const attempt = (command: string) => spawnSync('ssh', [...ssh(address), command], { encoding: 'utf8' });
    return {
      name,
      address,
      shared,
      ssh: ssh(address),
      sh(command) {
        const { status, stdout, stderr } = attempt(command);
        if (status !== 0) throw new Error(`${name}: ${command}: status ${status}\n${stdout}${stderr}`);
        return stdout;
      },
      status: (command) => attempt(command).status,
    };
  });
  for (const host of hosts) {
    const endMs = performance.now() + 90_000;
    while (host.status('test -d /run/systemd/system') !== 0) {
      if (performance.now() > endMs) throw new Error(`the host ${host.name} did not come up`);
      await sleep(250);
    }
  }
  return { hosts, keyFile, knownHosts };
}
