/** The package on hosts: one with systemd and a traced block device, and the oldest system to be had. */
import t from 'tap';
import type { Test } from 'tap';
import { parseAllDocuments } from 'yaml';
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { removeInstance } from '../../agent/capture/tracefs.ts';
import { traceInstance } from '../../agent/trackings.ts';
import type { Agent } from '../../master/resources.ts';
import { freezerRoots } from '../cgroup.ts';
import { loopDevice, loopMount, missingForLoop, run, unmountWhole } from '../loop.ts';
import { differingBlocks, sameBytes, writeNoise } from './content.ts';
import { gateway, hostRoot, missingForHosts, openHosts } from './hosts.ts';
import { groupName, layVolume, pod, whyNoMoment, writer, writerScript } from './neverquiet.ts';
import { long, openWorld, type World } from './world.ts';

const root = resolve(import.meta.dirname, '../..');
const oldRoot = '/var/cache/cdm-replicator-tests/old';

function build(out: string, release: string): string {
  const env = { ...process.env, RPM_RELEASE: release, RPM_PAYLOAD: 'w1.gzdio' };
  const { status, stdout, stderr } = spawnSync(join(root, 'rpm/build'), ['--out', out], { encoding: 'utf8', env });
  if (status !== 0) throw new Error(`rpm/build: ${stderr}`);
  return stdout.trim().split('\n').at(-1) ?? '';
}

/** Why there can be no root folder to run it in, or false. Those need no bridge. */
function missingForRoots(path: string): string | false {
  if (!long) return 'long: npm run e2e -- package';
  if (process.getuid?.() !== 0) return 'needs root';
  const missing = ['rpmbuild', 'unshare', 'chroot'].find((name) => spawnSync(name, ['--version']).error);
  if (missing !== undefined) return `needs ${missing}`;
  return existsSync(join(path, '.complete')) ? false : `needs ${path}: run test/parts/hosts`;
}

/** Files of /etc/cdmr_agent. */
async function configuration(
  world: World,
  master: string,
  name: string,
  allow: string[],
): Promise<Record<string, string>> {
  const { token } = await world.client.send<{ token: string }>('POST', '/tokens', { kind: 'join' });
  return {
    'agent.conf': `CDMR_MASTER=${master}\nCDMR_NAME=${name}\nCDMR_KUBELET=/shared/kubelet\n`,
    allow: `${allow.join('\n')}\n`,
    'ca.pem': readFileSync(join(world.masterDir, 'ca.pem'), 'utf8'),
    'join.token': `${token}\n`,
  };
}
/** A copy of a root folder that is gone with the test, with the package installed by its own rpm. */
function installedRoot(t: Test, lower: string, dir: string): string {
  const top = join(dir, 'root');
  for (const part of ['root', 'upper', 'work']) mkdirSync(join(dir, part), { recursive: true });
  run('mount', '-t', 'overlay', 'overlay', '-o', `lowerdir=${lower},upperdir=${dir}/upper,workdir=${dir}/work`, top);
  t.teardown(() => void spawnSync('umount', ['--recursive', '--lazy', top]));
  cpSync(build(dir, '1'), join(top, 'tmp/agent.rpm'));
  const rpm = spawnSync('chroot', [top, 'rpm', '--install', '--nodeps', '/tmp/agent.rpm'], { encoding: 'utf8' });
  t.equal(rpm.status, 0, rpm.stderr);
  t.notMatch(rpm.stderr, /scriptlet|error/, 'scriptlets run');
  return top;
}

/** In namespaces of its own for mounts and processes, as a container has them. */
function startIn(t: Test, top: string, command: string[], env: Record<string, string>): ChildProcess {
  // The test runner puts flags with paths of this machine into every child's environment, whatever env says.
  const begin = `unset NODE_OPTIONS; mount -t proc proc ${top}/proc && mount -t sysfs sysfs ${top}/sys && exec chroot ${top} "$@"`;
  const unshare = ['unshare', '--mount', '--pid', '--fork', '--kill-child=TERM', 'sh', '-c', begin, 'sh'];
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', ...unshare, ...command], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { PATH: process.env['PATH'], ...env },
  });
  child.stdout.resume();
  t.teardown(() => ended(child));
  return child;
}
/** The container's first process gets SIGTERM when unshare is killed; the pipe closes when the last one has gone. */
async function ended(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL');
  if (child.stdout?.closed === false) await new Promise((done) => child.once('close', done));
}

const activeAgent = (world: World, name: string) =>
  world.until(
    `${name} is connected`,
    async () =>
      (await world.client.list<Agent>('/agents')).items.some(
        ({ metadata, status }) => metadata.name === name && status.state === 'ACTIVE',
      ),
    120,
  );

t.test(
  'on a host with systemd: a user of its own, confined, quick, and an upgrade of a traced volume reads nothing whole',
  { skip: long ? missingForHosts('rpmbuild') || missingForLoop('ext4') : 'long: npm run e2e -- package' },
  async (t) => {
    const world = await openWorld(t, { masterFlags: ['--advertise', gateway], grpc: '0.0.0.0:0' });
    const { device, mountPoint } = await loopMount(t, 'ext4', 64);
    // Before the host, so that it is done after the host has gone.
    t.teardown(() => removeInstance(traceInstance('/var/lib/cdmr_agent')));
    const { device: raw } = loopDevice(t, 16);
    const { hosts } = await openHosts(t, ['node-p'], {}, { 'node-p': [device, raw] });
    const host = hosts[0] as (typeof hosts)[number];
    const packages = ['1', '2']
      .map((release) => build(join(host.shared, 'rpm'), release))
      .map((path) => `/shared/rpm/${basename(path)}`);
    const { grpc } = JSON.parse(readFileSync(join(world.masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
    host.sh(`dnf --assumeyes --nogpgcheck --quiet install ${packages[0]}`);
    const files = await configuration(world, grpc.replace('127.0.0.1', gateway), 'node-p', [device, '/shared']);
    mkdirSync(join(host.shared, 'etc'));
    for (const [name, content] of Object.entries(files)) writeFileSync(join(host.shared, 'etc', name), content);
    host.sh('cp /shared/etc/* /etc/cdmr_agent/ && chmod 0600 /etc/cdmr_agent/join.token');
    host.sh('systemctl enable --now cdmr_agent_1');
    await activeAgent(world, 'node-p');
    const unit = 'cdmr_agent_1.service';

    await t.test('units are understood, and exposed as little as a source reader can be', async (t) => {
      for (const role of [1, 0]) {
        const name = `cdmr_agent_${role}.service`;
        t.equal(host.sh(`systemd-analyze verify ${name} 2>&1`), '', `${name} has nothing that systemd does not know`);
        const said = host.sh(`systemd-analyze security --no-pager ${name} | tail -n 1`);
        const exposure = Number(/: ([0-9.]+) /.exec(said)?.[1]);
        t.ok(exposure > 0 && exposure <= 3.7, said.trim());
      }
    });

    await t.test('the process is no root and has five capabilities', async (t) => {
      const pid = host.sh(`systemctl show -P MainPID ${unit}`).trim();
      const status = host.sh(`cat /proc/${pid}/status`);
      const uid = host.sh('id -u cdmr_agent').trim();
      t.not(uid, '0');
      t.match(status, `Uid:\t${uid}\t${uid}\t${uid}\t${uid}`);
      // SYS_ADMIN 21, DAC_OVERRIDE 1, DAC_READ_SEARCH 2, FOWNER 3, LEASE 28
      for (const set of ['CapEff', 'CapPrm', 'CapBnd', 'CapAmb']) t.match(status, `${set}:\t000000001020000e`);
      t.match(status, /NoNewPrivs:\t1/);
      t.match(status, /Seccomp:\t2/);
      t.equal(host.sh('stat -c "%U %a" /var/lib/cdmr_agent').trim(), 'cdmr_agent 700');
    });

    await t.test('from its start to its first connection: under a second', async (t) => {
      const all: { seconds: number; waited: number }[] = [];
      for (let turn = 0; turn < 5; turn++) {
        host.sh(`systemctl restart ${unit}`);
        await world.until('it says that it is connected', async () => times().connected !== undefined, 60);
        const { started, connected = Infinity } = times();
        // Ready to go on while other programs had the processors; a little more at most.
        const [, waitedNs] = host.sh(`cat /proc/$(systemctl show -P MainPID ${unit})/schedstat`).split(' ');
        all.push({ seconds: connected - started, waited: Number(waitedNs) / 1e9 });
      }
      const told = all.map(({ seconds, waited }) => `${seconds.toFixed(2)} (${waited.toFixed(2)})`).join(', ');
      t.comment(`seconds from start to connected (of that waiting for a processor): ${told}`);
      t.ok(Math.min(...all.map(({ seconds, waited }) => seconds - waited)) < 1, told);
    });
    /** Of the newest process: when systemd started it, and when it said that it was connected. */
    function times(): { started: number; connected: number | undefined } {
      const started = Number(host.sh(`systemctl show -P ExecMainStartTimestampMonotonic ${unit}`)) / 1e6;
      const pid = host.sh(`systemctl show -P MainPID ${unit}`).trim();
      const lines = host.sh(`journalctl -u ${unit} -o json --output-fields=MESSAGE,_PID _PID=${pid} --no-pager`);
      const line = lines.split('\n').find((one) => one.includes('connected to the master'));
      const at =
        line === undefined
          ? undefined
          : Number((JSON.parse(line) as Record<string, string>)['__MONOTONIC_TIMESTAMP']) / 1e6;
      return { started, connected: at };
    }

    await t.test('a pod that always writes is stopped for a cut: the unit may write control groups', async (t) => {
      const uid = randomUUID();
      layVolume(join(host.shared, 'kubelet'), uid, raw);
      writeFileSync(join(host.shared, 'writer.js'), writerScript);
      const root = host.sh('findmnt --noheadings --first-only --types cgroup2 --output TARGET').trim();
      const group = `${root}/${groupName('v2', uid)}`;
      const node = '/usr/lib/cdmr_agent/node_modules/.bin/node';
      host.sh(`mkdir -p ${group}`);
      const writes = `echo $$ >${group}/cgroup.procs && exec ${node} -e "$(cat /shared/writer.js)" ${raw}\n`;
      writeFileSync(join(host.shared, 'writer.sh'), writes);
      host.sh('systemd-run --quiet --unit=never-quiet sh /shared/writer.sh');
      await world.until('it writes', async () => host.sh(`cat ${group}/cgroup.procs`).trim() !== '');
      await cutWhileWritten(t, world, 'node-p', `/shared/kubelet/pods/${uid}/volumeDevices/kubernetes.io~csi/pv-1`);
      host.sh(`kill -KILL $(cat ${group}/cgroup.procs)`);
    });

    await t.test('upgraded and set back under writes to a traced device: nothing is read whole again', async (t) => {
      // Mounted in the host too, so that it is frozen there for each cut.
      host.sh(`mount ${device} /mnt`);
      const data = join(mountPoint, 'data');
      writeNoise(data, 8 << 20);
      spawnSync('sync', ['-f', mountPoint]);
      await replicate(world, 'traced', 'node-p', device);
      const { status } = await world.normal('traced', 0, 180);
      t.equal(
        status.captureMethod,
        'ftrace',
        (await world.events()).map(({ code, message }) => `${code}: ${message}`).join('\n'),
      );
      const scans = await scansTold(world);
      t.equal(scans, 1, 'read whole once, for the first copy');
      let count = 0;
      const writer = setInterval(() => {
        writeFileSync(data, `written ${count++}`, { flag: 'r+' });
        spawnSync('sync', ['-f', mountPoint]);
      }, 200);
      t.teardown(() => clearInterval(writer));
      const writesGoOn = (when: string) => {
        const from = count;
        return world.until(`writes go on ${when}`, async () => count > from + 1);
      };
      const frozen = () => {
        const sinceMs = Date.now();
        return world.until('a frozen cut', async () =>
          (await world.points('traced')).some(
            ({ consistency, sourceTime }) => consistency === 'filesystem' && Date.parse(sourceTime) >= sinceMs,
          ),
        );
      };
      await frozen();
      for (const [index, command] of [
        [2, `dnf --assumeyes --nogpgcheck --quiet install ${packages[1]}`],
        [1, `dnf --assumeyes --nogpgcheck --quiet downgrade ${packages[0]}`],
      ] as const) {
        const pid = host.sh(`systemctl show -P MainPID ${unit}`).trim();
        const before = count;
        // Not waited for by this thread: the writer goes on meanwhile.
        await hostRuns(command);
        t.match(host.sh('rpm -q cdmr_agent'), `-${index}.`);
        t.not(host.sh(`systemctl show -P MainPID ${unit}`).trim(), pid, 'another process');
        t.ok(count > before, `${count - before} writes meanwhile`);
        await writesGoOn('after it');
        await world.normal('traced', Date.now(), 180);
        t.equal(await world.metric('full_scans_total', 'replication="traced"'), scans, 'full_scans_total is unchanged');
      }
      await t.test('killed again and again: systemd starts it anew, nothing stays frozen', async () => {
        for (let round = 0; round < 3; round++) {
          await frozen();
          host.sh(`systemctl kill --kill-who=main --signal=KILL ${unit}`);
          await writesGoOn('without an agent');
          await world.normal('traced', Date.now(), 180);
        }
      });
      clearInterval(writer);
      await t.test('what is written while there is no agent at all is known to the kernel', async (t) => {
        for (let round = 0; round < 3; round++) {
          host.sh(`systemctl stop ${unit}`);
          writeNoise(join(mountPoint, `away${round}`), 1 << 20);
          spawnSync('sync', ['-f', mountPoint]);
          // Nothing is left in memory that would be written, and seen, later.
          run('blockdev', '--flushbufs', device);
          host.sh(`systemctl start ${unit}`);
          await world.normal('traced', Date.now(), 180);
          t.equal(await world.metric('full_scans_total', 'replication="traced"'), scans, `round ${round}`);
        }
      });
      spawnSync('sync', ['-f', mountPoint]);
      await world.normal('traced', Date.now(), 180);
      const lost = await world.metric('capture_lost_events_total', 'replication="traced"');
      t.equal(lost, 0, 'no event was lost');
      t.equal((await world.get('traced')).status.captureMethod, 'ftrace', 'still traced');
      await t.test('and the copy is the device', async (t) => {
        await world.until('no cut holds it', async () => host.status('umount /mnt') === 0);
        unmountWhole(mountPoint);
        await world.normal('traced', Date.now(), 180);
        t.equal(differingBlocks(device, (await world.copyOf('traced')).path), '', 'byte for byte');
      });
    });
    async function hostRuns(command: string): Promise<void> {
      const child = spawn('ssh', [...host.ssh, command], { stdio: 'ignore' });
      const status = await new Promise((done) => child.once('close', done));
      if (status !== 0) throw new Error(`${command}: status ${String(status)}`);
    }
  },
);

t.test(
  'on the oldest system that is to be had (Debian 11, glibc 2.31): scriptlets run, the agent mirrors',
  { skip: missingForRoots(oldRoot) },
  async (t) => {
    const world = await openWorld(t);
    const top = installedRoot(t, oldRoot, join(world.dir, 'old'));
    t.match(readFileSync(join(top, 'etc/os-release'), 'utf8'), /VERSION_ID="11"/);
    mkdirSync(join(top, 'volume'));
    run('mount', '--bind', world.sources, join(top, 'volume'));
    const { grpc } = JSON.parse(readFileSync(join(world.masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
    const files = await configuration(world, grpc, 'node-old', ['/volume']);
    for (const [name, content] of Object.entries(files)) writeFileSync(join(top, 'etc/cdmr_agent', name), content);
    const image = join(world.sources, 'image');
    writeNoise(image, 4 << 20);
    startIn(t, top, ['/usr/libexec/cdmr_agent/start', '1'], { CDMR_MASTER: grpc, CDMR_NAME: 'node-old' });
    await activeAgent(world, 'node-old');
    await replicate(world, 'db', 'node-old', '/volume/image');
    await world.normal('db', 0, 120);
    t.ok(sameBytes(image, (await world.copyOf('db')).path));
  },
);

interface Manifest {
  kind: string;
  spec: { template: { spec: { containers: Container[]; volumes: Volume[] } } };
}
interface Container {
  command: string[];
  env: { name: string; value?: string; valueFrom?: { fieldRef: { fieldPath: string } } }[];
  volumeMounts: { name: string; mountPath: string }[];
}
interface Volume {
  name: string;
  hostPath?: { path: string };
  projected?: { sources: { secret?: { name: string }; configMap?: { name: string } }[] };
}

t.test(
  'as its DaemonSet describes it, without systemd: joins by a token for many nodes, traces a device, goes on after it is replaced',
  { skip: missingForRoots(hostRoot) || missingForLoop('ext4') },
  async (t) => {
    const world = await openWorld(t);
    // Before the container has mounts of them too.
    const freezers = freezerRoots();
    const { device, mountPoint } = await loopMount(t, 'ext4', 64);
    writeNoise(join(mountPoint, 'data'), 8 << 20);
    unmountWhole(mountPoint);
    t.teardown(() => removeInstance(traceInstance('/var/lib/cdmr_agent')));
    const dir = join(world.dir, 'pod');
    const top = installedRoot(t, hostRoot, dir);
    const documents = parseAllDocuments(readFileSync(join(root, 'rpm/cdmr-agent-daemonset.yaml'), 'utf8'));
    const daemonSet = documents.map((one) => one.toJS() as Manifest).find(({ kind }) => kind === 'DaemonSet');
    const { containers, volumes } = daemonSet?.spec.template.spec ?? { containers: [], volumes: [] };
    const [container] = containers;
    if (!container) throw new Error('the DaemonSet has no container');
    const { token } = await world.client.send<{ token: string }>('POST', '/tokens', { kind: 'join', nodes: 2 });
    const { grpc } = JSON.parse(readFileSync(join(world.masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
    // What its first lines say is to be made before, by the names that the manifest asks for.
    const ca = readFileSync(join(world.masterDir, 'ca.pem'), 'utf8');
    const made: Record<string, Record<string, string>> = {
      'secret/cdmr-agent': { 'ca.pem': ca, 'join.token': token },
      'configMap/cdmr-agent': { allow: `${device}\n` },
    };
    for (const { name, mountPath } of container.volumeMounts) {
      const volume = volumes.find((one) => one.name === name);
      const own = volume?.hostPath?.path ?? '';
      const from = ['/dev', '/sys/fs/cgroup'].includes(own) ? own : join(dir, name);
      mkdirSync(from, { recursive: true });
      for (const { secret, configMap } of volume?.projected?.sources ?? [])
        for (const [file, content] of Object.entries(
          made[secret ? `secret/${secret.name}` : `configMap/${configMap?.name}`] ?? {},
        ))
          writeFileSync(join(from, file), content, { mode: 0o400 });
      mkdirSync(join(top, mountPath), { recursive: true });
      // With what is mounted below, as the kubelet does it; what is unmounted here in the end stays mounted there.
      run('mount', '--rbind', '--make-rslave', from, join(top, mountPath));
    }
    const env = (nodeName: string) =>
      Object.fromEntries(
        container.env.map(({ name, value, valueFrom }) => [
          name,
          name === 'CDMR_MASTER' ? grpc : valueFrom?.fieldRef.fieldPath === 'spec.nodeName' ? nodeName : (value ?? ''),
        ]),
      );
    const first = startIn(t, top, container.command, env('node-d'));
    await activeAgent(world, 'node-d');
    await replicate(world, 'traced', 'node-d', device);
    t.equal((await world.normal('traced', 0, 180)).status.captureMethod, 'ftrace');
    const scans = await scansTold(world);
    await ended(first);
    startIn(t, top, container.command, env('node-d'));
    await world.normal('traced', Date.now(), 180);
    t.equal(await world.metric('full_scans_total', 'replication="traced"'), scans, 'nothing is read whole again');
    t.equal(differingBlocks(device, (await world.copyOf('traced')).path), '', 'byte for byte');

    await t.test(
      'a pod that always writes is stopped for a cut, by a group that the container itself does not see',
      { skip: freezers.length === 0 && 'needs cgroups with a freezer' },
      async (t) => {
        for (const freezer of freezers)
          await t.test(`of ${freezer.name}`, async (t) => {
            const { device } = loopDevice(t, 16);
            const { path, folder } = pod(t, freezer, join(dir, 'kubelet'), device);
            writer(t, folder, device);
            await cutWhileWritten(t, world, 'node-d', path.replace(dir, '/var/lib'), `raw-${freezer.name}`);
          });
      },
    );
  },
);

/** @param path of a volume that its pod never ceases to write to */
async function cutWhileWritten(t: Test, world: World, agent: string, path: string, name = 'raw'): Promise<void> {
  await world.client.send('POST', '/replications', {
    metadata: { name },
    spec: {
      source: { agent, path, volumeMode: 'Block' },
      target: { storageClass: 'local' },
      ...{ rpoSeconds: 2, maxFreezeMs: 5000 },
    },
  });
  await world.normal(name, 0, 180);
  await world.until('that it was stopped is told', async () => {
    return (await world.metric('freeze_duration_seconds_count', `replication="${name}"`)) > 0;
  });
  const { path: copy } = await world.copyOf(name);
  t.equal(whyNoMoment(readFileSync(copy)), undefined, 'the copy is of a moment at which no writer ran');
  await world.client.send('DELETE', `/replications/${name}`);
}

/** The agent tells of the first one a little after its commit. */
const scansTold = (world: World) =>
  world.until('the first scan is counted', async () => {
    return (await world.metric('full_scans_total', 'replication="traced"')) || undefined;
  });

async function replicate(world: World, name: string, agent: string, path: string): Promise<void> {
  await world.client.send('POST', '/replications', {
    metadata: { name },
    spec: { source: { agent, path, volumeMode: 'Block' }, target: { storageClass: 'local' }, rpoSeconds: 2 },
  });
}
