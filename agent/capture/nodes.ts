/**
 * The nodes of what was read, as pieces: names as they are now, together where they must be, gone slots last.
 *
 * Guarantees: the manifest is told first, so what is yielded counts as sent; no commit may come before the last piece of those
 * that count. A node whose directory the replica does not have is not sent (`vanished`): it moved on meanwhile.
 */
import { unknownHash } from '../../proto/granule.ts';
import { goneNode, nodeHash } from '../../proto/node.ts';
import { nodeTypes, type Node } from '../../proto/wire.ts';
import type { Manifest, Row, Signature } from '../manifest.ts';
import type { Piece } from '../source.ts';

/** Of one message. */
export const maxPieceNodes = 500;
const goneSignature: Signature = { sizeBytes: 0n, mtimeNs: 0n, ctimeNs: -1n };

/** How nodes are sent. */
export interface Sending {
  manifest: Manifest;
  /** Everything is offered, also what is believed to be there. */
  whole: boolean;
  /**
   * True while no commit may come between: directories that moved are only partly sent, or content is and its node is not,
   * where the replica has another node for it from the open epoch, or could lose what it was asked for and has. Large files
   * that it knows nothing newer of are cut anywhere.
   */
  indivisible(now: boolean): void;
}

/** What was read of one. */
export interface Outgoing {
  row: Row;
  node: Node;
  signature: Signature;
  root: Buffer | undefined;
  isTorn: boolean;
  namesOnly?: boolean;
  /** Its content went out piece by piece. */
  isLarge?: boolean;
}

/** What there was on the way. */
export interface Collected {
  /** Slots whose inode is not where it was. */
  vanished: Set<number>;
  /** Path of a file that did not stand still. */
  torn: string | undefined;
}

export interface Collection extends Collected {
  /** Names of what moved are only partly sent. */
  isMoving: boolean;
}

/** What the replica has of it is what was sent with its node. */
export function hasKnownContent({ root }: Row): boolean {
  return root !== undefined && !root.equals(unknownHash);
}

/** Its node went out, and no commit since. With other content than that node says there can be none. */
export function isInOpenEpoch(manifest: Manifest, row: Row): boolean {
  return row.hash !== undefined && row.epoch > manifest.acked;
}

export function isAcked(manifest: Manifest, row: Row): boolean {
  return row.hash !== undefined && row.epoch <= manifest.acked;
}

/**
 * What moved and is known by its old name is sent before what has that name now is committed: else the replica would take
 * what it holds for gone, all that is in a directory, and of a file the content that its node is about to rely on.
 */
export function vanish(manifest: Manifest, { vanished }: Collection, slot: number): void {
  vanished.add(slot);
  const row = manifest.row(slot);
  if (row?.dirty === 2 && (row.type === nodeTypes.directory || row.hash !== undefined)) manifest.unsettle(slot);
}

/** The manifest is told first: what is yielded counts as sent. */
export function* sendNodes(options: Sending, result: Collection, outgoing: Outgoing[]): Generator<Piece> {
  const { manifest, whole } = options;
  const sending: { node: Node; expectSame: boolean }[] = [];
  // Directories that the replica has, with what goes out here.
  const present = new Map(outgoing.map(({ row }) => [row.slot, true]));
  const isPresent = (slot: number): boolean => {
    let is = present.get(slot);
    if (is === undefined) present.set(slot, (is = manifest.row(slot)?.hash !== undefined));
    return is;
  };
  for (const { row, node, signature, root, isTorn, namesOnly } of outgoing) {
    node.names = manifest.names(row.slot);
    if (row.slot > 0 && node.names.length === 0) continue; // its name went to another one
    // Read by another name or a handle: this directory has moved on before it could be sent itself.
    if (!node.names.every(({ parent }) => isPresent(parent))) {
      vanish(manifest, result, row.slot);
      continue;
    }
    // One of its names was in a directory that went out after the first try.
    result.vanished.delete(row.slot);
    const hash = nodeHash(node);
    const isKnown =
      row.dirty === 1 && row.hash?.equals(hash) === true && (node.type !== nodeTypes.file || hasKnownContent(row));
    const sent = whole || !isKnown;
    if (sent)
      sending.push({
        node,
        expectSame: whole && isKnown && isAcked(manifest, row) && row.ctimeNs === signature.ctimeNs,
      });
    if (namesOnly) manifest.renamed(row.slot, hash);
    else manifest.written(row, { signature, root, hash, sent, dirty: isTorn });
  }
  // A name without what follows it is nothing to ask for.
  const isOffer = whole && !outgoing.some(({ namesOnly }) => namesOnly);
  const nodes = sending.map(({ node }) => node);
  const pieces: Piece[] = isOffer
    ? [...offered(manifest, sending)]
    : nodes.length > 0
      ? [{ kind: 'nodes', nodes, offer: false, expectSame: false }]
      : [];
  // All of them count as sent by now: no commit before the last one is.
  for (const piece of pieces.slice(0, -1)) {
    options.indivisible(true);
    yield piece;
  }
  options.indivisible(result.isMoving);
  yield* pieces.slice(-1);
}

/** Offers are for consecutive slots: those between that are free are offered as gone, others begin a new piece. */
function* offered(manifest: Manifest, sending: { node: Node; expectSame: boolean }[]): Generator<Piece> {
  let nodes: Node[] = [];
  let expected = false;
  for (const { node, expectSame } of sending.sort((a, b) => a.node.slot - b.node.slot)) {
    let next = (nodes.at(-1)?.slot ?? node.slot - 1) + 1;
    const fits = expectSame === expected && node.slot - next + nodes.length < maxPieceNodes;
    while (fits && next < node.slot && manifest.row(next) === undefined) nodes.push(goneNode(next++));
    if (nodes.length > 0 && (!fits || next !== node.slot)) {
      yield { kind: 'nodes', nodes, offer: true, expectSame: expected };
      nodes = [];
    }
    nodes.push(node);
    expected = expectSame;
  }
  if (nodes.length > 0) yield { kind: 'nodes', nodes, offer: true, expectSame: expected };
}

export function* gone(manifest: Manifest): Generator<Piece> {
  for (let after = -1; ;) {
    const rows = manifest.dirtyOf(nodeTypes.gone, 'all', after, maxPieceNodes);
    const last = rows.at(-1);
    if (!last) return;
    after = last.slot;
    const nodes = rows.map(({ slot }) => goneNode(slot));
    rows.forEach((row, index) =>
      manifest.written(row, {
        signature: goneSignature,
        root: undefined,
        hash: nodeHash(nodes[index] as Node),
        sent: true,
        dirty: false,
      }),
    );
    yield { kind: 'nodes', nodes, offer: false, expectSame: false };
  }
}
