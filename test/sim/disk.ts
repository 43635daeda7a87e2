/**
 * A disk in memory that does what disks are allowed to do: what was not synced may be lost, torn or kept in any part when
 * the power goes; names that were not synced by their directory likewise, each on its own; writes fail when it is full,
 * and any call may fail with EIO. A failed sync loses data for good that reads go on to show, as Linux does.
 *
 * `mount` gives a Disk to one process; `crash` ends that process's access, with or without loss of power: each of its calls
 * that is under way or comes later throws, and writes under way may have happened in part.
 * Not modelled: order between metadata and data (stricter than real journalling filesystems: nothing is ordered but by sync).
 */
import { dirname, basename } from 'node:path';
import type { Disk, DiskFile } from '../../proto/effects.ts';
import type { SimClock } from './clock.ts';
import type { Dice } from './dice.ts';
import { SimDirectory, SimFile, pageBytes } from './diskfile.ts';

const sectorBytes = 512;

interface Mount {
  dead: boolean;
  underWay: Set<{ file: SimFile; position: number; data: Buffer }>;
}

export interface SimDiskOptions {
  clock: SimClock;
  dice: Dice;
  reflink: boolean;
  capacityBytes: number;
  /** Called for each call; may crash the process. */
  onCall?: () => void;
}

export class SimDisk {
  readonly #options: SimDiskOptions;
  readonly #dice: Dice;
  #root = new SimDirectory();
  #mount: Mount | undefined;
  /** Chance of EIO for each call. */
  eioChance = 0;
  /** Chance that a call takes time. */
  slowChance = 0.1;
  /** Writes beyond this fail. */
  fullBytes: number;
  readonly counts = { calls: 0, eio: 0, enospc: 0, lostWrites: 0, tornWrites: 0, lostNames: 0, lostSyncs: 0, flips: 0 };

  constructor(options: SimDiskOptions) {
    this.#options = options;
    this.#dice = options.dice;
    this.fullBytes = options.capacityBytes;
  }

  get usedBytes(): number {
    return this.#root.usedBytes;
  }

  /** Paths of all files. */
  paths(): string[] {
    return this.#files(this.#root, '').map(([path]) => path);
  }

  /** What is in the file, past all faults. */
  peek(path: string): Buffer {
    const file = this.#lookup(path);
    if (!(file instanceof SimFile)) throw fault('ENOENT', path);
    const whole = Buffer.alloc(file.size);
    file.read(whole, 0);
    return whole;
  }

  /** Removed by a user; nothing of the program is involved. */
  unlink(path: string): void {
    const parent = this.#parent(path);
    parent.delete(basename(path));
    parent.sync();
  }

  /** Rot: one byte becomes another one, without anybody writing. */
  flip(path: string, position: number): void {
    const file = this.#lookup(path);
    if (!(file instanceof SimFile)) throw fault('ENOENT', path);
    file.flip(position);
    this.counts.flips++;
  }

  /** The process that had the disk is gone. */
  crash(power: boolean): void {
    const mount = this.#mount;
    this.#mount = undefined;
    if (mount) {
      mount.dead = true;
      for (const { file, position, data } of mount.underWay) {
        if (this.#dice.chance(0.5)) file.write(data.subarray(0, this.#dice.below(data.length + 1)), position);
      }
      mount.underWay.clear();
    }
    if (power) this.#root.losePower(this.#dice, this.counts, sectorBytes);
  }

  mount(): Disk {
    const mount: Mount = { dead: false, underWay: new Set() };
    this.#mount = mount;
    const turn = (faulty = true): Promise<void> => this.#turn(mount, faulty);
    return {
      open: async (path, mode) => {
        await turn();
        const found = this.#lookup(path);
        if (found instanceof SimDirectory) throw fault('EISDIR', path);
        if (found) return this.#file(mount, found);
        if (mode === 'read') throw fault('ENOENT', path);
        const file = new SimFile();
        this.#parent(path).set(basename(path), file);
        return this.#file(mount, file);
      },
      mkdir: async (path) => {
        await turn();
        let directory = this.#root;
        for (const name of parts(path)) {
          let next = directory.get(name);
          if (next === undefined) directory.set(name, (next = new SimDirectory()));
          if (next instanceof SimFile) throw fault('ENOTDIR', path);
          directory = next;
        }
      },
      list: async (path) => {
        await turn();
        const found = this.#lookup(path);
        return found instanceof SimDirectory ? found.names().sort() : [];
      },
      size: async (path) => {
        await turn();
        const found = this.#lookup(path);
        return found instanceof SimFile ? found.size : undefined;
      },
      rename: async (from, to) => {
        await turn();
        const found = this.#lookup(from);
        if (!found) throw fault('ENOENT', from);
        this.#parent(from).rename(basename(from), this.#parent(to), basename(to), found);
      },
      remove: async (path) => {
        await turn();
        const found = this.#lookup(path);
        if (!found) return;
        if (found instanceof SimDirectory) found.removeAll();
        this.#parent(path).delete(basename(path));
      },
      syncDirectory: async (path) => {
        await turn();
        const found = this.#lookup(path);
        if (!(found instanceof SimDirectory)) throw fault('ENOENT', path);
        found.sync();
      },
      clone: async (from, to, signal, progress) => {
        signal?.throwIfAborted();
        await turn();
        const source = this.#lookup(from);
        if (!(source instanceof SimFile)) throw fault('ENOENT', from);
        if (this.#lookup(to)) throw fault('EEXIST', to);
        const file = new SimFile();
        const parent = this.#parent(to);
        parent.set(basename(to), file);
        try {
          return await this.#clone(source, file, () => turn(), signal, progress);
        } catch (error) {
          if (!mount.dead) parent.delete(basename(to));
          throw error;
        }
      },
      space: async () => {
        await turn();
        return { capacityBytes: this.fullBytes, freeBytes: Math.max(0, this.fullBytes - this.usedBytes) };
      },
    };
  }

  async #clone(
    source: SimFile,
    file: SimFile,
    turn: () => Promise<void>,
    signal: AbortSignal | undefined,
    progress: ((bytesDone: number) => void) | undefined,
  ): Promise<'reflink' | 'copy'> {
    if (!this.#options.reflink) {
      for (let at = 0; at < source.size; at += 1 << 20) {
        await turn();
        signal?.throwIfAborted();
        progress?.(Math.min(source.size, at + (1 << 20)));
      }
      if (this.usedBytes + source.usedBytes > this.fullBytes) {
        this.counts.enospc++;
        throw fault('ENOSPC', 'copy');
      }
    }
    file.copyFrom(source);
    progress?.(source.size);
    return this.#options.reflink ? 'reflink' : 'copy';
  }

  #file(mount: Mount, file: SimFile): DiskFile {
    const turn = (faulty = true): Promise<void> => this.#turn(mount, faulty);
    return {
      read: async (buffer, position) => {
        await turn();
        return file.read(buffer, position);
      },
      write: async (buffers, position) => {
        const data = Buffer.concat(buffers);
        if (data.length === 0) return;
        const doing = { file, position, data };
        mount.underWay.add(doing);
        try {
          await turn();
        } catch (error) {
          if (!mount.dead) file.write(data.subarray(0, this.#dice.below(data.length)), position);
          throw error;
        } finally {
          mount.underWay.delete(doing);
        }
        this.#mustFit(file, data, position);
        file.write(data, position);
      },
      zero: async (position, length) => {
        await turn();
        const end = Math.min(position + length, file.size);
        if (end > position) file.zero(position, end - position);
      },
      nextData: async (position) => {
        await turn();
        return file.nextData(position);
      },
      nextHole: async (position) => {
        await turn();
        return file.nextHole(position);
      },
      truncate: async (size) => {
        await turn();
        file.truncate(size);
      },
      size: async () => {
        await turn();
        return file.size;
      },
      sync: async () => {
        try {
          await turn();
        } catch (error) {
          if (!mount.dead) this.counts.lostSyncs += file.failSync(this.#dice);
          throw error;
        }
        file.sync();
      },
      close: async () => {
        // Of a process that is gone too: the kernel does it then.
      },
    };
  }

  #mustFit(file: SimFile, data: Buffer, position: number): void {
    const need = file.growthBytes(position, data.length);
    if (need === 0 || this.usedBytes + need <= this.fullBytes) return;
    this.counts.enospc++;
    file.write(data.subarray(0, Math.max(0, data.length - need)), position);
    throw fault('ENOSPC', 'write');
  }

  async #turn(mount: Mount, faulty: boolean): Promise<void> {
    if (mount.dead) throw fault('EIO', 'this process is gone');
    this.counts.calls++;
    this.#options.onCall?.();
    if (this.#dice.chance(this.slowChance)) await this.#options.clock.sleep(this.#dice.between(0, 4));
    else await Promise.resolve();
    if (mount.dead) throw fault('EIO', 'this process is gone');
    if (faulty && this.eioChance > 0 && this.#dice.chance(this.eioChance)) {
      this.counts.eio++;
      throw fault('EIO', 'the simulated disk fails');
    }
  }

  #lookup(path: string): SimFile | SimDirectory | undefined {
    let node: SimFile | SimDirectory | undefined = this.#root;
    for (const name of parts(path)) node = node instanceof SimDirectory ? node.get(name) : undefined;
    return node;
  }

  #parent(path: string): SimDirectory {
    const parent = this.#lookup(dirname(path));
    if (!(parent instanceof SimDirectory)) throw fault('ENOENT', path);
    return parent;
  }

  #files(directory: SimDirectory, path: string): [string, SimFile][] {
    return directory.names().flatMap((name): [string, SimFile][] => {
      const node = directory.get(name);
      if (node instanceof SimDirectory) return this.#files(node, `${path}/${name}`);
      return node ? [[`${path}/${name}`, node]] : [];
    });
  }
}

export { pageBytes };

function parts(path: string): string[] {
  return path.split('/').filter((name) => name !== '');
}

function fault(code: string, what: string): Error {
  return Object.assign(new Error(`${code}: ${what}`), { code });
}
