/** What an old source was found to have, for people. */
import type { Fork, ForkFound, ForkPath } from './resources.ts';

/** So many ranges of a block volume are kept and told. */
export const maxRanges = 8;
/** Likewise paths of a tree. */
export const maxPaths = 8;
/** Of a path, from its end: what a file is called tells more than where it lies. */
const maxPathText = 300;

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
/** Control and format characters (also those that turn the direction of text), line ends; the backslash stands for them. */
const unsafe = /[\p{C}\p{Zl}\p{Zp}\\]/u;

export function differs({ granules, entries }: ForkFound): boolean {
  return (granules ?? 0) > 0 || (entries !== null && entries.changed + entries.new + entries.gone > 0);
}

/** Two comparisons that found as much are told once. */
export function figuresOf({ bytes, granules, entries }: ForkFound): string {
  return [bytes, granules, entries?.changed, entries?.new, entries?.gone].join('/');
}

/** What differs and what to do. */
export function forkText({ agent, path, sequence, found }: Fork): string {
  const what = found ? foundText(found) : 'nothing known yet';
  const [than, where] = found?.entries
    ? [`that differ from point ${sequence}`, (found.paths ?? []).map(pathLine).join(', ')]
    : [`that point ${sequence} has not, at`, rangesText(found)];
  const more = found && isCut(found) ? ', ...' : '';
  return `both sides were written: ${agent}:${path} has ${what} ${than}${found?.entries ? ':' : ''} ${where}${more}. Save what is needed of them; then resync with force gives them up, or a rollback of the failover keeps them and gives up the new side's`;
}

/** How much it is. */
export function foundText({ bytes, granules, entries }: ForkFound): string {
  if (!entries) return `${granules} granules (${bytes} bytes)`;
  const all = entries.changed + entries.new + entries.gone;
  return `${all} entries (${entries.changed} changed, ${entries.new} new, ${entries.gone} gone; ${bytes} bytes of content)`;
}

function rangesText(found: ForkFound | null): string {
  return (found?.ranges ?? []).map(({ offset, length }) => `${offset}+${length}`).join(', ');
}

function isCut({ ranges, entries, paths }: ForkFound): boolean {
  if (!entries) return ranges?.length === maxRanges;
  return entries.changed + entries.new + entries.gone > (paths?.length ?? 0);
}

function pathLine({ path, change, what, formerPath }: ForkPath): string {
  const words = change === 'changed' ? what.join(' ') : change;
  return `${path} (${words}${formerPath === null ? '' : `, was ${formerPath}`})`;
}

/** A path of any bytes as text that shows them and does nothing else: what is no printable text is `\xNN`. */
export function safePath(bytes: Buffer): string {
  let text = '';
  for (let at = 0; at < bytes.length;) {
    const character = bytes.subarray(at, at + lengthOf(bytes[at] ?? 0));
    const decoded = decode(character);
    const shown = decoded === undefined ? bytes.subarray(at, at + 1) : character;
    text += decoded === undefined || unsafe.test(decoded) ? escaped(shown) : decoded;
    at += shown.length;
  }
  const characters = [...text];
  return characters.length <= maxPathText ? text : `...${characters.slice(-maxPathText).join('')}`;
}

/** Of a character in UTF-8, by its first byte. */
function lengthOf(first: number): number {
  if (first < 0xc0) return 1;
  return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

function decode(bytes: Buffer): string | undefined {
  try {
    return decoder.decode(bytes);
  } catch {
    return undefined;
  }
}

function escaped(bytes: Buffer): string {
  return [...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('');
}
