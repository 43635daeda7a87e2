/**
 * What strace saw a program do to its files, as operations on a modelled filesystem.
 *
 * Real: every call of the program, of SQLite and of libc, with its bytes. Modelled: what is durable when (powercut.ts).
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { isName, Tree, type Change, type Inode, type Kind, type Operation } from './modeltree.ts';

const calls =
  'openat,close,dup,dup2,dup3,fcntl,write,pwrite64,writev,pwritev,ftruncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,rmdir,' +
  'link,linkat,symlink,symlinkat,mkdir,mkdirat,mknod,mknodat,fsync,fdatasync,syncfs,chmod,fchmod,fchmodat,chown,lchown,' +
  'fchown,fchownat,utimensat,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,ioctl,copy_file_range,sendfile';
const umask = process.umask();

/** Runs it to its end; answers the lines of the trace. */
export function record(argv: string[], tracePath: string): string[] {
  const strace = ['-f', '--seccomp-bpf', '-qq', '-xx', '-s', '100000000', '-e', `trace=${calls}`, '-o', tracePath];
  const options = { encoding: 'utf8', env: { ...process.env, UV_USE_IO_URING: '0' }, maxBuffer: 1 << 30 } as const;
  const { status, stderr } = spawnSync('strace', [...strace, ...argv], options);
  if (status !== 0) throw new Error(`strace ended with ${status}: ${stderr}`);
  return fs.readFileSync(tracePath, 'latin1').split('\n');
}

/** An operation, or a line that the program wrote to standard output. */
export type Event = { operation: Operation } | { told: string } | { sync: string };

/** Reads a trace. Only what lies below `root` counts. */
export function parse(lines: string[], root: string): Event[] {
  const parser = new Parser(root);
  for (const line of lines) parser.line(line);
  return parser.events;
}

class Parser {
  readonly events: Event[] = [];
  readonly #root: string;
  readonly #tree = new Tree();
  readonly #descriptors = new Map<number, { inode: Inode; append: boolean; at: number }>();
  readonly #waiting = new Map<string, { text: string; start: number }>();
  #inodes = 1;

  constructor(root: string) {
    this.#root = root;
  }

  line(line: string): void {
    const [, pid = '', text = ''] = /^(\d+) +(.*)$/.exec(line) ?? [];
    if (text.endsWith('<unfinished ...>')) {
      this.#waiting.set(pid, { text: text.slice(0, -'<unfinished ...>'.length).trimEnd(), start: this.events.length });
      return;
    }
    const resumed = /^<\.\.\. \w+ resumed>(.*)$/.exec(text);
    const begun = resumed && this.#waiting.get(pid);
    if (begun) this.#waiting.delete(pid);
    this.#call(begun ? begun.text + (resumed[1] ?? '') : text, begun?.start ?? this.events.length);
  }

  #call(text: string, start: number): void {
    const [, name = '', all = '', answer = ''] = /^(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+)/.exec(text) ?? [];
    const result = Number(answer);
    if (name === '' || result < 0) return;
    const args = split(all);
    const fd = (at: number): Inode | undefined => this.#descriptors.get(Number(args[at]))?.inode;
    switch (name) {
      case 'openat':
        return this.#open(args, result);
      case 'close':
        this.#descriptors.delete(Number(args[0]));
        return;
      case 'dup':
      case 'dup2':
      case 'dup3':
      case 'fcntl': {
        const old = this.#descriptors.get(Number(args[0]));
        if (old && (name !== 'fcntl' || args[1]?.startsWith('F_DUPFD'))) this.#descriptors.set(result, old);
        return;
      }
      case 'write':
        if (args[0] === '1') {
          for (const told of unquote(args[1]).toString().trimEnd().split('\n')) this.events.push({ told });
          return;
        }
        return this.#write(Number(args[0]), unquote(args[1]).subarray(0, result), undefined, name);
      case 'writev':
        return this.#write(Number(args[0]), vector(args[1]).subarray(0, result), undefined, name);
      case 'pwrite64':
        return this.#write(Number(args[0]), unquote(args[1]).subarray(0, result), Number(args[3]), name);
      case 'pwritev':
        return this.#write(Number(args[0]), vector(args[1]).subarray(0, result), Number(args[3]), name);
      case 'ftruncate': {
        const inode = fd(0);
        if (inode) this.#change({ kind: 'size', inode: inode.id, size: Number(args[1]) }, name);
        return;
      }
      case 'fallocate': {
        const inode = fd(0);
        if (!inode) return;
        if (!args[1]?.includes('PUNCH_HOLE')) throw new Error(`not modelled: ${text}`);
        const at = Number(args[2]);
        const length = Math.min(Number(args[3]), inode.size - at);
        if (length > 0) this.#change({ kind: 'data', inode: inode.id, at, bytes: Buffer.alloc(length) }, name);
        return;
      }
      case 'copy_file_range': {
        const [from, to] = [fd(0), fd(2)];
        if (!from || !to || result === 0) return;
        const at = this.#offset(args[0], args[1], result);
        const bytes = Buffer.from(from.bytes.subarray(at, at + result));
        this.#change({ kind: 'data', inode: to.id, at: this.#offset(args[2], args[3], result), bytes }, name);
        return;
      }
      case 'sendfile':
        if (fd(0)) throw new Error(`not modelled: ${text}`);
        return;
      case 'ioctl': {
        if (!args[1]?.includes('FICLONE')) return;
        const [to, from] = [fd(0), fd(2)];
        if (!to || !from) return;
        this.#change({ kind: 'size', inode: to.id, size: 0 }, name);
        const bytes = Buffer.from(from.bytes.subarray(0, from.size));
        this.#change({ kind: 'data', inode: to.id, at: 0, bytes }, name);
        return;
      }
      case 'fsync':
      case 'fdatasync':
      case 'syncfs': {
        const inode = fd(0);
        if (inode) this.#sync(start, name === 'syncfs' ? undefined : inode);
        return;
      }
      case 'rename':
        return this.#rename(this.#path(args[0]), this.#path(args[1]), name);
      case 'renameat':
      case 'renameat2':
        if (args[4]?.includes('EXCHANGE')) throw new Error(`not modelled: ${text}`);
        return this.#rename(this.#path(args[1], args[0]), this.#path(args[3], args[2]), name);
      case 'unlink':
      case 'rmdir':
        return this.#remove(this.#path(args[0]), name);
      case 'unlinkat':
        return this.#remove(this.#path(args[1], args[0]), name);
      case 'link':
        return this.#link(this.#path(args[0]), this.#path(args[1]), name);
      case 'linkat':
        return this.#link(this.#path(args[1], args[0]), this.#path(args[3], args[2]), name);
      case 'symlink':
        return this.#make(this.#path(args[1]), { kind: 'other', mode: 0o120777, target: unquote(args[0]) }, name);
      case 'symlinkat': {
        const as = { kind: 'other', mode: 0o120777, target: unquote(args[0]) } as const;
        return this.#make(this.#path(args[2], args[1]), as, name);
      }
      case 'mkdir':
        return this.#make(this.#path(args[0]), { kind: 'directory', mode: 0o40000 | parseInt(args[1] ?? '', 8) }, name);
      case 'mkdirat': {
        const as = { kind: 'directory', mode: 0o40000 | parseInt(args[2] ?? '', 8) } as const;
        return this.#make(this.#path(args[1], args[0]), as, name);
      }
      case 'mknod':
        return this.#make(this.#path(args[0]), special(args[1], args[2]), name);
      case 'mknodat':
        return this.#make(this.#path(args[1], args[0]), special(args[2], args[3]), name);
      case 'chmod':
        return this.#mode(this.#at(this.#path(args[0]), true), args[1], name);
      case 'fchmod':
        return this.#mode(fd(0), args[1], name);
      case 'fchmodat':
        return this.#mode(this.#at(this.#path(args[1], args[0]), true), args[2], name);
      case 'chown':
      case 'lchown':
        return this.#owner(this.#at(this.#path(args[0])), args[1], args[2], name);
      case 'fchown':
        return this.#owner(fd(0), args[1], args[2], name);
      case 'fchownat':
        return this.#owner(this.#at(this.#path(args[1], args[0])), args[2], args[3], name);
      case 'utimensat': {
        const inode = args[1] === 'NULL' ? fd(0) : this.#at(this.#path(args[1], args[0]));
        const plain = (args[2] ?? '').replaceAll(/ \/\*.*?\*\//g, '');
        const times = /^\[(?:\{[^}]*\}|UTIME_OMIT), \{tv_sec=(-?\d+), tv_nsec=(\d+)\}/.exec(plain);
        if (!inode) return;
        if (!times) throw new Error(`not modelled: ${text}`);
        const mtimeNs = BigInt(times[1] ?? 0) * 1_000_000_000n + BigInt(times[2] ?? 0);
        this.#attribute(inode, (one) => (one.mtimeNs = mtimeNs), name);
        return;
      }
      case 'setxattr':
      case 'lsetxattr': {
        const [key, value] = [unquote(args[1]).toString('latin1'), unquote(args[2])];
        this.#attribute(this.#at(this.#path(args[0])), (one) => one.xattrs.set(key, value), name);
        return;
      }
      case 'removexattr':
      case 'lremovexattr': {
        const key = unquote(args[1]).toString('latin1');
        this.#attribute(this.#at(this.#path(args[0])), (one) => one.xattrs.delete(key), name);
        return;
      }
      default:
        throw new Error(`not modelled: ${text.slice(0, 200)}`);
    }
  }

  #change(change: Change, call: string): void {
    if (!this.#tree.apply(change, BigInt(this.events.length))) throw new Error(`${call}: the model lacks something`);
    this.events.push({ operation: { change, call, durableAt: Infinity } });
  }

  #attribute(inode: Inode | undefined, set: (inode: Inode) => void, call: string): void {
    if (inode) this.#change({ kind: 'attribute', inode: inode.id, set }, call);
  }

  #mode(inode: Inode | undefined, mode: string | undefined, call: string): void {
    const bits = parseInt(mode ?? '', 8);
    this.#attribute(inode, (one) => (one.mode = (one.mode & ~0o7777) | bits), call);
  }

  #owner(inode: Inode | undefined, uid: string | undefined, gid: string | undefined, call: string): void {
    this.#attribute(
      inode,
      (one) => {
        one.uid = Number(uid);
        one.gid = Number(gid);
        // As the kernel does.
        if (one.kind === 'file') one.mode &= ~0o6000;
      },
      call,
    );
  }

  #write(fd: number, bytes: Buffer, position: number | undefined, call: string): void {
    const open = this.#descriptors.get(fd);
    if (!open || bytes.length === 0) return;
    const at = position ?? (open.append ? open.inode.size : open.at);
    if (position === undefined) open.at = at + bytes.length;
    this.#change({ kind: 'data', inode: open.inode.id, at, bytes: Buffer.from(bytes) }, call);
  }

  /** As given, or where the descriptor stands, which then moves on. */
  #offset(fd: string | undefined, given: string | undefined, length: number): number {
    if (given?.startsWith('[') === true) return Number(/\d+/.exec(given)?.[0]);
    const open = this.#descriptors.get(Number(fd));
    if (!open) throw new Error('no such descriptor');
    open.at += length;
    return open.at - length;
  }

  #sync(start: number, inode: Inode | undefined): void {
    const now = this.events.length;
    for (let at = 0; at < start; at++) {
      const event = this.events[at];
      if (!event || !('operation' in event) || event.operation.durableAt < Infinity) continue;
      const { change } = event.operation;
      const touched = isName(change)
        ? [(change as { directory: number }).directory, change.kind === 'rename' ? change.to : -1]
        : [(change as { inode: number }).inode];
      if (!inode || touched.includes(inode.id)) event.operation.durableAt = now;
    }
    this.events.push({ sync: inode ? String(inode.id) : 'all' });
  }

  #open(args: string[], fd: number): void {
    const path = this.#path(args[1], args[0]);
    if (!path) return;
    let inode = this.#at(path, !(args[2] ?? '').includes('NOFOLLOW'));
    if (!inode && (args[2] ?? '').includes('O_CREAT')) {
      this.#make(path, { kind: 'file', mode: 0o100000 | (parseInt(args[3] ?? '', 8) & 0o7777) }, 'openat');
      inode = this.#at(path);
    }
    if (!inode) throw new Error(`openat of what the model does not have: ${path.directory.id} ${path.name}`);
    if ((args[2] ?? '').includes('O_TRUNC') && inode.size > 0)
      this.#change({ kind: 'size', inode: inode.id, size: 0 }, 'openat');
    this.#descriptors.set(fd, { inode, append: (args[2] ?? '').includes('O_APPEND'), at: 0 });
  }

  #make(path: Path | undefined, as: Partial<Inode> & { kind: Kind }, call: string): void {
    if (!path) return;
    if (as.mode !== undefined && as.target === undefined) as = { ...as, mode: as.mode & ~umask };
    this.#change({ kind: 'make', directory: path.directory.id, name: path.name, inode: this.#inodes++, as }, call);
  }

  #remove(path: Path | undefined, call: string): void {
    if (path) this.#change({ kind: 'remove', directory: path.directory.id, name: path.name }, call);
  }

  #link(from: Path | undefined, to: Path | undefined, call: string): void {
    const inode = this.#at(from);
    if (inode && to) this.#change({ kind: 'link', directory: to.directory.id, name: to.name, inode: inode.id }, call);
  }

  #rename(from: Path | undefined, to: Path | undefined, call: string): void {
    if (!from || !to) return;
    const change = { directory: from.directory.id, name: from.name, to: to.directory.id, toName: to.name };
    this.#change({ kind: 'rename', ...change }, call);
  }

  /** Directory and last name; undefined outside the root. */
  #path(quoted: string | undefined, base?: string): Path | undefined {
    const text = unquote(quoted).toString('latin1');
    let at: Inode | undefined;
    let rest: string[];
    const viaDescriptor = /^\/proc\/self\/fd\/(\d+)\/?(.*)$/s.exec(text);
    if (viaDescriptor) {
      at = this.#descriptors.get(Number(viaDescriptor[1]))?.inode;
      rest = (viaDescriptor[2] ?? '').split('/').filter((name) => name !== '');
      if (at && (rest.length === 0 || rest[0] === '.')) return { directory: at, name: '', itself: at };
    } else if (text.startsWith('/')) {
      if (text !== this.#root && !text.startsWith(`${this.#root}/`)) return undefined;
      at = this.#tree.root;
      rest = text
        .slice(this.#root.length)
        .split('/')
        .filter((name) => name !== '');
      if (rest.length === 0) return { directory: at, name: '', itself: at };
    } else {
      if (base === undefined || base.startsWith('AT_FDCWD')) return undefined;
      at = this.#descriptors.get(Number(base))?.inode;
      rest = text.split('/');
    }
    const name = rest.pop() ?? '';
    for (const part of rest) at = part === '.' ? at : at?.entries.get(part);
    return at && { directory: at, name };
  }

  #at(path: Path | undefined, _follow = false): Inode | undefined {
    return path && (path.itself ?? path.directory.entries.get(path.name));
  }
}

interface Path {
  directory: Inode;
  name: string;
  itself?: Inode;
}

/** Arguments at the outermost level. */
function split(text: string): string[] {
  const parts: string[] = [];
  let depth = 0;
  let quoted = false;
  let from = 0;
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (char === '"') {
      quoted = !quoted;
      // Long runs of hex are skipped at once.
      if (quoted) at = text.indexOf('"', at + 1) - 1;
    } else if (char === '[' || char === '{' || char === '(') depth++;
    else if (char === ']' || char === '}' || char === ')') depth--;
    else if (char === ',' && depth === 0) {
      parts.push(text.slice(from, at).trim());
      from = at + 1;
    }
  }
  parts.push(text.slice(from).trim());
  return parts;
}

/** strace -xx writes each byte as \xNN. */
function unquote(text: string | undefined): Buffer {
  const inner = /"([^"]*)"/.exec(text ?? '')?.[1] ?? '';
  return Buffer.from(inner.replaceAll('\\x', ''), 'hex');
}

function vector(text: string | undefined): Buffer {
  return Buffer.concat([...(text ?? '').matchAll(/iov_base=("[^"]*")/g)].map((match) => unquote(match[1])));
}

function special(mode: string | undefined, device: string | undefined): Partial<Inode> & { kind: Kind } {
  const types: Record<string, number> = { S_IFIFO: 0o10000, S_IFSOCK: 0o140000, S_IFCHR: 0o20000, S_IFBLK: 0o60000 };
  const [, type = '', bits = '0'] = /^(S_IF\w+)\|(\d+)$/.exec(mode ?? '') ?? [];
  const [, major = '0', minor = '0'] = /makedev\((\w+), (\w+)\)/.exec(device ?? '') ?? [];
  return { kind: 'other', mode: (types[type] ?? 0) | parseInt(bits, 8), device: [Number(major), Number(minor)] };
}
