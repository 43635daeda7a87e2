/** What is measured. Sizes are of the volume. */
import type { Ours } from './ours.ts';
import type { Subject } from './subject.ts';
import { change, moveAll, touch, touchTime, type Content, type Volume } from './volumes.ts';

export interface Case {
  about: string;
  kind: Volume['kind'];
  /** The target has the volume before it begins. */
  isChange: boolean;
  /** Ours mirrors while it is timed, as it does where it is used; else it is paused between runs, so that each is about one change. */
  goesOn?: boolean;
  /** Both sides are a long line apart. */
  isFar?: boolean;
  /** Whatever is asked for. */
  content?: Content;
  /** Before each pair of runs: both sides then have the same to do. */
  prepare?: (volume: Volume, turn: number) => void;
  /** What is timed. */
  ours: (ours: Ours, volume: Volume) => Promise<void>;
  /** Undefined: no peer does it. */
  theirs?: (peer: Subject, volume: Volume) => Promise<void>;
}

const copies = {
  ours: (ours: Ours, volume: Volume) => ours.copy(volume),
  theirs: (peer: Subject, volume: Volume) => peer.copy(volume),
};

export const cases: Record<string, Case> = {
  'first-copy-image': { about: 'everything of an image', kind: 'image', isChange: false, ...copies },
  'change-image': {
    about: '1 % of an image, in pieces of 64 KiB',
    kind: 'image',
    isChange: true,
    prepare: change,
    ...copies,
  },
  'granule-image': { about: '64 KiB of an image', kind: 'image', isChange: true, prepare: touch, ...copies },
  wan: {
    about: 'everything of an image of noise, over a long line',
    kind: 'image',
    isChange: false,
    isFar: true,
    content: 'random',
    ...copies,
  },
  'wan-zeros': {
    about: 'everything of an image of zeros, over a long line',
    kind: 'image',
    isChange: false,
    isFar: true,
    content: 'zero',
    ...copies,
  },
  'wan-unchanged': {
    about: 'an image with a new time and nothing else new is compared again, over a long line',
    kind: 'image',
    isChange: true,
    isFar: true,
    content: 'random',
    prepare: touchTime,
    ...copies,
  },
  'first-copy-tree': { about: 'everything of a tree of small files', kind: 'tree', isChange: false, ...copies },
  'change-tree': { about: '1 % of the files of a tree', kind: 'tree', isChange: true, prepare: change, ...copies },
  'file-tree': { about: 'one file of a tree', kind: 'tree', isChange: true, prepare: touch, ...copies },
  'move-tree': { about: 'a directory of 100 files moves', kind: 'tree', isChange: true, prepare: moveAll, ...copies },
  restart: {
    about: 'the agent is killed and started, until the next point; a peer runs once more with nothing to do',
    kind: 'image',
    isChange: true,
    goesOn: true,
    ours: (ours, volume) => ours.restart(volume),
    theirs: copies.theirs,
  },
  verify: {
    about: 'both sides read whole and compared',
    kind: 'image',
    isChange: true,
    goesOn: true,
    ours: (ours, volume) => ours.verify(volume),
  },
  drill: {
    about: 'a copy made and read whole',
    kind: 'image',
    isChange: true,
    goesOn: true,
    ours: (ours, volume) => ours.drill(volume),
  },
};
