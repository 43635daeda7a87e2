/** Does to a tree, from a seed, what users and programs do, and some more. Synchronous: nothing moves between operations. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { fallocatePunch, lsetxattr, mknod } from '../../proto/libc.ts';

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

export class TreeMutator {
  readonly #root: string;
  readonly #random: (below: number) => number;
  readonly #asRoot = process.getuid?.() === 0;
  #serial = 0;
  log: string[] = [];

  constructor(root: string, seed: number) {
    this.#root = root;
    this.#random = seeded(seed);
  }

  async change(operations: number): Promise<void> {
    for (let at = 0; at < operations; at++) {
      try {
        await this.#one();
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        // Choosing blindly: an operation that the tree does not allow right now.
        if (
          ![
            'EEXIST',
            'ENOTEMPTY',
            'ENOENT',
            'EINVAL',
            'EISDIR',
            'ENOTDIR',
            'ENOTSUP',
            'EPERM',
            'EMLINK',
            'ELOOP',
          ].includes(code ?? '')
        )
          throw error;
      }
    }
  }

  #all(): { directories: string[]; files: string[]; others: string[] } {
    const found = { directories: [''], files: [] as string[], others: [] as string[] };
    const look = (path: string): void => {
      for (const entry of fs.readdirSync(this.#path(path), { withFileTypes: true, encoding: 'buffer' })) {
        const child = `${path}/${entry.name.toString('latin1')}`;
        if (entry.isDirectory()) {
          found.directories.push(child);
          look(child);
        } else (entry.isFile() ? found.files : found.others).push(child);
      }
    };
    look('');
    return found;
  }

  #path(path: string): Buffer {
    return Buffer.concat([Buffer.from(this.#root), Buffer.from(path, 'latin1')]);
  }

  #pick(list: string[]): string {
    const one = list[this.#random(list.length)];
    if (one === undefined) throw Object.assign(new Error('nothing to choose from'), { code: 'ENOENT' });
    return one;
  }

  #newName(directories: string[]): string {
    const odd = this.#random(4) === 0 ? (oddNames[this.#random(oddNames.length)] ?? '') : '';
    const long = this.#random(20) === 0 ? 'x'.repeat(200) : '';
    return `${this.#pick(directories)}/n${++this.#serial % 40}${odd}${long}`;
  }

  #bytes(): Buffer {
    const length = this.#random(10) === 0 ? this.#random(700_000) : this.#random(3000);
    return Buffer.alloc(length, this.#random(7) === 0 ? 0 : `${this.#random(1e9)}`);
  }

  async #one(): Promise<void> {
    const { directories, files, others } = this.#all();
    const path = (of: string): Buffer => this.#path(of);
    const operations: Record<string, () => void | Promise<void>> = {
      create: () => fs.writeFileSync(path(this.#newName(directories)), this.#bytes(), fresh),
      create2: () => fs.writeFileSync(path(this.#newName(directories)), this.#bytes(), fresh),
      mkdir: () => fs.mkdirSync(path(this.#newName(directories))),
      append: () => fs.appendFileSync(path(this.#pick(files)), this.#bytes()),
      overwrite: () => {
        const fd = fs.openSync(path(this.#pick(files)), 'r+');
        const { size } = fs.fstatSync(fd);
        fs.writeSync(fd, this.#bytes(), 0, null, this.#random(size + 1));
        fs.closeSync(fd);
      },
      truncate: () => fs.truncateSync(path(this.#pick(files)), this.#random(400_000)),
      punch: async () => {
        const fd = fs.openSync(path(this.#pick(files)), 'r+');
        try {
          await fallocatePunch(fd, this.#random(100_000), 1 + this.#random(200_000));
        } finally {
          fs.closeSync(fd);
        }
      },
      renameFile: () => fs.renameSync(path(this.#pick(files)), path(this.#newName(directories))),
      replaceFile: () => fs.renameSync(path(this.#pick(files)), path(this.#pick(files))),
      renameDirectory: () => fs.renameSync(path(this.#pick(directories.slice(1))), path(this.#newName(directories))),
      exchange: () => {
        const [a, b] = [
          this.#pick([...files, ...directories.slice(1)]),
          this.#pick([...files, ...directories.slice(1)]),
        ];
        if (a === b || a.startsWith(`${b}/`) || b.startsWith(`${a}/`)) return;
        const aside = path('/aside');
        fs.renameSync(path(a), aside);
        fs.renameSync(path(b), path(a));
        fs.renameSync(aside, path(b));
      },
      link: () => fs.linkSync(path(this.#pick(files)), path(this.#newName(directories))),
      breakLink: () => {
        const one = path(this.#pick(files));
        const content = fs.readFileSync(one);
        fs.rmSync(one);
        fs.writeFileSync(one, content);
      },
      symlink: () =>
        fs.symlinkSync(this.#random(2) ? '..' : Buffer.from('\xfft\n', 'latin1'), path(this.#newName(directories))),
      chmod: () => fs.chmodSync(path(this.#pick([...files, ...directories])), 0o700 + this.#random(0o100)),
      chown: () => {
        if (this.#asRoot)
          fs.lchownSync(path(this.#pick([...files, ...directories, ...others])), this.#random(5), this.#random(5));
      },
      utimes: () => fs.utimesSync(path(this.#pick([...files, ...directories])), 1, this.#random(2e9) + 0.123456),
      sameSizeEdit: () => {
        const one = path(this.#pick(files));
        const { size, atimeMs, mtimeMs } = fs.statSync(one);
        if (size > 0) fs.writeFileSync(one, Buffer.alloc(size, `${this.#random(1e9)}`));
        fs.utimesSync(one, atimeMs / 1000, mtimeMs / 1000);
      },
      xattr: () =>
        lsetxattr(
          path(this.#pick([...files, ...directories])),
          `user.a${this.#random(3)}`,
          this.#bytes().subarray(0, 200),
        ),
      acl: () => {
        if (this.#asRoot)
          return lsetxattr(path(this.#pick(others.concat(files))), 'trusted.x', Buffer.from(`${this.#random(100)}`));
      },
      fifo: () => mknod(path(this.#newName(directories)), 0o010644),
      socket: () => mknod(path(this.#newName(directories)), 0o140600),
      device: async () => {
        if (this.#asRoot) await mknod(path(this.#newName(directories)), 0o020600, 1, 3);
      },
      remove: () => fs.rmSync(path(this.#pick([...files, ...others]))),
      removeTree: () => {
        if (this.#random(3) === 0) fs.rmSync(path(this.#pick(directories.slice(1))), { recursive: true });
      },
      anotherType: () => {
        const one = path(this.#pick([...files, ...others]));
        fs.rmSync(one);
        if (this.#random(2)) fs.mkdirSync(one);
        else fs.symlinkSync('/nowhere/at/all', one);
      },
      directoryToFile: () => {
        const one = path(this.#pick(directories.slice(1)));
        if (this.#random(3) > 0) return;
        fs.rmSync(one, { recursive: true });
        fs.writeFileSync(one, this.#bytes());
      },
    };
    const names = Object.keys(operations);
    const name = names[this.#random(names.length)] as string;
    this.log.push(name);
    await operations[name]?.();
  }
}

/** Writes through a mapping, as databases do; needs python3. */
export function mmapWrite(path: string, offset: number, text: string): void {
  const program =
    'import mmap,sys\nf=open(sys.argv[1],"r+b")\nm=mmap.mmap(f.fileno(),0)\no=int(sys.argv[2])\nb=sys.argv[3].encode()\nm[o:o+len(b)]=b\n';
  execFileSync('python3', ['-c', program, path, `${offset}`, text]);
}
