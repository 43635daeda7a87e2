/** Who writes a replica, and whether what it reads is what was mirrored so far. Pure. */
import { ReplicationError } from '../../proto/errors.ts';
import type { VolumeMode } from '../../proto/wire.ts';

export interface Writer {
  name: string;
  generation: string;
  sourceId: string;
  /** Of its source. */
  sizeBytes: number;
  /** Another source, or a smaller one, is meant. */
  force: boolean;
}

/** Where a replica stands, as a writer is told of it. */
export interface ReplicaHead {
  sequence: number;
  initialized: boolean;
  sizeBytes: number;
  digest: Buffer;
  sourceId: string;
  blank: boolean;
  unknown: number;
}

/** Who writes, as long as it is the present one. */
export interface ReplicaSession {
  readonly writer: string;
  readonly generation: string;
  readonly sourceId: string;
}

/** @throws SourceChanged, SourceShrunk */
export function checkSource(
  mode: VolumeMode,
  { sequence, sourceId, sizeBytes }: Pick<ReplicaHead, 'sequence' | 'sourceId' | 'sizeBytes'>,
  writer: Writer,
): void {
  if (sequence === 0 || writer.force) return;
  if (sourceId !== writer.sourceId) {
    throw new ReplicationError(
      'SourceChanged',
      'the source is another volume than the one mirrored so far (formatted, replaced or mounted elsewhere). ' +
        'Bring the old one back, or run resync with force to mirror this one',
    );
  }
  if (mode === 'Block' && writer.sizeBytes < sizeBytes) {
    throw new ReplicationError(
      'SourceShrunk',
      `the source has ${writer.sizeBytes} bytes, its replica ${sizeBytes}. Grow it again, or run resync with force to cut the replica`,
    );
  }
}
