/**
 * Hints from inotify by way of @parcel/watcher, where the kernel has no fanotify for whole filesystems.
 *
 * The library drops a queue overflow without a word and tells of events when it comes to it. What cannot be told apart (an
 * error of the watcher, too many paths, a name that is not UTF-8) asks for a scan.
 */
import watcher from '@parcel/watcher';
import { messageOf } from '../../proto/errors.ts';
import type { Manifest } from '../manifest.ts';
import type { Hinted, Hints } from './hints.ts';
import type { Tree } from './tree.ts';

/** Paths kept between two looks; with more a scan is as cheap. */
const maxPaths = 4096;

/** @throws Error with why it cannot watch here */
export async function watchDirectories(tree: Tree, manifest: Manifest, whyNotBetter: string): Promise<Hints> {
  let failure: string | undefined;
  let isToldOf = false;
  let lost = 0;
  let paths: Set<string> | undefined = new Set();
  const lose = (): void => {
    if (paths) lost++;
    paths = undefined;
  };
  const subscription = await watcher.subscribe(
    tree.path,
    (error, events) => {
      if (error) {
        failure = `the watcher failed: ${messageOf(error)}`;
        lose();
      }
      for (const event of events ?? []) {
        if (paths && paths.size < maxPaths) paths.add(event.path);
        else lose();
      }
    },
    { backend: 'inotify' },
  );
  return {
    get method() {
      return failure === undefined ? 'inotify' : 'scan';
    },
    get reason() {
      return failure === undefined
        ? `inotify gives hints between scans${whyNotBetter}`
        : `scans only: ${failure}${whyNotBetter}`;
    },
    isPrompt: false,
    get lost() {
      return lost;
    },
    take(now) {
      if (failure !== undefined) {
        const doubt = isToldOf ? '' : failure;
        isToldOf = true;
        return { names: new Map(), doubt };
      }
      const taken = paths;
      paths = new Set();
      return taken ? resolve(now, manifest, taken) : { names: new Map(), doubt: 'too many hints' };
    },
    async close() {
      // It fails when a watched directory is gone; then there is nothing to take back.
      await subscription.unsubscribe().catch(() => undefined);
    },
  };
}

/** Hinted names by the directory they are in; what cannot be found that way asks for a scan. */
function resolve(tree: Tree, manifest: Manifest, paths: Set<string>): Hinted {
  const hinted: Hinted = { names: new Map(), doubt: '' };
  const prefix = `${tree.path === '/' ? '' : tree.path}/`;
  for (const path of paths) {
    if (!path.startsWith(prefix)) continue; // the root itself: looked at anyway
    let parent = 0;
    const names = path.slice(prefix.length).split('/');
    if (path.includes('\ufffd')) hinted.doubt = 'a hint that is not UTF-8';
    for (const [depth, text] of names.entries()) {
      const name = Buffer.from(text);
      const row = depth < names.length - 1 ? manifest.child(parent, name) : undefined;
      if (row) {
        parent = row.slot;
        continue;
      }
      // The name itself, or the highest directory above it that is not known yet: it is looked through.
      const siblings = hinted.names.get(parent) ?? [];
      if (!siblings.some((one) => one.equals(name))) siblings.push(name);
      hinted.names.set(parent, siblings);
      break;
    }
  }
  return hinted;
}
