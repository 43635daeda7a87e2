/**
 * What the quickstart is to mirror: says what PATH is, or why it cannot be taken and what to do. Looks only; writes
 * nothing and follows a link once, to what it names.
 */
import { accessSync, constants, realpathSync, statfsSync, statSync, type Stats } from 'node:fs';
import { basename, sep } from 'node:path';
import { UsageError } from '../../proto/cli.ts';
import { refusedBySystem } from '../../proto/allow.ts';
import { systemErrorCode } from '../../proto/errors.ts';
import type { VolumeMode } from '../../proto/wire.ts';

export interface Source {
  /** Real path: no links in it. */
  path: string;
  volumeMode: VolumeMode;
  /** For people: directory, raw image, block device. */
  what: string;
  /** Bytes that a copy of an image takes; null where only a walk or the device could tell. */
  storedBytes: number | null;
}

/** @throws UsageError that says the cure */
export function inspect(given: string, dataDirectory: string): Source {
  let path: string;
  let facts: Stats;
  try {
    path = realpathSync(given);
    facts = statSync(path);
  } catch (error) {
    throw refusal(given, error);
  }
  try {
    accessSync(path, facts.isDirectory() ? constants.R_OK | constants.X_OK : constants.R_OK);
  } catch (error) {
    throw refusal(given, error, facts.isBlockDevice());
  }
  if (!facts.isDirectory() && !facts.isBlockDevice() && !facts.isFile())
    throw new UsageError(
      `${given} is neither a directory, a raw image nor a block device.`,
      'Give one of these, or no PATH for a sample volume.',
    );
  const refused = refusedBySystem(path, facts.isBlockDevice());
  if (refused !== undefined)
    throw new UsageError(`${path} ${refused}.`, 'Agents never read these: give a folder of your own data.');
  if (facts.isDirectory()) {
    if (inside(dataDirectory, path))
      throw new UsageError(
        `${path} holds ${dataDirectory}, where the copy goes: it would copy itself.`,
        'Give a data directory elsewhere, such as --data /var/tmp/cdm-data.',
      );
    return { path, volumeMode: 'Filesystem', what: 'directory', storedBytes: null };
  }
  if (facts.isBlockDevice()) return { path, volumeMode: 'Block', what: 'block device', storedBytes: null };
  return { path, volumeMode: 'Block', what: 'raw image', storedBytes: facts.blocks * 512 };
}

function inside(path: string, directory: string): boolean {
  return path === directory || path.startsWith(directory === sep ? sep : directory + sep);
}

function refusal(path: string, error: unknown, isDevice = false): UsageError {
  const code = systemErrorCode(error);
  if (code === 'ENOENT' || code === 'ENOTDIR')
    return new UsageError(`${path} does not exist.`, 'Correct the path, or give none for a sample volume.');
  if (code === 'ELOOP') return new UsageError(`${path} is a link that goes in circles.`, 'Give what it is to name.');
  const cure = isDevice
    ? 'Block devices need root: run it with sudo.'
    : 'Run it as a user who may read it, or as root.';
  return new UsageError(`${path} cannot be read (${code ?? String(error)}).`, cure);
}

/** What to say when copy and drill may not fit; null when they do or it is not known. */
export function spaceWarning(source: Source, dataDirectory: string): string | null {
  if (source.storedBytes === null) return null;
  const { bavail, bsize } = statfsSync(dataDirectory);
  const freeMiB = Math.floor((bavail * bsize) / 2 ** 20);
  const neededMiB = Math.ceil((2 * source.storedBytes) / 2 ** 20);
  if (neededMiB <= freeMiB) return null;
  return `Copy and drill may take ${neededMiB} MiB, and ${dataDirectory} has ${freeMiB} MiB free. --data DIR puts them elsewhere.`;
}

/** A replication name made from a path: RFC 1123, at most 63. */
export function nameFor(path: string): string {
  const word = basename(path).toLowerCase().replaceAll(/[^a-z0-9]+/g, '-').slice(0, 50).replaceAll(/^-+|-+$/g, ''); // prettier-ignore
  return word === '' ? 'volume' : word;
}
