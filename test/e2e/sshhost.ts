/**
 * A host to install on, for tests: a real sshd and rpm in namespaces of this machine, over a copy of its files that is gone
 * with the test. It has no systemd: `systemctl` and `journalctl` are stood in for by scripts that start and stop a unit's
 * ExecStart with its EnvironmentFile. (Hosts with systemd: hosts.ts.)
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import { run } from '../loop.ts';
import { freePort } from '../ports.ts';

export interface SshdHost {
  port: number;
  /** Private key that is let in, as root and as `deploy` (who has sudo, where this machine has it). */
  keyFile: string;
  /** Public host key, "ssh-ed25519 AAAA...". */
  hostKey: string;
  hasSudo: boolean;
  /** A shell command as root on the host; answers its output. */
  sh(command: string): string;
  /** What sshd has said. */
  log(): string;
  /** Everything on the host that differs from this machine. */
  changes(): string[];
}

const needed = ['sshd', 'ssh', 'ssh-keygen', 'ssh-agent', 'rpm', 'rpmbuild', 'unshare', 'setpriv', 'nsenter'];

export function missingForSshd(): string | false {
  if (process.getuid?.() !== 0) return 'needs root';
  for (const program of needed)
    if (spawnSync('sh', ['-c', `PATH=$PATH:/usr/sbin; command -v ${program}`]).status !== 0) return `needs ${program}`;
  const overlay = `t=$(mktemp -d) && mount -t tmpfs tmpfs $t && mkdir $t/u $t/w && mount -t overlay overlay -o lowerdir=/etc,upperdir=$t/u,workdir=$t/w /etc`;
  return spawnSync('unshare', ['--mount', 'sh', '-c', overlay]).status === 0 ? false : 'needs overlayfs';
}

const systemctl = `#!/bin/sh
verb= units= now=
for word in "$@"; do
  case $word in
  --now) now=1 ;;
  -*) ;;
  *) if [ -z "$verb" ]; then verb=$word; else units="$units \${word%.service}"; fi ;;
  esac
done
mkdir -p /run/units
alive() { [ -e /run/units/$1.pid ] && kill -0 "$(cat /run/units/$1.pid)" 2>/dev/null; }
stop() {
  if alive $1; then
    pid=$(cat /run/units/$1.pid)
    kill $pid
    while kill -0 $pid 2>/dev/null; do sleep 0.05; done
  fi
  rm -f /run/units/$1.pid
}
start() {
  file=/usr/lib/systemd/system/$1.service
  [ -e $file ] || { echo "Unit $1.service not found." >&2; exit 5; }
  alive $1 && return
  ( set -a; . /etc/cdmr_agent/agent.conf; exec setsid $(sed -n 's/^ExecStart=//p' $file) ) >>/run/$1.log 2>&1 </dev/null &
  echo $! >/run/units/$1.pid
}
for unit in $units; do
  case $verb in
  start) start $unit ;;
  stop) stop $unit ;;
  restart) stop $unit && start $unit ;;
  try-restart) if alive $unit; then stop $unit && start $unit; fi ;;
  enable) touch /run/units/$unit.enabled && if [ -n "$now" ]; then start $unit; fi ;;
  disable) rm -f /run/units/$unit.enabled && if [ -n "$now" ]; then stop $unit; fi ;;
  is-active) alive $unit || exit 3 ;;
  is-enabled) [ -e /run/units/$unit.enabled ] || exit 1 ;;
  *) echo "systemctl $verb is not stood in for" >&2; exit 1 ;;
  esac
done
`;
const journalctl = `#!/bin/sh
while [ $# -gt 0 ]; do if [ "$1" = -u ]; then tail -n 8 "/run/\${2%.service}.log"; fi; shift; done
`;

export async function openSshd(t: Test): Promise<SshdHost> {
  const dir = mkdtempSync(join(tmpdir(), 'replicator-sshd-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  // Keys are read as the user who logs in.
  chmodSync(dir, 0o755);
  const keyFile = join(dir, 'key');
  const hostKeyFile = join(dir, 'hostkey');
  for (const file of [keyFile, hostKeyFile]) run('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', file);
  const script = (name: string, content: string): void => {
    writeFileSync(join(dir, name), content);
    chmodSync(join(dir, name), 0o755);
  };
  script('systemctl', systemctl);
  script('journalctl', journalctl);
  const rpms = join(dir, 'rpms');
  mkdirSync(rpms);
  run('rpmbuild', '-bb', '--quiet', '--define', `_topdir ${rpms}`, resolve(import.meta.dirname, '../parts/base.spec'));
  const port = await freePort();
  writeFileSync(
    join(dir, 'sshd_config'),
    `ListenAddress 127.0.0.1
Port ${port}
HostKey ${hostKeyFile}
AuthorizedKeysFile ${keyFile}.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PidFile none
UseDNS no
`,
  );
  const top = '/run/top';
  const begin = `
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/sshd /run/lock
for part in etc usr var; do
  mkdir -p ${top}/$part ${top}/.$part
  mount -t overlay overlay -o lowerdir=/$part,upperdir=${top}/$part,workdir=${top}/.$part /$part
done
rm -f /usr/bin/systemctl /usr/bin/journalctl /etc/nologin
cp ${dir}/systemctl ${dir}/journalctl /usr/bin/
rm -rf /var/lib/rpm /root/.rpmdb
rpm --install --nodeps ${rpms}/RPMS/noarch/*.rpm 2>/dev/null
useradd --create-home --home-dir /var/lib/deploy --shell /bin/sh deploy
usermod --password '*' deploy
if [ -d /etc/sudoers.d ]; then echo 'deploy ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/deploy; chmod 0440 /etc/sudoers.d/deploy; fi
echo $$ >${dir}/started
exec $(command -v sshd || echo /usr/sbin/sshd) -D -e -f ${dir}/sshd_config 2>${dir}/sshd.log
`;
  const namespaces = ['unshare', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', ...namespaces, 'sh', '-euc', begin], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin` },
  });
  let said = '';
  child.stderr.on('data', (data: Buffer) => (said += data.toString()));
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
  // The child of unshare is process 1 of the host.
  const init = (): string =>
    spawnSync('pgrep', ['-P', String(child.pid)], { encoding: 'utf8' })
      .stdout.trim()
      .split('\n')[0] ?? '';
  const sh = (command: string): string =>
    run('nsenter', '--target', init(), '--mount', '--pid', 'sh', '-c', `PATH=$PATH:/usr/sbin; ${command}`);
  const endMs = performance.now() + 60_000;
  while (!existsSync(join(dir, 'started')) || !(await answers(port))) {
    if (child.exitCode !== null || performance.now() > endMs) throw new Error(`the host did not start: ${said}`);
    await sleep(50);
  }
  return {
    port,
    keyFile,
    hostKey: readFileSync(`${hostKeyFile}.pub`, 'utf8').split(' ').slice(0, 2).join(' '),
    hasSudo: spawnSync('sudo', ['--version']).status === 0,
    sh,
    log: () => readFileSync(join(dir, 'sshd.log'), 'utf8'),
    changes() {
      // rpm's own database changes with every transaction, and what it logs.
      const noise = '-path "*/lib/rpm/*" -o -path "*/lib/dnf*" -o -path "*/log/*" -o -path "*/cache/*"';
      return sh(`cd ${top} && find etc usr var -not -type d -not \\( ${noise} \\) | sort`).trim().split('\n');
    },
  };
}

async function answers(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1');
  return new Promise((done) => {
    socket.once('data', () => (socket.destroy(), done(true)));
    socket.once('error', () => done(false));
  });
}
