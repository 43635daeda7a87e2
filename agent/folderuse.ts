/**
 * Who uses a folder of this node, as far as that can be known: processes with something in it open, mapped, or as their
 * directory, in whatever mount namespace; filesystems mounted in it; loop devices on a file in it; swap.
 *
 * Not known: clients of a server that gives it out, and other nodes where the filesystem is shared.
 */
import { promises as fs } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { isWithin, mountOf, parseMountinfo, readBlockDevices, readMounts, type Mount } from './mounts.ts';

/** What has just been let go is open for a moment more. */
const momentMs = 1000;
const lookAgainMs = 100;

/** Why the folder cannot be written now; undefined: nobody is seen in it. Looks only. */
export async function folderInUse(real: string): Promise<string | undefined> {
  const mounts = await readMounts();
  const inside = mounts.find(({ mountPoint }) => mountPoint !== real && isWithin(mountPoint, real));
  if (inside) return `${inside.mountPoint} is mounted in it; unmount that`;
  if (mountOf(real, mounts)?.readOnly === true) return `${real} is mounted read-only`;
  const loop = (await readBlockDevices()).find((one) => one.loop && isWithin(one.loop.backingFile, real));
  if (loop) return `${loop.path} lies on a file in it; detach that`;
  const swap = (await text('/proc/swaps')).split('\n').find((line) => isWithin(line, real));
  if (swap !== undefined) return `the node swaps to a file in it; swapoff that`;
  const startMs = performance.now();
  for (;;) {
    const who = await processIn(real, mounts);
    if (who === undefined || performance.now() - startMs > momentMs) return who;
    await delay(lookAgainMs);
  }
}

/** Where a path lies, whatever it is called in its mount namespace: the filesystem, and the path in that. */
function place(path: string, mounts: readonly Mount[]): { device: string; path: string } | undefined {
  const mount = mountOf(path, mounts);
  return mount && { device: mount.device, path: join(mount.root, path.slice(mount.mountPoint.length)) };
}

async function processIn(real: string, mounts: readonly Mount[]): Promise<string | undefined> {
  const folder = place(real, mounts);
  if (!folder) return undefined;
  /** By mount namespace; most processes share one. */
  const namespaces = new Map<string, readonly Mount[]>();
  for (const pid of await fs.readdir('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    const namespace = await fs.readlink(`/proc/${pid}/ns/mnt`).catch(() => '');
    let theirs = namespaces.get(namespace);
    if (!theirs) {
      theirs = parseMountinfo(await fs.readFile(`/proc/${pid}/mountinfo`).catch(() => Buffer.alloc(0)));
      // A process that ends just then has none.
      if (theirs.length > 0) namespaces.set(namespace, theirs);
    }
    for await (const path of pathsOf(pid)) {
      const there = place(path, theirs);
      if (there?.device !== folder.device || !isWithin(there.path, folder.path)) continue;
      const name = (await text(`/proc/${pid}/comm`)).trim();
      return `${real} is in use by process ${pid} (${name}): it has ${path}; end that first`;
    }
  }
  return undefined;
}

/** All that a process has open, mapped, or is in. What ends meanwhile has nothing. */
async function* pathsOf(pid: string): AsyncGenerator<string> {
  const folder = `/proc/${pid}`;
  const descriptors = (await fs.readdir(`${folder}/fd`).catch(() => [])).map((fd) => `fd/${fd}`);
  for (const link of ['cwd', 'root', 'exe', ...descriptors]) {
    const path = await fs.readlink(`${folder}/${link}`).catch(() => '');
    if (path.startsWith('/')) yield path;
  }
  let last = '';
  for (const [, path = ''] of (await text(`${folder}/maps`)).matchAll(/^(?:\S+ +){5}(\/.*)$/gm)) {
    if (path !== last) yield path;
    last = path;
  }
}

async function text(path: string): Promise<string> {
  return fs.readFile(path, 'utf8').catch(() => '');
}
