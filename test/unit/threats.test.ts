import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';

const root = join(import.meta.dirname, '../..');
const read = (path: string): string => readFileSync(join(root, path), 'utf8');

for (const list of ['threats', 'recovery'])
  t.test(`each line of ${list}.md has its test`, async (t) => {
    const rows = read(`test/${list}.md`).matchAll(/^\|.*\| (\w+\/\S+\.test\.ts): (.+?) +\|$/gm);
    let count = 0;
    for (const [, file = '', title = ''] of rows) {
      count++;
      const path = `test/${file}`;
      t.ok(existsSync(join(root, path)) && read(path).includes(title), `${file}: ${title}`);
    }
    t.ok(count > 20, `${count} lines`);
  });

t.test('nothing that is kept here looks like a secret', async (t) => {
  const { stdout } = spawnSync('git', ['ls-files', '-z'], { cwd: root, encoding: 'utf8' });
  const files = stdout.split('\0').filter((file) => file !== '' && existsSync(join(root, file)));
  if (files.length === 0) {
    t.pass('no git here');
    return;
  }
  const secret =
    /-----BEGIN (?:RSA |EC |OPENSSH |ENCRYPTED )?PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bxox[abprs]-[0-9A-Za-z-]{20}|\bnpm_[A-Za-z0-9]{36}\b/;
  t.same(
    files.filter((file) => secret.test(read(file))),
    [],
  );
});

t.test('the list of parts has all that the program is made of, with versions and hashes', async (t) => {
  const argv = ['sbom', '--sbom-format=cyclonedx', '--package-lock-only'];
  const { status, stdout, stderr } = spawnSync('npm', argv, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 });
  t.equal(status, 0, stderr);
  const { components } = JSON.parse(stdout) as {
    components: { name: string; group?: string; version: string; hashes?: unknown[] }[];
  };
  const names = new Set(components.map(({ name, group }) => (group ? `${group}/${name}` : name)));
  const { dependencies, optionalDependencies = {} } = JSON.parse(read('package.json')) as {
    dependencies: Record<string, string>;
    optionalDependencies?: Record<string, string>;
  };
  for (const name of Object.keys({ ...dependencies, ...optionalDependencies })) t.ok(names.has(name), name);
  for (const { name, version, hashes } of components)
    t.ok(version !== '' && (hashes?.length ?? 0) > 0, `${name} ${version}`);
});
