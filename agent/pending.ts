/**
 * Pieces that are offered and not yet sent or turned down. What is read later of the same part must not overtake them: the
 * replica would end with what was read first.
 */
import { hashBytes } from '../proto/granule.ts';
import type { Run } from '../proto/wire.ts';
import type { ContentPiece, NodesPiece, Piece, ZeroPiece } from './source.ts';

interface Range {
  first: number;
  end: number;
}

export class Pending {
  /** By object: of trees there are many, each with little. */
  readonly #content = new Map<number, Set<ContentPiece>>();
  readonly #nodes = new Set<NodesPiece>();

  add(piece: ContentPiece | NodesPiece): void {
    if (piece.kind === 'nodes') return void this.#nodes.add(piece);
    const known = this.#content.get(piece.object);
    if (known) known.add(piece);
    else this.#content.set(piece.object, new Set([piece]));
  }

  delete(piece: ContentPiece | NodesPiece): void {
    if (piece.kind === 'nodes') return void this.#nodes.delete(piece);
    const known = this.#content.get(piece.object);
    known?.delete(piece);
    if (known?.size === 0) this.#content.delete(piece.object);
  }

  /** Whether one is about a part of it; of nodes that are sent unasked also whether there is content that they may name. */
  meets(piece: Piece): boolean {
    if (piece.kind === 'nodes')
      return (!piece.offer && this.#content.size > 0) || [...this.#nodes].some((one) => meet(slots(one), slots(piece)));
    const range = granules(piece);
    return [...(this.#content.get(piece.object) ?? [])].some((one) => meet(granules(one), range));
  }
}

/** Whether they are about a part of it. Nodes are in no runs. */
export function isAmong(runs: readonly Run[], piece: ContentPiece | NodesPiece): boolean {
  if (piece.kind === 'nodes') return false;
  const range = granules(piece);
  return runs.some(({ object, first, count }) => object === piece.object && meet({ first, end: first + count }, range));
}

function granules(piece: ContentPiece | ZeroPiece): Range {
  const count = piece.kind === 'zeros' ? piece.count : piece.hashes.length / hashBytes;
  return { first: piece.first, end: piece.first + count };
}

function meet(a: Range, b: Range): boolean {
  return a.first < b.end && b.first < a.end;
}

function slots({ nodes }: NodesPiece): Range {
  let [first, end] = [Infinity, 0];
  for (const { slot } of nodes) [first, end] = [Math.min(first, slot), Math.max(end, slot + 1)];
  return { first, end };
}
