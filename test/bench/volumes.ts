/** What is copied: images and trees made from a seed, the same for both sides, and the changes to them. */
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { Dice } from '../sim/dice.ts';

const mib = 2 ** 20;
const granule = 65_536;
export const contents = ['mixed', 'random', 'text', 'zero'] as const;
export type Content = (typeof contents)[number];

export interface Volume {
  path: string;
  kind: 'image' | 'tree';
  sizeBytes: number;
  /** Of a tree. */
  files: number;
}

const words = [
  'commit',
  'select',
  'order',
  'invoice',
  'customer',
  'the',
  'of',
  'and',
  'warning',
  '2026-11-26',
  'row',
  '=',
  '{',
  '}',
];

function textOf(dice: Dice, length: number): Buffer {
  const parts: string[] = [];
  for (let at = 0; at < length;) {
    const word = `${words[dice.below(words.length)]} ${dice.below(1000)} `;
    parts.push(word);
    at += word.length;
  }
  return Buffer.from(parts.join('')).subarray(0, length);
}

/** Half noise, a quarter text, a quarter zeros when mixed; each MiB is another one. */
export function makeImage(path: string, sizeBytes: number, content: Content): Volume {
  const dice = new Dice(sizeBytes / granule + 1);
  const file = openSync(path, 'w');
  const page = textOf(dice, mib);
  for (let at = 0; at < sizeBytes; at += mib) {
    const length = Math.min(mib, sizeBytes - at);
    const kind = content === 'mixed' ? (['random', 'text', 'random', 'zero'] as const)[(at / mib) % 4] : content;
    if (kind === 'zero') continue;
    const piece = kind === 'text' ? Buffer.from(page) : dice.bytes(mib);
    for (let inside = 0; inside < length; inside += granule) piece.writeDoubleLE(at + inside, inside);
    writeSync(file, piece, 0, length, at);
  }
  closeSync(file);
  truncateSync(path, sizeBytes);
  return { path, kind: 'image', sizeBytes, files: 1 };
}

/** Files of 1 to 64 KiB, 100 in a directory. */
export function makeTree(path: string, sizeBytes: number): Volume {
  const dice = new Dice(sizeBytes / granule + 2);
  const piece = dice.bytes(mib);
  const files = Math.max(10, Math.round(sizeBytes / 33_000));
  for (let at = 0; at < files; at++) {
    if (at % 100 === 0) mkdirSync(join(path, `d${at / 100}`), { recursive: true });
    const from = dice.below(mib - granule);
    const content = Buffer.from(piece.subarray(from, from + 1024 + dice.below(granule - 1024)));
    content.writeUInt32LE(at);
    writeFileSync(fileOf(path, at), content);
  }
  return { path, kind: 'tree', sizeBytes, files };
}

function fileOf(path: string, at: number): string {
  return join(path, `d${Math.floor(at / 100)}`, `file${at}`);
}

/** `files` files of 1 byte to twice the mean, 100 in a directory, 100 directories in one. */
export function makeManyFiles(path: string, files: number, meanBytes: number): Volume {
  const dice = new Dice(files);
  const piece = dice.bytes(mib);
  let sizeBytes = 0;
  for (let at = 0; at < files; at++) {
    const file = manyFile(path, at);
    if (at % 100 === 0) mkdirSync(dirname(file), { recursive: true });
    const length = 1 + dice.below(2 * meanBytes);
    const from = dice.below(mib - length);
    writeFileSync(file, piece.subarray(from, from + length));
    sizeBytes += length;
  }
  return { path, kind: 'tree', sizeBytes, files };
}

export function manyFile(path: string, at: number): string {
  return join(path, `t${Math.floor(at / 10_000)}`, `d${Math.floor(at / 100)}`, `f${at}`);
}

/** A hundredth of it is other than before, durably; another hundredth for each `turn`. */
export function change(volume: Volume, turn: number): void {
  const dice = new Dice(turn + 1000);
  if (volume.kind === 'image') {
    const granules = Math.floor(volume.sizeBytes / granule);
    const file = openSync(volume.path, 'r+');
    for (let left = Math.max(1, Math.floor(granules / 100)); left > 0; left--)
      writeSync(file, dice.bytes(granule), 0, granule, dice.below(granules) * granule);
    fsyncSync(file);
    closeSync(file);
    return;
  }
  for (let left = Math.max(1, Math.floor(volume.files / 100)); left > 0; left--)
    writeFileSync(fileOf(volume.path, dice.below(volume.files)), dice.bytes(1024 + dice.below(granule)), {
      flush: true,
    });
}

/** One granule, or one file. */
export function touch(volume: Volume, turn: number): void {
  const dice = new Dice(turn + 5000);
  if (volume.kind === 'tree') {
    writeFileSync(fileOf(volume.path, dice.below(volume.files)), dice.bytes(2000), { flush: true });
    return;
  }
  const file = openSync(volume.path, 'r+');
  writeSync(file, dice.bytes(granule), 0, granule, dice.below(Math.floor(volume.sizeBytes / granule)) * granule);
  fsyncSync(file);
  closeSync(file);
}

/** Nothing but the time of the image: who goes by that must compare it. */
export function touchTime({ path }: Volume): void {
  const now = Date.now() / 1000;
  utimesSync(path, now, now);
}

/** All of the tree below another name. */
export function moveAll(volume: Volume, turn: number): void {
  const [from, to] = turn % 2 === 0 ? ['d0', 'moved'] : ['moved', 'd0'];
  renameSync(join(volume.path, from), join(volume.path, to));
}

export function remove(path: string): void {
  rmSync(path, { recursive: true, force: true });
}
