import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import type { Agent } from '../../master/resources.ts';
import { sameBytes, writeNoise } from './content.ts';
import { loopMount, missingForLoop } from '../loop.ts';
import { gateway, missingForHosts, openHosts } from './hosts.ts';
import { long, openWorld } from './world.ts';

const root = resolve(import.meta.dirname, '../..');
const skip = long
  ? missingForHosts('ansible-playbook', 'rpmbuild', 'rpmsign', 'gpg') || missingForLoop('xfs')
  : 'long: npm run e2e -- ansible';
const linter = ['ansible-lint', '/var/cache/cdm-replicator-tests/lint/bin/ansible-lint'].find(
  (path) => spawnSync(path, ['--version']).status === 0,
);

function run(program: string, env: NodeJS.ProcessEnv, ...argv: string[]): string {
  const { status, stdout, stderr } = spawnSync(program, argv, { env, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${program}: status ${status}\n${stdout}${stderr}`);
  return stdout;
}

t.test('ansible-lint is content', { skip: !linter && 'needs ansible-lint: run test/parts/hosts' }, async (t) => {
  const home = t.testdir({});
  const linted = spawnSync(linter ?? '', ['--nocolor'], {
    cwd: join(root, 'ansible'),
    encoding: 'utf8',
    env: { ...process.env, HOME: home, PATH: `${dirname(linter ?? '')}:${process.env['PATH']}` },
  });
  t.equal(linted.status, 0, linted.stdout + linted.stderr);
});

t.test('three hosts from nothing to mirroring by Ansible, upgraded under writes, removed', { skip }, async (t) => {
  const world = await openWorld(t, { masterFlags: ['--advertise', gateway], grpc: '0.0.0.0:0', http: '0.0.0.0:0' });
  // Images on XFS are captured by comparing clones: what changed is known over restarts of the agent.
  const { mountPoint } = await loopMount(t, 'xfs', 512);
  const names = ['node-a', 'node-b', 'node-c'];
  const { hosts, keyFile, knownHosts } = await openHosts(t, names, { 'node-a': mountPoint });
  const [first, second, third] = hosts;
  if (!first || !second || !third) throw new Error('three hosts were asked for');
  // node-b is reached as a user who becomes root, node-c by way of node-b.
  second.sh('useradd --create-home --shell /bin/bash deploy && usermod --password "*" deploy');
  second.sh('echo "deploy ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/deploy');
  second.sh('install -d -o deploy -m 0700 ~deploy/.ssh && install -o deploy ~/.ssh/authorized_keys ~deploy/.ssh/');
  const ssh = `-o UserKnownHostsFile=${knownHosts}`;
  const jump = `${ssh} -o "ProxyCommand=ssh -i ${keyFile} ${ssh} -W %h:%p deploy@${second.address}"`;
  const lines: Record<string, string> = {
    'node-a': 'ansible_user=root cdmr_become=false',
    'node-b': 'ansible_user=deploy',
    'node-c': `ansible_user=root cdmr_become=false ansible_ssh_common_args='${jump}'`,
  };
  const build = (release: string): string => {
    const env = { ...process.env, RPM_RELEASE: release, RPM_PAYLOAD: 'w1.gzdio' };
    const said = run(join(root, 'rpm/build'), env, '--out', join(world.dir, `rpm${release}`));
    return said.trim().split('\n').at(-1) ?? '';
  };
  /** By a key that all hosts know from then on. */
  const sign = (path: string): void => {
    const home = join(world.dir, 'keys');
    mkdirSync(home, { mode: 0o700 });
    const keys = { ...process.env, GNUPGHOME: home };
    const gpg = (...argv: string[]) => run('gpg', keys, '--batch', '--passphrase', '', ...argv);
    gpg('--quick-generate-key', 'Packages', 'rsa3072', 'sign', 'never');
    const defines = { _gpg_name: 'Packages', __gpg: run('sh', keys, '-c', 'command -v gpg').trim() };
    const defined = Object.entries(defines).flatMap(([name, value]) => ['--define', `${name} ${value}`]);
    run('rpmsign', keys, ...defined, '--addsign', path);
    const key = gpg('--armor', '--export', 'Packages');
    run('gpgconf', keys, '--kill', 'all');
    for (const host of hosts) {
      writeFileSync(join(host.shared, 'key.asc'), key);
      host.sh('rpm --import /shared/key.asc');
    }
  };
  const rpm = build('1');
  const inventory = join(world.dir, 'ansible_hosts');
  const { grpc } = JSON.parse(readFileSync(join(world.masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
  writeFileSync(
    inventory,
    `[agent]\n${hosts.map(({ name, address }) => `${name} ansible_host=${address} ${lines[name]}`).join('\n')}
[agent:vars]
ansible_ssh_private_key_file=${keyFile}
ansible_ssh_common_args=${ssh}
cdmr_master=${grpc.replace('127.0.0.1', gateway)}
cdmr_api=${world.client.url.replace('127.0.0.1', gateway)}
cdmr_api_token_file=${join(world.masterDir, 'admin.token')}
cdmr_ca_file=${join(world.masterDir, 'ca.pem')}
cdmr_allow=["/shared"]
`,
  );
  const env = { ...process.env, ANSIBLE_NOCOLOR: '1', ANSIBLE_CONFIG: join(root, 'ansible/ansible.cfg') };
  async function play(
    book: string,
    ...more: string[]
  ): Promise<{ status: number | null; changed: number[]; text: string }> {
    const argv = ['-i', inventory, '-e', `cdmr_rpm=${rpm}`, ...more, join(root, 'ansible', book)];
    const child = spawn('ansible-playbook', argv, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    child.stdout.on('data', (data: Buffer) => (text += data.toString()));
    child.stderr.on('data', (data: Buffer) => process.stderr.write(data));
    const status = await new Promise<number | null>((done) => child.once('close', done));
    const recap = text.matchAll(/^\S+ +: ok=\d+ +changed=(\d+) /gm);
    return { status, changed: [...recap].map((match) => Number(match[1])), text };
  }
  const changed = (played: { changed: number[] }): number[] => played.changed;
  const agents = async (): Promise<string[]> =>
    (await world.client.list<Agent>('/agents')).items
      .map(({ metadata, status }) => `${metadata.name} ${status.state}`)
      .sort();

  await t.test('what is missing is said with its cure', async (t) => {
    const refused = await play('agent_install.yml', '-e', 'cdmr_master=');
    t.not(refused.status, 0);
    t.match(refused.text, /cdmr_master is not set; set it in ansible_hosts/);
    const early = await play('agent_start_1.yml');
    t.match(early.text, /is not installed on node-a: run agent_install.yml first/);
  });

  await t.test('one run installs, joins and connects; the second changes nothing', async (t) => {
    const checked = await play('agent_install.yml', '--check', '--diff');
    t.equal(checked.status, 0, 'a check of what is not there yet ends well');
    t.ok(
      changed(checked).every((count) => count > 0),
      'and says that there would be changes',
    );
    for (const host of hosts) t.equal(host.status('test -e /etc/cdmr_agent'), 1, `and makes none on ${host.name}`);
    t.strictSame(await agents(), []);
    const unsigned = await play('agent_install.yml', '-e', 'cdmr_gpgcheck=true', '--limit', 'node-a');
    t.not(unsigned.status, 0);
    t.match(unsigned.text, /is not signed/, 'refused where signatures are asked for');
    const wrong = await play('agent_install.yml', '-e', 'cdmr_api_token_file=/etc/hostname', '--limit', 'node-a');
    t.match(wrong.text, /gave no join token: .*token of\s+the role manager or admin/s);
    const installed = await play('agent_install.yml');
    t.equal(installed.status, 0, installed.status === 0 ? 'installed' : installed.text.slice(-4000));
    t.strictSame(await agents(), ['node-a ACTIVE', 'node-b ACTIVE', 'node-c ACTIVE']);
    t.match(first.sh('rpm -q cdmr_agent'), /^cdmr_agent-/, 'dnf has installed it');
    t.equal(first.status('test -e /etc/cdmr_agent/join.token'), 1, 'the used token is gone');
    const second = await play('agent_install.yml', '--diff');
    t.strictSame(changed(second), [0, 0, 0]);
    const checkedAgain = await play('agent_install.yml', '--check');
    t.strictSame(changed(checkedAgain), [0, 0, 0], 'a check says so too');
  });

  const image = join(first.shared, 'image');
  writeNoise(image, 16 << 20);
  await t.test('mirrored, upgraded under writes, and nothing was copied anew', async (t) => {
    await world.client.send('POST', '/replications', {
      metadata: { name: 'db' },
      spec: {
        source: { agent: 'node-a', path: '/shared/image', volumeMode: 'Block' },
        target: { storageClass: 'local' },
        rpoSeconds: 2,
      },
    });
    await world.normal('db');
    // One that was not mirrored before does not hold the roll-out up.
    await world.client.send('POST', '/replications', {
      metadata: { name: 'none' },
      spec: {
        source: { agent: 'node-a', path: '/shared/none', volumeMode: 'Filesystem' },
        target: { storageClass: 'local' },
      },
    });
    await world.degraded('none', 'SourceGone');
    // Told a little after the commit, all counts at once.
    const sentBefore = await world.until('it is told that the first copy crossed the line', async () => {
      const bytes = await world.metric('sent_bytes_total', 'db');
      return bytes > 8 << 20 && bytes;
    });
    const cutsBefore = await world.metric('cuts_total', 'db');
    const scansBefore = await world.metric('full_scans_total', 'db');
    t.equal((await world.get('db')).status.captureMethod, 'extents');
    const pidBefore = first.sh('systemctl show -P MainPID cdmr_agent_1').trim();
    let count = 0;
    const writer = setInterval(() => writeFileSync(image, `written ${count++}`, { flag: 'r+' }), 200);
    const newer = build('2');
    sign(newer);
    const checked = await play('agent_upgrade.yml', '--check', '-e', `cdmr_rpm=${newer}`);
    t.strictSame(changed(checked), [1, 1, 1], 'a check says so, and');
    t.match(first.sh('rpm -q cdmr_agent'), /-1\./, 'changes nothing');
    const upgraded = await play('agent_upgrade.yml', '-e', `cdmr_rpm=${newer}`, '-e', 'cdmr_gpgcheck=true');
    clearInterval(writer);
    t.equal(upgraded.status, 0, upgraded.status === 0 ? 'upgraded' : upgraded.text.slice(-4000));
    t.match(first.sh('rpm -q cdmr_agent'), /-2\./);
    t.not(first.sh('systemctl show -P MainPID cdmr_agent_1').trim(), pidBefore, 'the agent was restarted');
    const second = await play('agent_upgrade.yml', '-e', `cdmr_rpm=${newer}`);
    t.strictSame(changed(second), [0, 0, 0], 'an upgrade to what is there changes nothing');
    await world.normal('db', Date.now());
    const { path } = await world.copyOf('db');
    t.ok(sameBytes(image, path), 'what was written meanwhile is in the copy');
    // Each cut meanwhile sends the one granule that is written to; a copy anew would be all 16 MiB once more.
    const cuts = (await world.metric('cuts_total', 'db')) - cutsBefore;
    const sent = (await world.metric('sent_bytes_total', 'db')) - sentBefore;
    t.ok(sent < (4 << 20) + cuts * (128 << 10), `${sent} bytes in ${cuts} cuts: content was not sent again`);
    t.equal(await world.metric('full_scans_total', 'db'), scansBefore, 'and it was not read whole again');
    t.match(first.sh('cat /etc/cdmr_agent/allow'), '/shared', 'the configuration is kept');
  });

  await t.test('back to the older package', async (t) => {
    const older = await play('agent_upgrade.yml', '-e', 'cdmr_dnf=downgrade');
    t.equal(older.status, 0, older.status === 0 ? 'downgraded' : older.text.slice(-4000));
    t.match(first.sh('rpm -q cdmr_agent'), /-1\./);
    await world.normal('db', Date.now());
  });

  await t.test('stopped, started as target, as source, each once', async (t) => {
    t.ok(changed(await play('agent_stop.yml')).every((count) => count > 0));
    t.strictSame(changed(await play('agent_stop.yml')), [0, 0, 0]);
    t.equal(first.status('systemctl is-active cdmr_agent_1'), 3);
    t.equal((await play('agent_start_0.yml')).status, 0);
    t.strictSame(changed(await play('agent_start_0.yml')), [0, 0, 0]);
    await world.until('the agents are targets', async () => {
      const { items } = await world.client.list<Agent>('/agents');
      return items.every(({ spec, status }) => spec.role === 'target' && status.state === 'ACTIVE');
    });
    t.equal((await play('agent_start_1.yml')).status, 0);
    t.equal(first.status('systemctl is-active cdmr_agent_0'), 3, 'never both');
    await world.normal('db', Date.now());
    const told = await play('agent_status.yml');
    t.strictSame(changed(told), [0, 0, 0]);
    t.match(told.text, /"master": "ACTIVE"/);
  });

  await t.test('the unit is confined, and the first connection comes within a second of the start', async (t) => {
    const pid = first.sh('systemctl show -P MainPID cdmr_agent_1').trim();
    const status = first.sh(`cat /proc/${pid}/status`);
    t.match(status, /NoNewPrivs:\t1/);
    t.match(status, /Seccomp:\t2/);
    t.not(/CapBnd:\t(\w+)/.exec(status)?.[1], '000001ffffffffff');
    first.sh('systemctl restart cdmr_agent_1');
    const journal = () => first.sh(`journalctl -u cdmr_agent_1 -o cat | tail -20`);
    await world.until('it says that it is connected', async () =>
      journal()
        .trimEnd()
        .split('\n')
        .some((line) => line.includes('connected to the master')),
    );
  });

  await t.test('removed: nothing of it is left', async (t) => {
    const checked = await play('agent_remove.yml', '--check');
    t.ok(changed(checked).length === 3 && changed(checked).every((count) => count > 0), String(changed(checked)));
    t.equal(first.status('systemctl is-active cdmr_agent_1'), 0, 'still there after a check');
    const removed = await play('agent_remove.yml');
    t.equal(removed.status, 0, removed.status === 0 ? 'removed' : removed.text.slice(-4000));
    const left = first.sh(
      'find / -xdev -iname "*cdmr*" -not -path "/proc/*" -not -path "/sys/*" -not -path "/shared/*" -not -path "/var/log/*" -not -path "/var/lib/dnf/*" -not -path "/var/cache/*"',
    );
    t.equal(left, '', 'no file');
    t.equal(first.status('id cdmr_agent'), 1, 'no user');
    t.equal(first.sh('ps -eo args | grep -c "[r]eplicator-agent\\|[g]uard-main" || true').trim(), '0', 'no process');
    t.strictSame(await agents(), []);
    t.strictSame(changed(await play('agent_remove.yml')), [0, 0, 0]);
    t.ok(readdirSync(first.shared).includes('image'), 'the volume is untouched');
  });

  await t.test('without Ansible: the master installs an agent over SSH on a host with systemd', async (t) => {
    const packages = join(world.masterDir, 'packages');
    mkdirSync(packages);
    cpSync(rpm, join(packages, basename(rpm)));
    const [, ...hostKey] = (readFileSync(knownHosts, 'utf8').split('\n')[2] ?? '').split(' ');
    await world.client.send('POST', '/agents/node-c/actions/bootstrap', {
      host: third.address,
      hostKey: hostKey.join(' '),
      privateKey: readFileSync(keyFile, 'utf8'),
      master: grpc.replace('127.0.0.1', gateway),
    });
    const { status } = await world.until(
      'the bootstrap ends',
      async () => {
        const found = await world.client.get<Agent>('/agents/node-c');
        return found.status.bootstrap?.state !== 'Running' && found;
      },
      180,
    );
    t.match(status, { state: 'ACTIVE', bootstrap: { state: 'Completed' } }, JSON.stringify(status.bootstrap));
    t.equal(third.sh('systemctl is-enabled cdmr_agent_1').trim(), 'enabled');
    t.match(third.sh('dnf --quiet history list 2>/dev/null; rpm -q cdmr_agent'), /cdmr_agent-0/);
  });
});
