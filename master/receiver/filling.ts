/**
 * Has a volume filled with a point of a replica, wherever the two are: what the one tells is handed on to the program that is beside the
 * other. What waits here is bounded by the two calls, as a slow side holds up the other.
 */
import { ReplicationError } from '../../proto/errors.ts';
import type { ReceiverClient } from '../../proto/rpc.ts';
import { protocolVersion, type MirrorReply, type VolumeMode } from '../../proto/wire.ts';
import type { HeldReplica } from '../held.ts';
import type { Copied } from '../replica/copies.ts';
import type { Point } from '../replica/horizon.ts';

export interface FillOptions {
  volumeMode: VolumeMode;
  /** What the volume needs. */
  sizeBytes: number;
  /** Reads every byte of the volume again and compares it. */
  verify: boolean;
  signal: AbortSignal;
  progress: (step: string, done: number, total: number) => void;
}

/** @throws ReplicaDamaged, PointGone, TargetFull, TargetRefused, Disconnected */
export async function fillFrom(
  client: Pick<ReceiverClient, 'fill'>,
  replica: Pick<HeldReplica, 'pour'>,
  point: Point,
  { volumeMode, sizeBytes, verify, signal, progress }: FillOptions,
): Promise<Copied> {
  const call = client.fill(signal);
  let number = 0;
  let bytes = 0;
  try {
    const hello = { replicationUid: '', fencingGeneration: '0', volumeMode, sizeBytes, sourceId: '', force: false };
    await call.send({ number: ++number, hello: { protocol: protocolVersion, ...hello } });
    progress('copying', 0, sizeBytes);
    const sink: Parameters<typeof replica.pour>[1] = async (part) => {
      await call.send({ number: ++number, ...part });
      if ('data' in part) progress('copying', (bytes += part.data.rawBytes), Math.max(sizeBytes, bytes));
    };
    await replica.pour(point, sink, signal);
    let readBytes = 0;
    if (verify) {
      await call.send({ number: ++number, verify: {} });
      const checked = await answer(call.receive, 'verifyReady', progress);
      readBytes = checked.readBytes;
      if (checked.badGranules > 0) {
        const text = `${checked.badGranules} pieces of the copy are not as they were mirrored`;
        throw new ReplicationError('ReplicaDamaged', `${text}; the volume does not keep what is written to it`);
      }
    }
    call.end();
    const { digest, withheld = 0 } = await answer(call.receive, 'committed', progress);
    if (!digest.equals(point.digest)) throw new ReplicationError('ReplicaDamaged', 'the copy is of another point');
    // Its end is the word that all of it is in place.
    for await (const _ of call.receive);
    return { verified: verify, readBytes, withheld };
  } catch (error) {
    call.cancel();
    throw error;
  }
}

async function answer<K extends 'verifyReady' | 'committed'>(
  replies: AsyncIterableIterator<MirrorReply>,
  kind: K,
  progress: FillOptions['progress'],
): Promise<NonNullable<MirrorReply[K]>> {
  for (;;) {
    const next = await replies.next();
    if (next.done === true) throw new ReplicationError('Disconnected', 'the program beside the volume ended the call');
    const { verifyProgress, [kind]: wanted } = next.value;
    if (wanted !== undefined) return wanted;
    if (verifyProgress) progress('verifying', verifyProgress.bytesDone, verifyProgress.bytesTotal);
  }
}
