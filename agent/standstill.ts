/**
 * What can be made to stand still: a mounted filesystem (FIFREEZE), or all processes of a control group (the freezer of
 * cgroup v2 or v1). Used by the guard alone, which owns when (agent/guard-main.ts).
 *
 * Guarantees: what somebody else has frozen is refused and never thawed by `thaw` of ours; neither the root filesystem nor a
 * group that we run in ourselves is frozen. A group that does not come to rest (a process that waits for a device cannot be
 * stopped) is left as soon as it is no longer wanted, for the caller to thaw.
 *
 * Source: Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
 */
import { promises as fs, constants } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { systemErrorCode } from '../proto/errors.ts';
import { fifreeze, fithaw, syncfs } from '../proto/libc.ts';

export interface Standstill {
  /** What may take long and holds nobody. @throws when it must not be frozen */
  prepare(): Promise<void>;
  /** Stands still when it returns, or perhaps not when it is no longer wanted. */
  freeze(isWanted: () => boolean): Promise<void>;
  /** False when it was not frozen any more, or not wholly. Errors but those that say so are worth another try. */
  thaw(): Promise<boolean>;
  close(): Promise<void>;
}

const groupPrefix = 'cgroup:';
/** So often a group is looked at while it comes to rest. */
const lookMs = 1;

/** The target that stands for the group with this folder; every other target is a mount point. */
export function groupTarget(folder: string): string {
  return `${groupPrefix}${folder}`;
}

export function isGroup(target: string): boolean {
  return target.startsWith(groupPrefix);
}

/** Whether it is the folder of a group that can be stopped. */
export function canStop(folder: string): Promise<boolean> {
  return freezerOf(folder).then(yes, no);
}

export async function openStandstill(target: string): Promise<Standstill> {
  if (isGroup(target)) return group(target.slice(groupPrefix.length));
  return filesystem(await fs.open(target, constants.O_RDONLY | constants.O_DIRECTORY), target);
}

function filesystem(file: fs.FileHandle, mountPoint: string): Standstill {
  return {
    async prepare() {
      // The last line of defence; the agent has refused it before.
      const [root, frozen] = await Promise.all([fs.stat('/'), file.stat()]);
      if (root.dev === frozen.dev) throw new Error(`${mountPoint} is the root filesystem`);
      await syncfs(file.fd); // writes go on meanwhile; the freeze has less left to flush
    },
    freeze: () => fifreeze(file.fd),
    async thaw() {
      try {
        await fithaw(file.fd);
        return true;
      } catch (error) {
        if (['EINVAL', 'ENOTSUP', 'ENOTTY', 'EPERM'].includes(systemErrorCode(error) ?? '')) return false;
        throw error;
      }
    },
    close: () => file.close(),
  };
}

/** One version's files: which is written, with what, and what they say. */
interface Freezer {
  control: string;
  frozen: string;
  thawed: string;
  /** Asked for here, whatever has come of it. */
  isAsked(): Promise<boolean>;
  /** Every process stands still, whoever asked for it. */
  isStill(): Promise<boolean>;
  /** Frozen here or above. */
  isAnybodys(): Promise<boolean>;
}

const v1Control = 'freezer.state';
/** PROC_PID_INIT_INO of include/linux/proc_ns.h: the namespace that shows every process of the node. */
const outermostPids = 0xeffffffc;

async function freezerOf(folder: string): Promise<Freezer> {
  const read = async (name: string): Promise<string> => (await fs.readFile(join(folder, name), 'utf8')).trim();
  const isThere = (name: string): Promise<boolean> => fs.access(join(folder, name)).then(yes, no);
  if (await isThere('cgroup.freeze')) {
    const isStill = async (): Promise<boolean> => /^frozen 1$/m.test(await read('cgroup.events'));
    const isAsked = async (): Promise<boolean> => (await read('cgroup.freeze')) === '1';
    const isAnybodys = async (): Promise<boolean> => (await isAsked()) || isStill();
    return { control: 'cgroup.freeze', frozen: '1', thawed: '0', isAsked, isStill, isAnybodys };
  }
  if (!(await isThere(v1Control))) throw new Error(`${folder} is no control group that can be frozen`);
  return {
    ...{ control: v1Control, frozen: 'FROZEN', thawed: 'THAWED' },
    isAsked: async () => (await read('freezer.self_freezing')) === '1',
    // FREEZING until the last process stands.
    isStill: async () => (await read('freezer.state')) === 'FROZEN',
    isAnybodys: async () => (await read('freezer.state')) !== 'THAWED',
  };
}

async function group(folder: string): Promise<Standstill> {
  const freezer = await freezerOf(folder);
  const set = (value: string): Promise<void> => fs.writeFile(join(folder, freezer.control), value);
  return {
    async prepare() {
      const processes = await processesOf(folder);
      for (const pid of [process.pid, process.ppid])
        if (processes.includes(pid)) throw new Error(`${folder} holds this program itself`);
      if (await freezer.isAnybodys())
        throw Object.assign(new Error(`EBUSY: ${folder} is frozen already`), { code: 'EBUSY' });
    },
    async freeze(isWanted) {
      await set(freezer.frozen);
      while (isWanted() && !(await freezer.isStill())) await delay(lookMs);
    },
    async thaw() {
      try {
        if (!(await freezer.isAsked())) return false;
        const wasStill = await freezer.isStill();
        await set(freezer.thawed);
        return wasStill;
      } catch (error) {
        // The group ended with its last process.
        if (['ENOENT', 'ENODEV'].includes(systemErrorCode(error) ?? '')) return false;
        throw error;
      }
    },
    close: async () => undefined,
  };
}

/** Of the group and all below it; those that this process's namespace does not show are 0 in v2, and left out in v1 (`mayHide`). */
export async function processesOf(folder: string): Promise<number[]> {
  const pids = (await fs.readFile(join(folder, 'cgroup.procs'), 'utf8').catch(() => '')).split('\n').filter(Boolean);
  const entries = await fs.readdir(folder, { withFileTypes: true }).catch(() => []);
  const below = entries.filter((one) => one.isDirectory()).map((one) => processesOf(join(folder, one.name)));
  return [...pids.map(Number), ...(await Promise.all(below)).flat()];
}

/** Whether the group may hold processes that `processesOf` does not tell of: one of v1, looked at from a container. */
export async function mayHide(folder: string): Promise<boolean> {
  const freezer = await freezerOf(folder);
  return freezer.control === v1Control && (await fs.readlink('/proc/self/ns/pid')) !== `pid:[${outermostPids}]`;
}

const yes = (): boolean => true;
const no = (): boolean => false;
