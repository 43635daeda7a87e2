/** Real control groups for tests: of each freezer that this machine has, taken down with the test. */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';

export interface FreezerRoot {
  name: 'v1' | 'v2';
  root: string;
}

/** Where groups that can be frozen may be made; none without root. */
export function freezerRoots(): FreezerRoot[] {
  if (process.getuid?.() !== 0) return [];
  const found: FreezerRoot[] = [];
  for (const line of readFileSync('/proc/self/mounts', 'utf8').split('\n')) {
    const [, root = '', type, options = ''] = line.split(' ');
    if (type === 'cgroup2') found.push({ name: 'v2', root });
    if (type === 'cgroup' && options.split(',').includes('freezer')) found.push({ name: 'v1', root });
  }
  return found.filter(({ name, root }) => {
    const folder = join(root, `cdmr-probe-${process.pid}`);
    try {
      mkdirSync(folder);
      const can = existsSync(join(folder, name === 'v2' ? 'cgroup.freeze' : 'freezer.state'));
      rmdirSync(folder);
      return can;
    } catch {
      return false;
    }
  });
}

let made = 0;

/** A new group, below others if `name` has slashes; what is in it at the end goes to the root group. */
export function group(t: Pick<Test, 'teardown'>, root: string, name = `cdmr-test-${process.pid}-${made++}`): string {
  const parts = name.split('/').map((_, index, all) => join(root, ...all.slice(0, index + 1)));
  const news = parts.filter((folder) => !existsSync(folder));
  for (const folder of news) mkdirSync(folder);
  t.teardown(() => {
    for (const folder of news.reverse()) {
      for (const pid of readFileSync(join(folder, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean))
        try {
          writeFileSync(join(root, 'cgroup.procs'), pid);
        } catch {
          // It has ended.
        }
      try {
        rmdirSync(folder);
      } catch {
        // Another test has a group in it.
      }
    }
  });
  return parts.at(-1) ?? root;
}
