/** A tree in a temporary directory with a TreeSource over it, for tests. */
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { TreeSource, type TreeSourceOptions } from '../../agent/treesource.ts';
import { systemClock } from '../../proto/system.ts';
import { attach, sync, type Captured } from './capture.ts';
import { ModelReplica } from './modelreplica.ts';
import { differences, walkReplica, walkSource } from './treewalk.ts';

export interface Place extends Captured {
  root: string;
  open(options?: Partial<TreeSourceOptions>): TreeSource;
}

/** @param at an empty directory for the tree, which stays; default one of its own */
export function makePlace(at?: string, defaults: Partial<TreeSourceOptions> = {}): Place {
  const folder = fs.mkdtempSync(join(fs.realpathSync(tmpdir()), 'treesource-'));
  const root = at ?? join(folder, 'tree');
  if (at === undefined) fs.mkdirSync(root);
  let lives = 0;
  const dataDir = (): string => join(folder, `data${lives}`);
  return {
    mode: 'Filesystem',
    root,
    open: (options) =>
      new TreeSource({
        path: root,
        dataDir: dataDir(),
        clock: systemClock,
        agentUs: () => Math.floor(systemClock.nowMs() * 1000),
        include: [],
        exclude: [],
        consistency: null,
        maxFreezeMs: 500,
        cutIntervalSeconds: 60,
        readBytesPerSecond: 0,
        force: true,
        generation: '1',
        guard: undefined,
        protectedPaths: [],
        ...defaults,
        ...options,
      }),
    async crash(source) {
      // What is in the files now is what a killed process leaves; the next life begins with a copy of it.
      const left = dataDir();
      lives++;
      fs.cpSync(left, dataDir(), { recursive: true });
      await source.close();
    },
    forget() {
      fs.rmSync(dataDir(), { recursive: true, force: true });
    },
    async remove() {
      fs.rmSync(folder, { recursive: true, force: true });
    },
  };
}

export async function differing(root: string, replica: ModelReplica): Promise<string[]> {
  return differences(await walkSource(root), walkReplica(replica));
}

/** Why fanotify does not work here, or false. */
export async function missingForFanotify(): Promise<string | false> {
  const place = makePlace();
  const source = place.open();
  await attach(source, new ModelReplica('Filesystem'));
  const { captureMethod, captureReason } = source;
  await source.close();
  await place.remove();
  return captureMethod !== 'fanotify' && captureReason;
}

/** Filled, mirrored once, taken down with the test. */
export async function mirrored(t: Test, fill: (root: string) => void, options: Partial<TreeSourceOptions> = {}) {
  const place = makePlace();
  fill(place.root);
  const replica = new ModelReplica('Filesystem');
  const source = place.open(options);
  t.teardown(async () => {
    await source.close().catch(() => undefined);
    await place.remove();
  });
  await attach(source, replica);
  t.equal(await sync(source, replica), undefined);
  t.strictSame(await differing(place.root, replica), []);
  const again = async (): Promise<void> => {
    t.equal(await sync(source, replica), undefined);
    t.strictSame(await differing(place.root, replica), []);
  };
  return { root: place.root, replica, source, again, place };
}
