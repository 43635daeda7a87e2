/**
 * `rpm/build [--out DIR] [--arch x86_64|aarch64]`: makes cdmr_agent-<version>-<release>.<arch>.rpm of this working tree, with the runtime inside.
 *
 * Guarantees: holds what `agent/` and `proto/` import, found by reading their imports, and what those packages depend on, from
 * the node_modules that the lock file made; nothing else, so of the master only the code of replicas by which agents write folders. The same tree gives the same bytes: file times are
 * those of the newest commit (or SOURCE_DATE_EPOCH), the host's name is left out. For the machine's own architecture
 * nothing is fetched; for the other one npm installs its native parts, by the same lock file, into a temporary folder. Fails
 * with what is missing: rpmbuild, node_modules.
 *
 * The last line of standard output is the path of the package.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { programVersion } from '../proto/cli.ts';
import { partsList } from './sbom.ts';

const root = resolve(import.meta.dirname, '..');
const release = process.env['RPM_RELEASE'] ?? '1';
/** How the content is compressed; w3.xzdio is what rpm of RHEL 8 reads. Tests that build many take a faster one. */
const payload = process.env['RPM_PAYLOAD'] ?? 'w3.xzdio';
const { values } = parseArgs({ options: { out: { type: 'string' }, arch: { type: 'string' } } });
const out = resolve(values.out ?? join(root, 'rpm/out'));
const architectures = { x64: 'x86_64', arm64: 'aarch64' } as Record<string, string>;
const own = architectures[process.arch];
const arch = values.arch ?? own;
/** As npm names it. */
const cpu = Object.keys(architectures).find((name) => architectures[name] === arch);

/** Left out of packages: what no program reads. Licences stay. */
const unneeded =
  /\/\.[^/]+$|\.(d\.[cm]?ts|map|md|markdown|flow|cc|cpp|h|hh|gyp|tst|yml)$|\/(doc|docs|test|tests|bench|benchmarks?|examples?|include|share|node-addon-api|node-api-headers)$|\/musl_[a-z0-9]+$/;

function fail(message: string): never {
  process.stderr.write(`rpm/build: ${message}\n`);
  process.exit(1);
}

/** `@scope/name/deep` is a file of the package `@scope/name`. */
function packageOf(specifier: string): string {
  return specifier.split('/', specifier.startsWith('@') ? 2 : 1).join('/');
}

/** Packages, and files of this tree elsewhere, that agent/ and proto/ import, and those files in turn. */
function imported(): { packages: Set<string>; files: string[] } {
  const packages = new Set<string>();
  const files = globSync('{agent,proto}/**/*.ts', { cwd: root });
  for (const file of files) {
    const text = readFileSync(join(root, file), 'utf8');
    for (const [, from = ''] of text.matchAll(/(?:from |import\(|new URL\()'([^']+)'/g)) {
      const other = join(dirname(file), from);
      if (from.startsWith('.')) {
        if (!files.includes(other) && existsSync(join(root, other))) files.push(other);
      } else if (!from.startsWith('node:')) packages.add(packageOf(from));
    }
  }
  return { packages, files: files.filter((file) => !/^(agent|proto)\//.test(file)) };
}

interface Manifest {
  dependencies?: Record<string, string>;
  optionalDependencies?: Record<string, string>;
  peerDependencies?: Record<string, string>;
}

/** Folders, relative to the root, of the packages that are needed to run, found as Node finds them. */
function closure(names: Iterable<string>, tree: string): string[] {
  const found = new Set<string>();
  const visit = (name: string, from: string, optional: boolean): void => {
    for (let folder = from; ; folder = dirname(folder)) {
      const path = join(folder, 'node_modules', name);
      if (existsSync(join(path, 'package.json'))) {
        if (found.has(path)) return;
        found.add(path);
        const manifest = JSON.parse(readFileSync(join(path, 'package.json'), 'utf8')) as Manifest;
        const perhaps = { ...manifest.optionalDependencies, ...manifest.peerDependencies };
        for (const next of Object.keys(manifest.dependencies ?? {})) visit(next, path, next in perhaps);
        for (const next of Object.keys(perhaps)) visit(next, path, true);
        return;
      }
      if (folder === tree) break;
    }
    if (!optional) fail(`the package ${name} is not installed; run 'npm ci' in ${tree} first`);
  };
  for (const name of names) visit(name, tree, false);
  return [...found].map((path) => path.slice(tree.length + 1)).sort();
}

function stage(folder: string, tree: string): void {
  const copy = (from: string, to: string, base = root) =>
    cpSync(join(base, from), join(folder, to), {
      recursive: true,
      filter: (path) => basename(path) !== 'node_modules' && !unneeded.test(path),
    });
  for (const part of ['agent', 'proto', 'LICENSE', 'package.json']) copy(part, `app/${part}`);
  const { packages, files } = imported();
  for (const file of files) copy(file, `app/${file}`);
  const paths = closure(packages, tree);
  for (const path of paths) copy(path, `app/${path}`, tree);
  const runtime = `node-linux-${cpu}`;
  const kept = paths.filter((path) => existsSync(join(folder, 'app', path)));
  const parts = [...kept, `node_modules/${runtime}`];
  writeFileSync(join(folder, 'app/sbom.cdx.json'), partsList(tree, parts, programVersion(), Number(epoch)));
  mkdirSync(join(folder, 'app/node_modules/.bin'), { recursive: true });
  cpSync(join(tree, 'node_modules', runtime, 'bin/node'), join(folder, 'app/node_modules/.bin/node'), {
    dereference: true,
  });
  cpSync(join(tree, 'node_modules', runtime, 'LICENSE'), join(folder, 'app/node_modules/.bin/LICENSE.node'));
  const stripped = spawnSync(arch === own ? 'strip' : `${arch}-linux-gnu-strip`, [
    join(folder, 'app/node_modules/.bin/node'),
  ]);
  if (stripped.status !== 0)
    process.stderr.write(`rpm/build: no strip(1) for ${arch}: the package is some MiB larger\n`);
  for (const file of globSync('app/**', { cwd: folder, withFileTypes: true })) {
    const path = join(file.parentPath, file.name);
    const program = file.isDirectory() || /^(replicator-agent|node|.*\.node)$/.test(file.name);
    if (!file.isSymbolicLink()) chmodSync(path, program ? 0o755 : 0o644);
  }
  for (const file of ['agent.conf', 'allow', 'start', 'sysusers.conf', 'cdmr_agent.service', 'cdmr_agent.spec'])
    cpSync(join(root, 'rpm', file), join(folder, file));
}

/** node_modules of another architecture, by the lock file. */
function foreignModules(folder: string): string {
  for (const file of ['package.json', 'package-lock.json', '.npmrc']) cpSync(join(root, file), join(folder, file));
  const argv = ['ci', '--omit=dev', '--no-progress', '--loglevel=error', `--cpu=${cpu}`, '--os=linux', '--libc=glibc'];
  const { status } = spawnSync('npm', argv, { cwd: folder, stdio: ['ignore', 2, 2] });
  if (status !== 0) fail(`npm could not install the packages for ${arch}`);
  return folder;
}

if (cpu === undefined) fail(`there is no package for ${arch ?? process.arch}: x86_64 and aarch64 are supported`);
if (spawnSync('rpmbuild', ['--version']).status !== 0) fail('rpmbuild is not there: install rpm-build (Debian: rpm)');
const epoch =
  process.env['SOURCE_DATE_EPOCH'] ??
  execFileSync('git', ['log', '-1', '--format=%ct'], { cwd: root, encoding: 'utf8' }).trim();
const work = mkdtempSync(join(tmpdir(), 'cdmr-rpm-'));
try {
  const foreign = join(work, 'foreign');
  if (arch !== own) mkdirSync(foreign);
  stage(work, arch === own ? root : foreignModules(foreign));
  mkdirSync(out, { recursive: true });
  const defines = {
    _topdir: join(work, 'top'),
    _sourcedir: work,
    _rpmdir: out,
    _rpmfilename: '%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm',
    _buildhost: 'reproducible',
    use_source_date_epoch_as_buildtime: '1',
    clamp_mtime_to_source_date_epoch: '1',
    build_mtime_policy: 'clamp_to_source_date_epoch',
    agent_version: programVersion(),
    agent_release: release,
    agent_payload: payload,
  };
  execFileSync(
    'rpmbuild',
    [
      ...['-bb', '--quiet', '--target', `${arch}-linux`],
      ...Object.entries(defines).flatMap(([name, value]) => ['--define', `${name} ${value}`]),
      join(work, 'cdmr_agent.spec'),
    ],
    {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: { ...process.env, SOURCE_DATE_EPOCH: epoch, TZ: 'UTC', LC_ALL: 'C' },
    },
  );
} finally {
  rmSync(work, { recursive: true, force: true });
}
process.stdout.write(`${join(out, `cdmr_agent-${programVersion()}-${release}.${arch}.rpm`)}\n`);
