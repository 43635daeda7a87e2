/**
 * A test file in a mount namespace of its own. Without one every namespace that another test makes meanwhile (a host, a container)
 * keeps a copy of this one's mounts: what is unmounted here stays in use there, and cannot be formatted or detached. What is
 * mounted goes with the processes, however they end.
 */
import { spawnSync } from 'node:child_process';

const mark = 'REPLICATOR_OWN_MOUNTS';

/** True: go on. Else the file has been run to its end in its namespace, and this process ends as that one did. */
export function inOwnMounts(file: string): boolean {
  if (process.env[mark] === file || process.getuid?.() !== 0) return true;
  const run = ['unshare', '--mount', '--propagation', 'private', process.execPath, ...process.execArgv, file];
  const { status, error } = spawnSync('setpriv', ['--pdeathsig', 'KILL', ...run], {
    stdio: 'inherit',
    env: { ...process.env, [mark]: file },
  });
  if (error) return true;
  process.exitCode = status ?? 1;
  return false;
}
