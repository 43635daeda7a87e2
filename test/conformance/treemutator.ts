/** Does to a tree, from a seed, what users and programs do, and some more. Synchronous: nothing moves between operations. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { fallocatePunch, lremovexattr, lsetxattr, mknod, utimensat } from '../../proto/libc.ts';
import { accessAcl, exchange, writeMapped } from './treenative.ts';

/** mulberry32 */
export function seeded(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** Never through a link or into a fifo that has the name. */
const fresh = { flag: 'wx' };
const oddNames = ['\n', '\xff\xfe', ' ', '-rf', '.hidden', '\x01', 'ü', '%00', '\\'];

/** What an operation that was chosen blindly may run into. */
const expected = [
  ...['EEXIST', 'ENOTEMPTY', 'ENOENT', 'EINVAL', 'EISDIR', 'ENOTDIR', 'ENOTSUP', 'EPERM', 'EMLINK', 'ELOOP'],
  ...['ENAMETOOLONG', 'ENODATA', 'EACCES'],
];
const shrinking = [
  'remove',
  'remove',
  'removeTree',
  'truncate',
  'renameFile',
  'directoryToFile',
  'anotherType',
  'chmod',
];

export interface MutatorOptions {
  /** Beyond these it rather removes than makes; looked at now and then. Default none. */
  maxEntries?: number;
  maxBytes?: number;
}

export class TreeMutator {
  readonly #root: string;
  readonly #random: (below: number) => number;
  readonly #asRoot = process.getuid?.() === 0;
  readonly #options: MutatorOptions;
  #serial = 0;
  #isLarge = false;
  /** Operations that were done, by name. */
  readonly done = new Map<string, number>();

  constructor(root: string, seed: number, options: MutatorOptions = {}) {
    this.#root = root;
    this.#random = seeded(seed);
    this.#options = options;
  }

  /** That many operations; some of them find nothing to do. */
  async change(operations: number): Promise<void> {
    for (let at = 0; at < operations; at++) {
      if (this.#serial++ % 500 === 0) this.#measure();
      try {
        await this.#one();
      } catch (error) {
        if (!expected.includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
      }
    }
  }

  #measure(): void {
    const { maxEntries = Infinity, maxBytes = Infinity } = this.#options;
    if (maxEntries === Infinity && maxBytes === Infinity) return;
    let [entries, bytes] = [0, 0];
    const look = (path: string): void => {
      for (const { name, isDirectory } of this.#entries(path)) {
        entries++;
        if (isDirectory) look(`${path}/${name}`);
        else bytes += fs.lstatSync(this.#path(`${path}/${name}`)).blocks * 512;
      }
    };
    look('');
    this.#isLarge = entries > maxEntries || bytes > maxBytes;
  }

  #entries(path: string): { name: string; isDirectory: boolean; isFile: boolean }[] {
    return fs.readdirSync(this.#path(path), { withFileTypes: true, encoding: 'buffer' }).map((entry) => ({
      name: entry.name.toString('latin1'),
      isDirectory: entry.isDirectory(),
      isFile: entry.isFile(),
    }));
  }

  #path(path: string): Buffer {
    return Buffer.concat([Buffer.from(this.#root), Buffer.from(path, 'latin1')]);
  }

  #pick<T>(list: readonly T[]): T {
    const one = list[this.#random(list.length)];
    if (one === undefined) throw Object.assign(new Error('nothing to choose from'), { code: 'ENOENT' });
    return one;
  }

  /** By going down from the root, so that it costs the same in a large tree. */
  #directory(below = false): string {
    let path = '';
    while (this.#random(4) > 0 || (below && path === '')) {
      const directories = this.#entries(path).filter(({ isDirectory }) => isDirectory);
      if (directories.length === 0 && !(below && path === '')) break;
      path = `${path}/${this.#pick(directories).name}`;
    }
    return path;
  }

  #entry(kind: 'file' | 'other' | 'any'): string {
    for (let tries = 0; tries < 4; tries++) {
      const path = this.#directory();
      const found = this.#entries(path).filter(
        ({ isDirectory, isFile }) => !isDirectory && (kind === 'any' || isFile === (kind === 'file')),
      );
      if (found.length > 0) return `${path}/${this.#pick(found).name}`;
    }
    return this.#pick<string>([]);
  }

  /** A file, a directory, rarely something else. */
  #thing(): string {
    return this.#random(3) === 0 ? this.#directory() : this.#entry(this.#random(4) === 0 ? 'any' : 'file');
  }

  #newName(): string {
    const odd = this.#random(4) === 0 ? (oddNames[this.#random(oddNames.length)] ?? '') : '';
    const long = this.#random(20) === 0 ? 'x'.repeat(200) : '';
    return `${this.#directory()}/n${this.#random(16)}${odd}${long}`;
  }

  #bytes(): Buffer {
    const length = this.#random(10) === 0 ? this.#random(700_000) : this.#random(3000);
    return Buffer.alloc(length, this.#random(7) === 0 ? 0 : `${this.#random(1e9)}`);
  }

  async #open(path: Buffer, work: (fd: number) => void | Promise<void>): Promise<void> {
    const fd = fs.openSync(path, 'r+');
    try {
      await work(fd);
    } finally {
      fs.closeSync(fd);
    }
  }

  readonly #operations: Record<string, () => void | Promise<void>> = {
    create: () => fs.writeFileSync(this.#path(this.#newName()), this.#bytes(), fresh),
    create2: () => fs.writeFileSync(this.#path(this.#newName()), this.#bytes(), fresh),
    mkdir: () => fs.mkdirSync(this.#path(this.#newName())),
    append: () => fs.appendFileSync(this.#path(this.#entry('file')), this.#bytes()),
    write: () =>
      this.#open(this.#path(this.#entry('file')), (fd) => {
        fs.writeSync(fd, this.#bytes(), 0, null, this.#random(fs.fstatSync(fd).size + 1));
      }),
    truncate: () => fs.truncateSync(this.#path(this.#entry('file')), this.#random(this.#isLarge ? 1000 : 400_000)),
    punch: () =>
      this.#open(this.#path(this.#entry('file')), (fd) =>
        fallocatePunch(fd, this.#random(100_000), 1 + this.#random(200_000)),
      ),
    mmap: () =>
      this.#open(this.#path(this.#entry('file')), (fd) => {
        const { size } = fs.fstatSync(fd);
        const offset = this.#random(size + 1);
        const bytes = this.#bytes().subarray(0, size - offset);
        if (bytes.length > 0) writeMapped(fd, offset, bytes);
      }),
    sameSizeEdit: async () => {
      const one = this.#path(this.#entry('file'));
      const { size, mtimeNs } = fs.lstatSync(one, { bigint: true });
      await this.#open(one, (fd) => {
        if (size > 0n) fs.writeSync(fd, Buffer.alloc(Number(size), `${this.#random(1e9)}`), 0, null, 0);
      });
      await utimensat(one, {
        seconds: Number(mtimeNs / 1_000_000_000n),
        nanoseconds: Number(mtimeNs % 1_000_000_000n),
      });
    },
    renameFile: () => fs.renameSync(this.#path(this.#entry('file')), this.#path(this.#newName())),
    replaceFile: () => fs.renameSync(this.#path(this.#entry('file')), this.#path(this.#entry('file'))),
    renameDirectory: () => fs.renameSync(this.#path(this.#directory(true)), this.#path(this.#newName())),
    exchange: () => {
      const [a, b] = [this.#thing(), this.#thing()];
      if (a !== '' && b !== '' && a !== b) exchange(this.#path(a), this.#path(b));
    },
    link: () => fs.linkSync(this.#path(this.#entry('any')), this.#path(this.#newName())),
    breakLink: () => {
      const one = this.#path(this.#entry('file'));
      const content = fs.readFileSync(one);
      fs.rmSync(one);
      fs.writeFileSync(one, content);
    },
    symlink: () => {
      const name = this.#newName();
      const targets = ['..', '.', name.slice(name.lastIndexOf('/') + 1), '\xfft\n', '/etc'];
      fs.symlinkSync(Buffer.from(this.#pick(targets), 'latin1'), this.#path(name));
    },
    chmod: () => {
      const one = this.#thing();
      if (fs.lstatSync(this.#path(one)).isSymbolicLink()) return;
      fs.chmodSync(this.#path(one), 0o700 + this.#random(0o100) + (this.#random(8) === 0 ? 0o6000 : 0));
    },
    chown: () => {
      if (this.#asRoot) fs.lchownSync(this.#path(this.#thing()), this.#random(5), this.#random(5));
    },
    utimes: () => utimensat(this.#path(this.#thing()), { seconds: this.#random(2e9), nanoseconds: this.#random(1e9) }),
    xattr: () => lsetxattr(this.#path(this.#thing()), `user.a${this.#random(3)}`, this.#bytes().subarray(0, 200)),
    removeXattr: () => lremovexattr(this.#path(this.#thing()), `user.a${this.#random(3)}`),
    setfacl: () =>
      lsetxattr(
        this.#path(this.#thing()),
        `system.posix_acl_${this.#random(4) === 0 ? 'default' : 'access'}`,
        accessAcl(this.#random(5), this.#random(8)),
      ),
    trusted: async () => {
      if (this.#asRoot) await lsetxattr(this.#path(this.#thing()), 'trusted.x', Buffer.from(`${this.#random(100)}`));
    },
    fifo: () => mknod(this.#path(this.#newName()), 0o010644),
    socket: () => mknod(this.#path(this.#newName()), 0o140600),
    device: async () => {
      if (this.#asRoot) await mknod(this.#path(this.#newName()), 0o020600, 1, 3);
    },
    remove: () => {
      if (this.#isLarge || this.#random(2) === 0) fs.rmSync(this.#path(this.#entry('any')));
    },
    removeTree: () => {
      if (this.#random(this.#isLarge ? 3 : 40) === 0) fs.rmSync(this.#path(this.#directory(true)), { recursive: true });
    },
    anotherType: () => {
      if (this.#random(3) > 0) return;
      const one = this.#path(this.#entry('any'));
      fs.rmSync(one);
      if (this.#random(2)) fs.mkdirSync(one);
      else fs.symlinkSync('/nowhere/at/all', one);
    },
    directoryToFile: () => {
      if (this.#random(this.#isLarge ? 6 : 60) > 0) return;
      const one = this.#path(this.#directory(true));
      fs.rmSync(one, { recursive: true });
      fs.writeFileSync(one, this.#bytes());
    },
  };
  readonly #names = Object.keys(this.#operations);

  async #one(): Promise<void> {
    const name = this.#pick(this.#isLarge && this.#random(2) === 0 ? shrinking : this.#names);
    await this.#operations[name]?.();
    this.done.set(name, (this.done.get(name) ?? 0) + 1);
  }
}

/** Writes through a mapping, as databases do; needs python3. */
export function mmapWrite(path: string, offset: number, text: string): void {
  const program =
    'import mmap,sys\nf=open(sys.argv[1],"r+b")\nm=mmap.mmap(f.fileno(),0)\no=int(sys.argv[2])\nb=sys.argv[3].encode()\nm[o:o+len(b)]=b\n';
  execFileSync('python3', ['-c', program, path, `${offset}`, text]);
}
