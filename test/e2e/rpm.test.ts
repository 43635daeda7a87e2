import t from 'tap';
import { spawnSync } from 'node:child_process';
import { globSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { removeInstance } from '../../agent/capture/tracefs.ts';
import { traceInstance } from '../../agent/trackings.ts';
import { sameBytes } from './content.ts';
import { missingForSshd, openSshd } from './sshhost.ts';

const root = resolve(import.meta.dirname, '../..');
const skip = missingForSshd();

/** Less pressed than what is shipped: it is made in a tenth of the time. */
function build(out: string, release: string): string {
  const env = { ...process.env, RPM_PAYLOAD: 'w1.gzdio', RPM_RELEASE: release };
  const { status, stdout, stderr } = spawnSync(join(root, 'rpm/build'), ['--out', out], { encoding: 'utf8', env });
  if (status !== 0) throw new Error(`rpm/build: ${stderr}`);
  return stdout.trim().split('\n').at(-1) ?? '';
}

/** Symbol versions that a native part wants, such as GLIBC_2.28, newest last. */
function wanted(path: string, library: string): number[] {
  const text = readFileSync(path).toString('latin1');
  return [...text.matchAll(new RegExp(`\\0${library}_(\\d+)\\.(\\d+)(?:\\.(\\d+))?\\0`, 'g'))]
    .map(([, major, minor, patch = '0']) => Number(major) * 1e6 + Number(minor) * 1e3 + Number(patch))
    .sort((a, b) => a - b);
}

t.test(
  'the package: the same bytes each time, old libraries suffice, changed and erased cleanly',
  { skip },
  async (t) => {
    const host = await openSshd(t);
    t.teardown(() => removeInstance(traceInstance('/var/lib/cdmr_agent')));
    const dir = t.testdir({});
    const first = build(dir, '1');
    const kept = `${first}.kept`;
    renameSync(first, kept);
    build(dir, '1');
    t.ok(sameBytes(kept, first), 'two builds of one tree are the same bytes');
    const second = build(dir, '2');

    const files = join(dir, 'files');
    mkdirSync(files);
    const unpacked = spawnSync('sh', ['-c', `rpm2cpio ${first} | cpio -idm --quiet`], { cwd: files });
    await t.test(
      'native parts want no more than RHEL 8 has (glibc 2.28, libstdc++ of GCC 8)',
      { skip: unpacked.status !== 0 && 'needs cpio' },
      async (t) => {
        const app = join(files, 'usr/lib/cdmr_agent');
        const native = [...globSync('**/*.node', { cwd: app }), 'node_modules/.bin/node'].map((name) =>
          join(app, name),
        );
        const elves = native.filter((path) => readFileSync(path).subarray(0, 4).toString('latin1') === '\x7fELF');
        t.ok(elves.length >= 4, `${elves.length} native parts`);
        for (const path of elves) {
          t.ok((wanted(path, 'GLIBC').at(-1) ?? 0) <= 2_028_000, `${path.slice(app.length)}: GLIBC`);
          t.ok((wanted(path, 'GLIBCXX').at(-1) ?? 0) <= 3_004_025, `${path.slice(app.length)}: GLIBCXX`);
          t.ok((wanted(path, 'CXXABI').at(-1) ?? 0) <= 1_003_011, `${path.slice(app.length)}: CXXABI`);
        }
        t.ok(wanted(join(app, 'node_modules/.bin/node'), 'GLIBC').length > 0, 'versions were found at all');
      },
    );

    const untouched = host.changes();
    const config = '/etc/cdmr_agent/agent.conf';
    const pid = () => host.sh('cat /run/units/cdmr_agent_1.pid').trim();
    host.sh(`rpm --install ${first} 2>&1`);
    t.equal(host.sh('rpm -V cdmr_agent || true'), '', 'every file is as the package says');
    t.equal(host.sh('stat -c "%a %U" /etc/cdmr_agent /etc/cdmr_agent/allow | xargs').trim(), '750 root 640 root');
    t.match(host.sh('replicator-agent --version'), /^replicator-agent \d/);
    t.match(
      host.sh('/usr/libexec/cdmr_agent/start 1 2>&1 || true'),
      /CDMR_MASTER is not set; write CDMR_MASTER=HOST:PORT/,
    );
    // Nobody answers there: it tries for ever.
    host.sh(`sed -i 's/^CDMR_MASTER=.*/CDMR_MASTER=127.0.0.1:9/' ${config}; echo /srv >>/etc/cdmr_agent/allow`);
    host.sh('echo token >/etc/cdmr_agent/join.token; cp /etc/hostname /etc/cdmr_agent/ca.pem');
    host.sh('systemctl enable --now cdmr_agent_1');
    const before = pid();

    await t.test('an upgrade keeps the configuration and restarts what runs; so does the way back', async (t) => {
      host.sh(`rpm --upgrade ${second} 2>&1`);
      t.match(host.sh('rpm -q cdmr_agent'), /-2\./);
      t.match(host.sh(`cat ${config}`), 'CDMR_MASTER=127.0.0.1:9');
      t.match(host.sh('tail -n 1 /etc/cdmr_agent/allow'), '/srv');
      t.equal(host.sh('ls /etc/cdmr_agent | grep -c rpm || true').trim(), '0', 'no .rpmnew, no .rpmsave');
      t.not(pid(), before, 'restarted');
      const between = pid();
      host.sh(`rpm --upgrade --oldpackage ${first} 2>&1`);
      t.match(host.sh('rpm -q cdmr_agent'), /-1\./);
      t.not(pid(), between, 'restarted');
      t.match(host.sh(`cat ${config}`), 'CDMR_MASTER=127.0.0.1:9');
    });

    await t.test('erased: stopped, nothing but the configuration that was written by hand is left', async (t) => {
      host.sh('rpm --erase cdmr_agent 2>&1');
      t.equal(host.sh('pgrep -fc "[a]gent/main.ts" || true').trim(), '0', 'no process');
      const left = host
        .changes()
        .filter((path) => !untouched.includes(path) && !path.startsWith('var/lib/cdmr_agent/'));
      t.strictSame(left, [
        'etc/cdmr_agent/agent.conf.rpmsave',
        'etc/cdmr_agent/allow.rpmsave',
        'etc/cdmr_agent/ca.pem',
        'etc/cdmr_agent/join.token',
      ]);
    });

    await t.test(
      'rpmlint is content',
      { skip: spawnSync('rpmlint', ['--version']).status !== 0 && 'needs rpmlint (pip install rpmlint)' },
      async (t) => {
        const linted = spawnSync('rpmlint', ['-c', join(root, 'rpm/rpmlint.toml'), first], { encoding: 'utf8' });
        t.match(linted.stdout, / 0 errors, 0 warnings/, linted.stdout);
      },
    );
  },
);
