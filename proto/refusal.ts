/**
 * Why a cut was refused, as a word: the label `reason` of `cuts_refused_total`. A closed list; a word that this side does not know
 * (of a newer agent) counts as `other`. What exactly happened is in the event CutRefused and in the condition Degraded.
 */
export const refusalReasons = [
  /** The volume has no way to a cut of the kind that is asked for: no filesystem to freeze, no reflinks, no pod to stop. */
  'unsupported',
  /** The filesystem, or the control group, could not be frozen: it refused, or somebody else had frozen it. */
  'freeze',
  /** A hook failed, hung or may not run. */
  'hook',
  /** More had changed than fits into memory, or than can be read within maxFreezeMs. */
  'large',
  /** Frozen for maxFreezeMs before all was read. */
  'late',
  /** Written to while it was read. */
  'busy',
  /** The capture could not prove that it knows of every write. */
  'capture',
  /** Another volume of the group made no cut. */
  'group',
  'other',
] as const;

export type RefusalReason = (typeof refusalReasons)[number];

export function refusalReason(word: string): RefusalReason {
  return refusalReasons.find((one) => one === word) ?? 'other';
}
