/**
 * A replica in memory that keeps the rules of proto/node.ts to the letter, and a strict taker of pieces: what the sender and
 * the real replica do with a Source's pieces, without anything between. Breaks of the rules throw.
 */
import assert from 'node:assert/strict';
import type { ContentPiece, NodesPiece, Piece } from '../../agent/source.ts';
import {
  contentRoot,
  granuleBytes,
  granuleCount,
  granuleHash,
  granuleLength,
  hash,
  hashBytes,
} from '../../proto/granule.ts';
import { nodeHash } from '../../proto/node.ts';
import { nodeTypes, type MirrorWelcome, type Name, type Node } from '../../proto/wire.ts';

type Granules = Map<number, Buffer>;

export class ModelReplica {
  readonly mode: 'Block' | 'Filesystem';
  sequence = 0;
  sizeBytes = 0;
  isPoint = false;
  nodes = new Map<number, Node>();
  content = new Map<number, Granules>();
  /** Bytes of content that crossed. */
  sentBytes = 0;
  sentNodes = 0;
  /** Wanted although the source believed it was here. */
  mismatched = 0;
  #stagedNodes = new Map<number, Node>();
  #stagedContent = new Map<number, Granules>();

  constructor(mode: 'Block' | 'Filesystem') {
    this.mode = mode;
  }

  welcome(): MirrorWelcome {
    return {
      protocol: 1,
      headSequence: this.sequence,
      initialized: this.isPoint,
      sizeBytes: this.sizeBytes,
      digest: this.digest(),
      sourceId: '',
      incomplete: false,
      blank: this.sequence === 0,
    };
  }

  digest(): Buffer {
    if (this.sequence === 0) return Buffer.alloc(0);
    if (this.mode === 'Block') return contentRoot(this.#hashes(0, this.sizeBytes));
    const slots = [...this.nodes.keys()].sort((a, b) => a - b);
    return hash(Buffer.alloc(1), ...slots.map((slot) => nodeHash(this.nodes.get(slot) as Node)));
  }

  async *manifest(): AsyncGenerator<Node> {
    for (const node of this.nodes.values()) yield structuredNode(node);
  }

  take(piece: Piece): void {
    if (piece.kind === 'nodes') this.#takeNodes(piece);
    else if (piece.kind === 'content') {
      this.#takeContent(piece);
      piece.bytes.fill(0xdb); // it is not ours any more
      piece.release();
    } else {
      assert(piece.count >= 1 && piece.tailBytes >= 1 && piece.tailBytes <= granuleBytes);
      if (piece.count < 1 << 16)
        for (let at = 0; at < piece.count; at++) this.#stage(piece.object, piece.first + at, undefined);
      else this.#stageLongHole(piece.object, piece.first, piece.count);
    }
  }

  #stageLongHole(object: number, first: number, count: number): void {
    for (const granules of [this.content.get(object), this.#stagedContent.get(object)]) {
      for (const index of granules?.keys() ?? [])
        if (index >= first && index < first + count) this.#stage(object, index, undefined);
    }
  }

  #takeNodes(piece: NodesPiece): void {
    assert(piece.nodes.length > 0 && piece.nodes.length <= 500, `${piece.nodes.length} nodes in a piece`);
    piece.nodes.forEach((node, index) => {
      if (piece.offer) assert.equal(node.slot, (piece.nodes[0] as Node).slot + index, 'offered slots are consecutive');
      const mine = this.#stagedNodes.get(node.slot) ?? this.nodes.get(node.slot);
      const same = (mine === undefined && node.type === 0) || (mine && nodeHash(mine).equals(nodeHash(node)));
      if (piece.offer && same) return;
      if (piece.expectSame) this.mismatched++;
      this.sentNodes++;
      this.#stagedNodes.set(node.slot, structuredNode(node));
    });
  }

  #takeContent(piece: ContentPiece): void {
    const { object, first, bytes, hashes } = piece;
    assert(bytes.length > 0 && bytes.length <= 1 << 20);
    assert.equal(hashes.length, granuleCount(bytes.length) * hashBytes);
    for (let at = 0; at < granuleCount(bytes.length); at++) {
      const granule = bytes.subarray(at * granuleBytes, (at + 1) * granuleBytes);
      const digest = granuleHash(granule);
      assert(digest.equals(hashes.subarray(at * hashBytes, (at + 1) * hashBytes)), 'a granule has its hash');
      const mine = this.#granule(object, first + at);
      if (piece.offer && mine && granuleHash(mine).equals(digest)) continue;
      if (piece.expectSame) this.mismatched++;
      this.sentBytes += granule.length;
      this.#stage(object, first + at, Buffer.from(granule));
    }
  }

  #granule(object: number, index: number): Buffer | undefined {
    const staged = this.#stagedContent.get(object);
    return staged?.has(index) ? staged.get(index) : this.content.get(object)?.get(index);
  }

  #stage(object: number, index: number, bytes: Buffer | undefined): void {
    let staged = this.#stagedContent.get(object);
    if (!staged) this.#stagedContent.set(object, (staged = new Map<number, Buffer>()));
    staged.set(index, bytes as Buffer);
  }

  /** A crash or a new session: the open epoch is gone. */
  discard(): void {
    this.#stagedNodes.clear();
    this.#stagedContent.clear();
  }

  commit(sequence: number, sizeBytes: number, isPoint: boolean): void {
    assert.equal(sequence, this.sequence + 1, 'commits follow one another');
    if (this.mode === 'Filesystem') this.#settleNodes(isPoint);
    else this.#settleContent(0);
    this.discard();
    this.sequence = sequence;
    this.sizeBytes = sizeBytes;
    this.isPoint = isPoint;
    if (this.mode === 'Filesystem') {
      const used = Math.max(-1, ...this.nodes.keys()) + 1;
      assert(sizeBytes >= used, `${used} slots are in use, the commit says ${sizeBytes}`);
    }
  }

  #settleContent(object: number): void {
    const staged = this.#stagedContent.get(object);
    if (!staged) return;
    let granules = this.content.get(object);
    if (!granules) this.content.set(object, (granules = new Map<number, Buffer>()));
    for (const [index, bytes] of staged) {
      if (bytes === undefined) granules.delete(index);
      else granules.set(index, bytes);
    }
  }

  #settleNodes(isPoint: boolean): void {
    const before = new Set(this.nodes.keys());
    const names = new Map<string, number>();
    const key = ({ parent, name }: Name): string => `${parent}/${name.toString('latin1')}`;
    for (const [slot, node] of this.nodes) {
      if (!this.#stagedNodes.has(slot)) for (const name of node.names) names.set(key(name), slot);
    }
    const given = new Map<string, number>();
    for (const [slot, node] of this.#stagedNodes) {
      for (const name of node.names) {
        assert(!given.has(key(name)), `one epoch gives ${key(name)} to slots ${given.get(key(name))} and ${slot}`);
        given.set(key(name), slot);
        names.set(key(name), slot);
      }
    }
    for (const [slot, node] of this.nodes) {
      if (this.#stagedNodes.has(slot)) continue;
      node.names = node.names.filter((name) => names.get(key(name)) === slot);
    }
    for (const [slot, node] of this.#stagedNodes) {
      if (node.type === nodeTypes.gone) this.nodes.delete(slot);
      else this.nodes.set(slot, node);
    }
    for (let again = true; again;) {
      again = false;
      for (const [slot, node] of this.nodes) {
        const isStaged = this.#stagedNodes.has(slot);
        if (!isStaged)
          node.names = node.names.filter(({ parent }) => this.nodes.get(parent)?.type === nodeTypes.directory);
        if (slot === 0 || node.names.length > 0) continue;
        this.nodes.delete(slot);
        again = true;
      }
    }
    for (const slot of this.#stagedContent.keys()) this.#settleContent(slot);
    // Content may come in commits before that of its node, but a slot that is given up has none.
    for (const slot of [...this.content.keys()]) {
      const isAhead = !this.nodes.has(slot) && !this.#stagedNodes.has(slot) && !before.has(slot);
      if (this.nodes.get(slot)?.type !== nodeTypes.file && !isAhead) this.content.delete(slot);
    }
    for (const [slot, node] of this.nodes) {
      this.#checkPlace(slot, node);
      if (node.type !== nodeTypes.file) continue;
      const granules = this.content.get(slot);
      if (this.#stagedNodes.has(slot)) {
        for (const index of granules?.keys() ?? []) if (index >= granuleCount(node.sizeBytes)) granules?.delete(index);
      }
      if (!isPoint && !this.#stagedNodes.has(slot)) continue;
      const hasContent =
        node.sizeBytes > 2 ** 32 || contentRoot(this.#hashes(slot, node.sizeBytes)).equals(node.contentRoot);
      assert(hasContent, `the content of slot ${slot} adds up to its root`);
    }
  }

  #checkPlace(slot: number, node: Node): void {
    for (const { parent } of node.names) {
      let at = parent;
      for (let depth = 0; at !== 0; depth++) {
        const above = this.nodes.get(at);
        assert(
          above?.type === nodeTypes.directory && depth < 100_000,
          `slot ${slot} hangs on a directory below the root`,
        );
        at = above.names[0]?.parent ?? -1;
      }
      assert.equal(this.nodes.get(0)?.type, nodeTypes.directory);
    }
  }

  #hashes(object: number, sizeBytes: number): Buffer {
    const all = Buffer.alloc(granuleCount(sizeBytes) * hashBytes);
    const granules = this.content.get(object);
    for (let at = 0; at < granuleCount(sizeBytes); at++) {
      const bytes = granules?.get(at);
      if (bytes) granuleHash(sized(bytes, granuleLength(at, sizeBytes))).copy(all, at * hashBytes);
    }
    return all;
  }

  bytes(object: number, sizeBytes: number): Buffer {
    const all = Buffer.alloc(sizeBytes);
    for (const [at, bytes] of this.content.get(object) ?? []) bytes.copy(all, at * granuleBytes);
    return all;
  }

  /** Paths (latin1) of a slot. */
  paths(slot: number): string[] {
    if (slot === 0) return [''];
    const node = this.nodes.get(slot) as Node;
    return node.names
      .flatMap(({ parent, name }) => this.paths(parent).map((path) => `${path}/${name.toString('latin1')}`))
      .sort();
  }
}

function sized(bytes: Buffer, length: number): Buffer {
  return bytes.length >= length
    ? bytes.subarray(0, length)
    : Buffer.concat([bytes, Buffer.alloc(length - bytes.length)]);
}

function structuredNode(node: Node): Node {
  return { ...node, names: node.names.map((one) => ({ ...one })), xattrs: node.xattrs.map((one) => ({ ...one })) };
}
