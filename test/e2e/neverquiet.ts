/**
 * A pod that writes to its raw block volume without pause, laid out as the kubelet does it, and how a copy shows that no writer
 * ran when it was cut.
 */
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdirSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { group, type FreezerRoot } from '../cgroup.ts';

/** Where a pod's raw block volume is, below the kubelet's folder. */
export function layVolume(kubelet: string, uid: string, device: string): string {
  const links = join(kubelet, 'pods', uid, 'volumeDevices/kubernetes.io~csi');
  mkdirSync(links, { recursive: true });
  const path = join(links, 'pv-1');
  symlinkSync(device, path);
  return path;
}

/** The group of one of its containers, as the kubelet's drivers `cgroupfs` (v1) and `systemd` (v2) call it. */
export function groupName(version: FreezerRoot['name'], uid: string): string {
  return version === 'v1'
    ? `kubepods/burstable/pod${uid}/container`
    : `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod${uid.replaceAll('-', '_')}.slice/cri-1`;
}

export function pod(t: Test, { name, root }: FreezerRoot, kubelet: string, device: string) {
  const uid = randomUUID();
  t.teardown(() => rmSync(join(kubelet, 'pods', uid), { recursive: true, force: true }));
  return { path: layVolume(kubelet, uid, device), folder: group(t, root, groupName(name, uid)) };
}

/**
 * The first block of each pair is written, then the second, with the same number, and never a pause: at a moment at which the
 * writer stands, the two differ by one at most, and each pair is older than the one written before it.
 */
const pairs = 8;
export const writerScript = `
  const fs = require('node:fs');
  const fd = fs.openSync(process.argv[1], fs.constants.O_WRONLY | fs.constants.O_SYNC);
  const block = Buffer.alloc(4096);
  for (let number = 1; ; number++) {
    const at = (number % ${pairs}) * 2;
    block.fill(String(number).padStart(16, '0'));
    fs.writeSync(fd, block, 0, 4096, at * 4096);
    fs.writeSync(fd, block, 0, 4096, (at + 1 + 512) * 4096);
  }`;

/** Writes until the test ends or the answer is called. */
export function writer(t: Test, folder: string, device: string): () => void {
  const child = spawn('sh', ['-c', `echo $$ > ${folder}/cgroup.procs; exec ${process.execPath} -e "$0" ${device}`, writerScript]); // prettier-ignore
  t.teardown(() => void child.kill('SIGKILL'));
  return () => void child.kill('SIGKILL');
}

/** Undefined if the image is a moment between two writes of the writer. */
export function whyNoMoment(image: Buffer): string | undefined {
  const numberAt = (block: number): number => {
    const bytes = image.subarray(block * 4096, block * 4096 + 4096);
    const texts = new Set(bytes.toString('latin1').match(/.{16}/gs));
    return texts.size === 1 ? Number([...texts][0]) || 0 : NaN;
  };
  const firsts = Array.from({ length: pairs }, (_, pair) => numberAt(pair * 2));
  const seconds = Array.from({ length: pairs }, (_, pair) => numberAt(pair * 2 + 1 + 512));
  const newest = Math.max(...firsts);
  for (let pair = 0; pair < pairs; pair++) {
    const [first = NaN, second = NaN] = [firsts[pair], seconds[pair]];
    // The newest of each pair is the last number up to `newest` that belongs to it.
    const due = newest - ((((newest - pair) % pairs) + pairs) % pairs);
    if (first !== due || (second !== due && !(due === newest && second === due - pairs)))
      return `pair ${pair}: ${first} and ${second}, newest ${newest}`;
  }
  return undefined;
}
