import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { removeInstance } from '../../agent/capture/tracefs.ts';
import { traceInstance } from '../../agent/trackings.ts';
import { ApiProblem } from '../../master/cli/client.ts';
import type { Agent } from '../../master/resources.ts';
import { startProxy } from './proxy.ts';
import { freePort } from '../ports.ts';
import { missingForSshd, openSshd } from './sshhost.ts';
import { openWorld } from './world.ts';

const root = resolve(import.meta.dirname, '../..');
const skip = missingForSshd();

t.test('an agent is installed over SSH: host key checked, progress told, undone on failure', { skip }, async (t) => {
  const world = await openWorld(t, { masterFlags: ['--advertise', '127.0.0.1'] });
  t.teardown(() => removeInstance(traceInstance('/var/lib/cdmr_agent')));
  const packages = join(world.masterDir, 'packages');
  mkdirSync(packages);
  // Less pressed than what is shipped: it is made in a tenth of the time.
  const built = spawnSync(join(root, 'rpm/build'), ['--out', packages], {
    encoding: 'utf8',
    env: { ...process.env, RPM_PAYLOAD: 'w1.gzdio' },
  });
  t.equal(built.status, 0, built.stderr);
  const rpm = built.stdout.trim().split('\n').at(-1) ?? '';
  const host = await openSshd(t);
  const privateKey = readFileSync(host.keyFile, 'utf8');
  const untouched = host.changes();
  const action = '/agents/node-x/actions/bootstrap';
  const request = { host: '127.0.0.1', port: host.port, hostKey: host.hostKey, privateKey };
  const agent = () => world.client.get<Agent>('/agents/node-x');
  async function ended(): Promise<Agent> {
    return world.until(
      'the bootstrap ends',
      async () => {
        const found = await agent();
        return found.status.bootstrap !== undefined && found.status.bootstrap.state !== 'Running' && found;
      },
      180,
    );
  }
  const begin = (change: object = {}) => world.client.send<Agent>('POST', action, { ...request, ...change });
  const code = (work: Promise<unknown>) =>
    work.then(String, (error: unknown) => (error instanceof ApiProblem ? error.problem : error));

  await t.test('what is wrong is said, by field, before anything is done', async (t) => {
    t.match(await code(begin({ hostKey: 'trust me' })), { status: 422, errors: [{ path: 'hostKey' }] });
    t.match(await code(begin({ privateKey: undefined })), { status: 422, errors: [{ path: 'privateKey' }] });
    t.match(await code(begin({ allow: ['srv'] })), { status: 422, errors: [{ path: 'allow[0]' }] });
    t.match(await code(begin({ kubelet: '/a b' })), { status: 422, errors: [{ path: 'kubelet' }] });
    t.match(await code(agent()), { status: 404 }, 'no object is left');
  });

  await t.test('a host with another key hears nothing from us', async (t) => {
    const other = join(t.testdir({}), 'other');
    spawnSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', other]);
    const made = await begin({ hostKey: readFileSync(`${other}.pub`, 'utf8') });
    t.match(made, { kind: 'Agent', status: { state: 'NOT INSTALLED', bootstrap: { state: 'Running' } } });
    const { status } = await ended();
    t.equal(status.bootstrap?.state, 'Failed');
    t.match(status.message, /shows the host key SHA256:\S+ \(ssh-ed25519\), which is not the one/);
    t.notMatch(host.log(), /Accepted|Failed publickey/, 'no key was offered');
    t.strictSame(host.changes(), untouched);
  });

  const jumpHost = await openSshd(t);
  await t.test('by way of a jump host, whose key is checked before the host hears anything', async (t) => {
    const jumpKey = readFileSync(jumpHost.keyFile, 'utf8');
    const jump = { host: '127.0.0.1', port: jumpHost.port, user: 'deploy', hostKey: host.hostKey, privateKey: jumpKey };
    t.match(await code(begin({ jump: { ...jump, hostKey: 'x' } })), {
      status: 422,
      errors: [{ path: 'jump.hostKey' }],
    });
    const heard = host.log();
    await begin({ jump });
    t.match((await ended()).status.message, /shows the host key SHA256:\S+ \(ssh-ed25519\), which is not the one/);
    await begin({ jump: { ...jump, hostKey: jumpHost.hostKey, privateKey } });
    t.match((await ended()).status.message, /deploy@127.0.0.1:\d+ lets none of the keys in/);
    t.equal(host.log(), heard, 'the host was not spoken to');
    const free = await freePort();
    await begin({ port: free, jump: { ...jump, hostKey: jumpHost.hostKey } });
    t.match((await ended()).status.message, /deploy@127.0.0.1:\d+ does not get through to 127.0.0.1:\d+: .*refused/i);
    t.match(jumpHost.log(), /Accepted publickey for deploy/);
    t.strictSame(host.changes(), untouched);
  });

  await t.test('a key that is not let in, and a key that is none', async (t) => {
    const other = join(t.testdir({}), 'other');
    spawnSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', other]);
    await begin({ privateKey: readFileSync(other, 'utf8') });
    t.match((await ended()).status.message, /lets none of the keys in/);
    t.notMatch(host.log(), /Accepted/);
    await begin({ privateKey: 'no key' });
    t.match((await ended()).status.message, /the private key cannot be used/);
  });

  await t.test('a master that the host cannot reach: undone to the last file', async (t) => {
    await begin({ master: '127.0.0.1:9', waitSeconds: 2 });
    const { status } = await ended();
    t.match(status, { state: 'NOT INSTALLED', bootstrap: { state: 'Failed' } });
    t.match(status.message, /has not seen the agent for 2 s .*can the host dial 127.0.0.1:9/s);
    t.match(status.message, /nothing of it is left on the host/);
    t.strictSame(
      status.bootstrap?.steps.map(({ step, state }) => `${step} ${state}`),
      [
        ...['Connect', 'Look', 'Install', 'Configure', 'Join', 'Start'].map((step) => `${step} Completed`),
        'SeeConnected Failed',
        'Undo Completed',
      ],
    );
    t.strictSame(host.changes(), untouched);
    t.equal(host.sh('pgrep -fc "[a]gent/start.ts" || true').trim(), '0', 'no process');
  });

  await t.test('the line breaks while the package is copied: undone over a new one', async (t) => {
    const proxy = await startProxy(`127.0.0.1:${host.port}`);
    t.teardown(() => proxy.close());
    await begin({ port: Number(proxy.address.split(':')[1]) });
    await world.until('the package is under way', async () => proxy.sentBytes > 1 << 20, 60);
    proxy.cut(false);
    const { status } = await ended();
    t.equal(status.bootstrap?.state, 'Failed');
    t.match(status.message, /nothing of it is left on the host/);
    t.strictSame(host.changes(), untouched);
  });

  await t.test('installed, joined, connected; again nothing is installed; revoked it is gone', async (t) => {
    const { hostKey } = request;
    const printed = spawnSync('ssh-keygen', ['-lf', '-'], { input: hostKey, encoding: 'utf8' }).stdout;
    await begin({ hostKey: printed.split(' ')[1], allow: ['/srv', '/dev/vdz'] });
    t.match(await code(begin()), { status: 409, code: 'WrongState' }, 'one at a time');
    const { status } = await ended();
    t.match(status, { state: 'ACTIVE', bootstrap: { state: 'Completed' } }, JSON.stringify(status.bootstrap));
    t.match(host.sh('rpm -q cdmr_agent'), /^cdmr_agent-0/);
    t.equal(host.sh('cat /etc/cdmr_agent/allow | tail -n +2'), '/srv\n/dev/vdz\n');
    t.equal(
      host.sh('ls /etc/cdmr_agent /var/tmp | grep -c "token\\|cdmr[.]" || true').trim(),
      '0',
      'token, folder gone',
    );
    t.equal(host.sh('stat -c %a /etc/cdmr_agent/agent.conf').trim(), '640');

    await begin({ allow: ['/srv'] });
    const again = await ended();
    t.match(again.status, { state: 'ACTIVE', bootstrap: { state: 'Completed' } });
    t.match(again.status.bootstrap?.steps[2]?.message, /installed already/);
    t.equal(host.sh('cat /etc/cdmr_agent/allow | tail -n +2'), '/srv\n');

    await begin({ allow: ['/opt'], master: '127.0.0.1:9', waitSeconds: 1 });
    t.match((await ended()).status, { bootstrap: { state: 'Failed' } });
    t.equal(host.sh('cat /etc/cdmr_agent/allow | tail -n +2'), '/srv\n', 'the configuration before is back');
    await world.until('the agent of before runs again', async () => (await agent()).status.state === 'ACTIVE');

    const events = await world.events();
    for (const event of ['BootstrapStarted', 'BootstrapCompleted', 'BootstrapFailed'])
      t.ok(
        events.some(({ code }) => code === event),
        event,
      );
    const said = JSON.stringify(events) + world.master.logEnd() + readFileSync(join(world.dir, 'master.log'), 'utf8');
    t.notMatch(said, /PRIVATE KEY/, 'no key in events and logs');
    host.sh(
      'systemctl stop cdmr_agent_1; rpm --erase cdmr_agent 2>/dev/null; rm -rf /etc/cdmr_agent /var/lib/cdmr_agent',
    );
    await world.client.send('DELETE', '/agents/node-x');
  });

  await t.test('replctl does it from here, with known_hosts and the keys of an SSH agent', async (t) => {
    const { dir } = world;
    const knownHosts = join(dir, 'known_hosts');
    const known = [host, jumpHost].map(({ port, hostKey }) => `[127.0.0.1]:${port} ${hostKey}\n`);
    writeFileSync(knownHosts, known.join(''));
    spawnSync('ssh-keygen', ['-q', '-H', '-f', knownHosts]);
    t.match(readFileSync(knownHosts, 'utf8'), /^\|1\|/, 'names are hashed');
    const socket = join(dir, 'agent.sock');
    const keys = spawn('ssh-agent', ['-D', '-a', socket], { stdio: 'ignore' });
    t.teardown(() => keys.kill('SIGKILL'));
    await world.until('the SSH agent has the key', async () => {
      const env = { ...process.env, SSH_AUTH_SOCK: socket };
      return spawnSync('ssh-add', ['-q', host.keyFile, jumpHost.keyFile], { env }).status === 0;
    });
    const { grpc } = JSON.parse(readFileSync(join(world.masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
    async function replctl(...more: string[]): Promise<{ status: number | null; stdout: string; stderr: string }> {
      const argv = ['--data', world.masterDir, '--host', `127.0.0.1:${host.port}`, '--package', rpm, '--master', grpc];
      const child = spawn(join(root, 'master/replctl'), ['bootstrap', 'node-y', ...argv, ...more], {
        env: { ...process.env, SSH_AUTH_SOCK: socket },
      });
      const said = { stdout: '', stderr: '' };
      child.stdout.on('data', (data: Buffer) => (said.stdout += data.toString()));
      child.stderr.on('data', (data: Buffer) => (said.stderr += data.toString()));
      const [status] = (await once(child, 'close')) as [number | null];
      return { status, ...said };
    }
    const unknown = await replctl('--known-hosts', join(dir, 'none'));
    t.equal(unknown.status, 2);
    t.match(unknown.stderr, /The key of 127.0.0.1 is not in .*--host-key/s);
    if (host.hasSudo) {
      host.sh('chmod 0000 /etc/sudoers.d/deploy; mv /etc/sudoers.d/deploy /etc/deploy.away');
      const refused = await replctl('--known-hosts', knownHosts, '--user', 'deploy');
      t.equal(refused.status, 1);
      t.match(refused.stderr, /may not become root .*sudo without password/s);
      host.sh('mv /etc/deploy.away /etc/sudoers.d/deploy; chmod 0440 /etc/sudoers.d/deploy');
    }
    const done = await replctl(
      '--known-hosts',
      knownHosts,
      '--user',
      host.hasSudo ? 'deploy' : 'root',
      '--allow',
      '/srv',
      '--jump',
      `deploy@127.0.0.1:${jumpHost.port}`,
    );
    t.equal(done.status, 0, done.stderr);
    t.match(host.log(), /Accepted publickey for (deploy|root) from 127.0.0.1/);
    t.ok((jumpHost.log().match(/Accepted publickey for deploy/g) ?? []).length >= 2, 'by way of the jump host');
    t.match(host.log(), /Accepted publickey for/);
    t.match(done.stderr, /Install +copying the package: 100 %/);
    t.match(done.stdout, /agent\/node-y is installed and connected/);
    t.match(await world.client.get<Agent>('/agents/node-y'), { status: { state: 'ACTIVE' } });
  });
});
