import t from 'tap';
import type { Test } from 'tap';
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  globSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  statSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import { removeInstance } from '../../agent/capture/tracefs.ts';
import { traceInstance } from '../../agent/trackings.ts';
import { run } from '../loop.ts';
import { sameBytes } from './content.ts';
import { long } from './world.ts';
import { missingForSshd, openSshd } from './sshhost.ts';

const root = resolve(import.meta.dirname, '../..');
const skip = missingForSshd();

/** Unless asked for as shipped less pressed: it is made in a tenth of the time. */
function build(out: string, release: string, more: string[] = [], asShipped = false): string {
  const env = { ...process.env, RPM_RELEASE: release, ...(asShipped ? {} : { RPM_PAYLOAD: 'w1.gzdio' }) };
  const { status, stdout, stderr } = spawnSync(join(root, 'rpm/build'), ['--out', out, ...more], {
    encoding: 'utf8',
    env,
  });
  if (status !== 0) throw new Error(`rpm/build: ${stderr}`);
  return stdout.trim().split('\n').at(-1) ?? '';
}

/** What of the system a native part wants: libraries, and the newest version of each family of symbols. */
function wanted(path: string): { libraries: string[]; newest: Record<string, string> } {
  const text = run('readelf', '--wide', '--dynamic', '--version-info', path);
  const libraries = [...text.matchAll(/\(NEEDED\) +Shared library: \[(.+)\]/g)].map((match) => match[1] ?? '');
  const newest: Record<string, string> = {};
  for (const [, family = '', version = ''] of text.matchAll(/Name: ([A-Z]+)_(\d[\d.]*) /g))
    if (isNewer(version, newest[family] ?? '0')) newest[family] = version;
  return { libraries, newest };
}
function isNewer(a: string, b: string): boolean {
  return a.localeCompare(b, 'en', { numeric: true }) > 0;
}
/** What RHEL 8 has: glibc 2.28, GCC 8's libstdc++ and libgcc. */
const newestOfRhel8: Record<string, string> = {
  GLIBC: '2.28',
  GLIBCXX: '3.4.25',
  CXXABI: '1.3.11',
  GCC: '8.0',
  LIBATOMIC: '1.2',
};
/** Of its base packages: glibc, libstdc++, libgcc, libatomic. */
const librariesOfBase =
  /^(lib(c|m|dl|rt|pthread)\.so\.[0126]|libstdc\+\+\.so\.6|libgcc_s\.so\.1|libatomic\.so\.1|ld-linux-(x86-64|aarch64)\.so\.[12])$/;

const missingTools = ['cpio', 'readelf', 'rpm2cpio'].find((name) => spawnSync(name, ['--version']).error) ?? false;

function isElf(path: string): boolean {
  const head = Buffer.alloc(4);
  const file = openSync(path, 'r');
  readSync(file, head);
  closeSync(file);
  return head.toString('latin1') === '\x7fELF';
}

function wantsNoMoreThanRhel8(t: Test, rpm: string): void {
  const files = `${rpm}.files`;
  mkdirSync(files);
  t.equal(spawnSync('sh', ['-c', `rpm2cpio ${rpm} | cpio -idm --quiet`], { cwd: files }).status, 0);
  const elves = globSync('**', { cwd: files, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name))
    .concat(join(files, 'usr/lib/cdmr_agent/node_modules/.bin/node'))
    .filter(isElf);
  for (const part of ['/.bin/node', 'koffi', 'blake', 'lz4', 'watcher'])
    t.ok(
      elves.some((path) => path.includes(part)),
      `${part} is among them`,
    );
  for (const path of elves) {
    const { libraries, newest } = wanted(path);
    const where = path.slice(files.length);
    t.ok(libraries.length > 0, where);
    const others = libraries.filter((name) => !librariesOfBase.test(name));
    t.strictSame(others, [], `${where}: libraries of the base alone`);
    for (const [family, version] of Object.entries(newest))
      t.notOk(isNewer(version, newestOfRhel8[family] ?? '0'), `${where}: ${family}_${version}`);
  }
}

t.test(
  'the package: the same bytes each time, old libraries suffice, changed and erased cleanly',
  { skip },
  async (t) => {
    // Before the host, so that it is done after the host has gone.
    t.teardown(() => removeInstance(traceInstance('/var/lib/cdmr_agent')));
    const host = await openSshd(t);
    const dir = t.testdir({});
    const first = build(dir, '1');
    const kept = `${first}.kept`;
    renameSync(first, kept);
    build(dir, '1');
    t.ok(sameBytes(kept, first), 'two builds of one tree are the same bytes');
    const second = build(dir, '2');

    await t.test('native parts want no more than RHEL 8 has', { skip: missingTools }, async (t) => {
      wantsNoMoreThanRhel8(t, first);
    });
    await t.test(
      'nor do those for aarch64',
      { skip: long ? missingTools : 'long, and fetches packages: npm run e2e -- rpm' },
      async (t) => wantsNoMoreThanRhel8(t, build(join(dir, 'arm'), '1', ['--arch', 'aarch64'])),
    );

    await t.test('the sizes are those that README tells', async (t) => {
      const readme = readFileSync(join(root, 'README.md'), 'utf8').replaceAll('\n', ' ');
      const [, told, toldInstalled] = /the runtime inside \((\d+) MB, (\d+) MB installed/.exec(readme) ?? [];
      const installed = Number(run('rpm', '--query', '--package', '--queryformat', '%{SIZE}', first)) / 1e6;
      t.ok(Math.abs(installed / Number(toldInstalled) - 1) < 0.05, `${installed} MB installed, ${toldInstalled} told`);
      await t.test('of the file', { skip: !long && 'long: npm run e2e -- rpm' }, async (t) => {
        const size = statSync(build(join(dir, 'shipped'), '1', [], true)).size / 1e6;
        t.ok(Math.abs(size / Number(told) - 1) < 0.05, `${size} MB, ${told} told`);
      });
    });

    await t.test('scriptlets are POSIX sh', async (t) => {
      const said = run('rpm', '--query', '--package', '--scripts', first);
      const scripts = said.split(/^\w+ scriptlet \(using (\S+)\):\n/m).slice(1);
      t.equal(scripts.length, 6, 'after an installation, before and after an erase');
      for (let index = 0; index < scripts.length; index += 2) {
        t.equal(scripts[index], '/bin/sh');
        for (const shell of [
          ['dash', '-n'],
          ['bash', '--posix', '-n'],
        ]) {
          const { status, stderr } = spawnSync(shell[0] ?? '', shell.slice(1), {
            input: scripts[index + 1],
            encoding: 'utf8',
          });
          t.equal(status, 0, `${shell[0]}: ${stderr}`);
        }
        t.notMatch(scripts[index + 1], /\[\[|\bfunction\b|\blocal\b|\$'|<\(|&>/, 'nothing of bash');
      }
    });

    const untouched = host.changes();
    const config = '/etc/cdmr_agent/agent.conf';
    const pid = () => host.sh('cat /run/units/cdmr_agent_1.pid').trim();
    host.sh(`rpm --install ${first} 2>&1`);
    t.equal(host.sh('rpm -V cdmr_agent || true'), '', 'every file is as the package says');
    t.equal(host.sh('stat -c "%a %U" /etc/cdmr_agent /etc/cdmr_agent/allow | xargs').trim(), '750 root 640 root');
    t.match(host.sh('getent passwd cdmr_agent'), /:\/var\/lib\/cdmr_agent:\/usr\/sbin\/nologin$/m, 'a user of its own');
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

    await t.test('the list of parts names every package that is bundled, with its hash', async (t) => {
      const app = '/usr/lib/cdmr_agent';
      const { components } = JSON.parse(host.sh(`cat ${app}/sbom.cdx.json`)) as {
        components: { group?: string; name: string; version: string; hashes: { content: string }[] }[];
      };
      const listed = components.map(({ group, name, version }) => `${group ? `${group}/` : ''}${name} ${version}`);
      const named = String.raw`'\(.*/node_modules/\|./\)\(@[^/]*/\)?[^/@][^/]*/package.json'`;
      const found = host
        .sh(String.raw`cd ${app}/node_modules && find . -regex ${named} -exec cat {} \; -exec printf '\0' \;`)
        .split('\0')
        .filter((text) => text.trim() !== '')
        .map((text) => JSON.parse(text) as { name: string; version: string })
        .map(({ name, version }) => `${name} ${version}`);
      t.ok(found.length > 20, `${found.length} packages`);
      const runtime = /^node-linux-/;
      t.strictSame(listed.filter((one) => !runtime.test(one)).sort(), found.sort());
      t.equal(listed.filter((one) => runtime.test(one)).length, 1, 'and the runtime');
      for (const { name, hashes } of components) t.match(hashes[0]?.content, /^[0-9a-f]{128}$/, name);
    });

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
      const instances = ['/var/lib/cdmr_agent', dir].map(
        (data) => `/sys/kernel/tracing/instances/${traceInstance(data)}`,
      );
      t.teardown(() => removeInstance(traceInstance(dir)));
      for (const instance of instances) host.sh(`mkdir -p ${instance}`);
      host.sh('rpm --erase cdmr_agent 2>&1');
      t.strictSame(instances.map(existsSync), [false, true], "its tracing ends, and no other agent's");
      t.equal(host.sh('pgrep -fc "[a]gent/start.ts" || true').trim(), '0', 'no process');
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
