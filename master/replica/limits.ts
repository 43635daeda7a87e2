/** What a replica may take of memory and disk. */
export interface ReplicaLimits {
  /** The journal gives up its oldest points beyond this. */
  maxJournalBytes: number;
  /** Bytes since the last commit; a sender that goes on is refused. */
  maxEpochBytes: number;
  /** The journal is given back to the disk in pieces of about this. */
  segmentBytes: number;
}
export const defaultLimits: ReplicaLimits = {
  maxJournalBytes: 64 * 2 ** 30,
  maxEpochBytes: 512 << 20,
  segmentBytes: 64 << 20,
};
