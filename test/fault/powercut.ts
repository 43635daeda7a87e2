/**
 * What a power cut leaves of the operations of a trace (trace.ts). A write, an attribute, a size is durable once its file was synced after it; a
 * name once its directory was; everything after syncfs. What is not yet durable may be there or not, writes in any part of 512
 * bytes; a rename is one step. `ordered`: names, sizes and attributes go in their order, as journaling filesystems have it; else
 * each for itself, as long as nothing is there without what it rests on.
 */
import type { Dice } from '../sim/dice.ts';
import { materialize, Tree, type Change, type Operation } from './modeltree.ts';
import type { Event } from './trace.ts';

const sectorBytes = 512;

export type Loss = 'nothing' | 'all that may be' | 'ordered' | 'any';

/** What is there when the power goes after `upTo` events, made below `root`, which is empty. */
export async function leave(events: Event[], upTo: number, loss: Loss, dice: Dice, root: string): Promise<void> {
  const tree = new Tree();
  const operations = events.slice(0, upTo).map((event) => ('operation' in event ? event.operation : undefined));
  const isDurable = ({ durableAt }: Operation): boolean => durableAt < upTo;
  const lastDurable = operations.findLastIndex((one) => one && one.change.kind !== 'data' && isDurable(one));
  const metadataUpTo = Math.max(lastDurable + 1, dice.below(upTo + 1));
  const share = dice.pick([0.1, 0.5, 0.9, 1]);
  for (const [at, operation] of operations.entries()) {
    if (!operation) continue;
    const { change } = operation;
    if (loss !== 'nothing' && !isDurable(operation)) {
      if (loss === 'all that may be') continue;
      if (loss === 'ordered' && change.kind !== 'data') {
        if (at >= metadataUpTo) continue;
      } else if (!dice.chance(share)) continue;
      if (change.kind === 'data' && dice.chance(0.2)) {
        for (const part of torn(change, dice)) tree.apply(part, BigInt(at));
        continue;
      }
    }
    tree.apply(change, BigInt(at));
  }
  await materialize(tree.root, root);
}

function torn(change: Change & { kind: 'data' }, dice: Dice): Change[] {
  const parts: Change[] = [];
  const { bytes } = change;
  if (dice.chance(0.5)) return [{ ...change, bytes: bytes.subarray(0, dice.below(bytes.length)) }];
  for (let from = 0; from < bytes.length;) {
    const end = Math.min(bytes.length, from + sectorBytes - ((change.at + from) % sectorBytes));
    if (dice.chance(0.5)) parts.push({ ...change, at: change.at + from, bytes: bytes.subarray(from, end) });
    from = end;
  }
  return parts;
}
