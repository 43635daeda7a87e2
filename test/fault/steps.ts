/**
 * The steps by which a program makes something durable or undoes it, as strace sees them, and a way to kill it at one of them.
 *
 * A step is named by its call and by what it is done to: `fdatasync volumes/*\/journal/#.log`. Where it happened, so that another run
 * of the same program can be killed there, is how many of that call its thread had made before.
 */
import fs from 'node:fs';

const calls =
  'write,pwrite64,writev,pwritev,ftruncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,' +
  'mkdir,mkdirat,mknod,mknodat,fsync,fdatasync,syncfs,fchmod,fchmodat,chmod,chown,fchown,lchown,fchownat,utimensat,setxattr,lsetxattr,' +
  'fsetxattr,removexattr,lremovexattr,copy_file_range,sendfile';

export interface Step {
  /** Call and place, without what differs from run to run. */
  name: string;
  call: string;
  /** 1 is the thread's first one of this call. */
  ordinal: number;
}

/** Put before a command, which stays the same process: all its steps go to `path`. */
export function recorder(path: string): string[] {
  return ['strace', ...tracing(path), '-e', `trace=${calls}`];
}

/** As `recorder`; the program is killed before it makes this step. */
export function killer(path: string, { call, ordinal }: Pick<Step, 'call' | 'ordinal'>): string[] {
  return [...recorder(path), '-e', `inject=${call}:signal=SIGKILL:when=${ordinal}`];
}

function tracing(path: string): string[] {
  // One thread in the pool, so that a step has the same number in each run.
  return ['-D', '-f', '--seccomp-bpf', '-qqq', '-y', '-s', '0', '-E', 'UV_THREADPOOL_SIZE=1', '-E', 'UV_USE_IO_URING=0', '-o', path]; // prettier-ignore
}

/** What was done below `root`, in order; the last one of a call may not have been done. */
export function stepsOf(path: string, root: string): Step[] {
  const made = new Map<string, number>();
  const steps: Step[] = [];
  for (const line of fs.readFileSync(path, 'latin1').split('\n')) {
    const [, thread = '', call = '', args = ''] = /^(\d+) +(\w+)\((.*)/.exec(line) ?? [];
    if (call === '') continue;
    const ordinal = (made.get(`${thread} ${call}`) ?? 0) + 1;
    made.set(`${thread} ${call}`, ordinal);
    const place = placeOf(call, args, root);
    if (place !== undefined) steps.push({ name: `${call} ${place}`, call, ordinal });
  }
  return steps;
}

/** A step at which the program was killed: its last line has no answer. */
export function killedAt(
  path: string,
  root: string,
  { call, ordinal }: Pick<Step, 'call' | 'ordinal'>,
): string | undefined {
  const found = stepsOf(path, root).findLast((step) => step.call === call && step.ordinal === ordinal);
  return found?.name;
}

/** Names are quoted, descriptors have theirs in angle brackets; of two (rename, link) the new name tells what becomes durable. */
function placeOf(call: string, args: string, root: string): string | undefined {
  // SQLite gives its files to the owner of the database, who owns them already.
  if (call === 'fchown') return undefined;
  const isNew = /^(rename|link|symlink)/.test(call);
  const names = [...args.matchAll(/"((?:[^"\\]|\\.)*)"|<((?:[^<>\\]|\\.)*)>/g)].map(
    ([, quoted, held]) => quoted ?? held ?? '',
  );
  const absolute = names.filter((name) => name.startsWith(`${root}/`) || name === root);
  const chosen = isNew ? absolute.at(-1) : absolute[0];
  if (chosen === undefined) return undefined;
  const relative = chosen.slice(root.length + 1).replace(/ \(deleted\)$/, '');
  // The shared memory of SQLite is made anew at each start; logs are for people.
  return /-shm$|\.log$/.test(relative) && !relative.includes('journal/') ? undefined : general(relative);
}

/** Without identifiers, numbers, and names that the source or a caller has given. */
function general(path: string): string {
  return path
    .replace(/(compile-cache|\/tree|tree\.staging|tree-drill[^/]*)\/.*/, '$1/**')
    .replace(/(recoveries\/)(disk|tree)-[^./]*/, '$1$2')
    .replace(/(snapshots\/\.?)(first|second)/, '$1*')
    .replace(/(\.reflink-)[^.]*/, '$1#')
    .replace(/(tree\.staging-)\w+/, '$1#')
    .replace(/(volumes\/)(disk|tree)-[0-9a-f-]{36}/, '$1$2')
    .replaceAll(/[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,}|\d{3,}/g, '#');
}
