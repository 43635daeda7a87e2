import type { Arena } from './blockarena.ts';

/**
 * What happens before a cut of the adversary's rounds, by capture. `scan`: whether everything has to be read after it: `no` = one would hide a miss, `must` =
 * nothing else could find what happened.
 */
const tricks = {
  nothing: { scan: 'no' },
  session: { scan: 'no' },
  stopped: { scan: 'no' },
  killed: { scan: 'may' },
  commitUnheard: { scan: 'no' },
  cutLeft: { scan: 'no' },
  forgotten: { scan: 'must' },
  grown: { scan: 'no' },
  direct: { scan: 'no' },
  buffered: { scan: 'no' },
  mapped: { scan: 'no' },
  discarded: { scan: 'no' },
  zeroed: { scan: 'no' },
  formatted: { scan: 'no' },
  besideIt: { scan: 'no' },
  aroundIt: { scan: 'may' },
  reattached: { scan: 'must' },
  remapped: { scan: 'must' },
  tracingOff: { scan: 'may' },
  tracingReset: { scan: 'must' },
  ringEmptied: { scan: 'may' },
  ringFull: { scan: 'may' },
  rebooted: { scan: 'must' },
  cloneGone: { scan: 'must' },
  snapshotGone: { scan: 'must' },
  deltaRefused: { scan: 'must' },
  callsBreak: { scan: 'no' },
} as const satisfies Record<string, { scan: 'no' | 'may' | 'must' }>;
export type Trick = keyof typeof tricks;

const common: Trick[] = ['nothing', 'nothing', 'session', 'stopped', 'killed', 'commitUnheard', 'cutLeft', 'forgotten', 'direct', 'buffered', 'mapped', 'discarded', 'zeroed', 'formatted']; // prettier-ignore
const tricksOf: Record<Arena['method'], Trick[]> = {
  ftrace: [...common, 'tracingOff', 'tracingReset', 'ringEmptied', 'ringFull', 'rebooted'],
  extents: [...common, 'rebooted', 'cloneGone'],
  'csi-cbt': [...common, 'rebooted', 'snapshotGone', 'deltaRefused', 'callsBreak'],
  scan: [...common, 'rebooted'],
};

/** With those that only some arenas can. */
export function tricksIn({ method, grow, reattach, remap, beside, around }: Arena): Trick[] {
  return [
    ...tricksOf[method],
    ...(grow ? (['grown'] as const) : []),
    ...(reattach ? (['reattached'] as const) : []),
    ...(remap ? (['remapped', 'remapped'] as const) : []),
    ...(beside ? (['besideIt'] as const) : []),
    ...(around ? (['aroundIt'] as const) : []),
  ];
}

/** Nothing of these is told to captures that see a volume by its views alone, so nothing has to be read. */
const onlyOfTracing: Trick[] = ['reattached', 'aroundIt', 'rebooted'];

export function scanAfter(trick: Trick, { method, uncountedDiscards }: Arena): 'no' | 'may' | 'must' {
  // Zeros may be written as a discard.
  if (uncountedDiscards && ['discarded', 'zeroed', 'formatted'].includes(trick)) return 'may';
  return method !== 'ftrace' && onlyOfTracing.includes(trick) ? 'no' : tricks[trick].scan;
}
