/** A tree in memory, changed by random operations, and the epochs that bring a replica there. */
import { contentRoot, granuleBytes, granuleCount, granuleHash, hash, isZero } from '../../../../proto/granule.ts';
import { goneNode, nodeHash } from '../../../../proto/node.ts';
import { nodeTypes, type Data, type Name, type Node } from '../../../../proto/wire.ts';
import type { CommitRecord } from '../../../../master/replica/frame.ts';

/** xorshift32: the same numbers for the same seed. */
export function randomOf(seed: number): (below: number) => number {
  let state = (seed ^ 0x9e3779b9) | 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

export const bytes = (text: string): Buffer => Buffer.from(text, 'latin1');

const names = ['a', 'b', 'c', 'd', 'new\nline', '\xff\xfe', 'x'.repeat(255), ' ', '-rf', '..a'].map(bytes);

export interface Epoch {
  data: Data[];
  nodes: Node[];
}

export class TreeModel {
  nodes = new Map<number, Node>();
  content = new Map<number, Buffer>();
  #sentNodes = new Map<number, Node>();
  #sentContent = new Map<number, Buffer>();
  readonly #random: (below: number) => number;
  /** What a process without privilege cannot make is left out. */
  readonly #privileged: boolean;

  constructor(random: (below: number) => number, privileged = true) {
    this.#random = random;
    this.#privileged = privileged;
    this.nodes.set(0, { ...this.#fresh(0, nodeTypes.directory), names: [] });
  }

  get slots(): number {
    return Math.max(...this.nodes.keys()) + 1;
  }

  #fresh(slot: number, type: number): Node {
    const random = this.#random;
    const isDevice = type === nodeTypes.character;
    return {
      ...goneNode(slot),
      type,
      mode: type === nodeTypes.symlink ? 0o777 : this.#someMode(type) | (random(9) ? 0 : 0o1000),
      uid: this.#privileged ? random(3) * 1000 : (process.getuid?.() ?? 0),
      gid: this.#privileged ? random(3) * 1000 : (process.getgid?.() ?? 0),
      mtimeSeconds: random(2_000_000_000) - 1000,
      mtimeNanoseconds: random(1_000_000_000),
      target: type === nodeTypes.symlink ? bytes(`../to/${random(100)}\xff`) : Buffer.alloc(0),
      deviceMajor: isDevice ? 1 : 0,
      deviceMinor: isDevice ? 3 + random(5) : 0,
      xattrs: type === nodeTypes.file && !random(3) ? [{ name: bytes('user.k'), value: bytes(`v${random(9)}`) }] : [],
    };
  }

  #someMode(type: number): number {
    if (this.#privileged) return this.#random(2) ? 0o755 : 0o640 + this.#random(8);
    // What a test without privilege can still read, but not write.
    const modes = type === nodeTypes.directory ? [0o755, 0o555, 0o700] : [0o644, 0o444];
    return modes[this.#random(modes.length)] as number;
  }

  #pick(type?: number): Node | undefined {
    const all = [...this.nodes.values()].filter((node) => (type === undefined ? node.slot > 0 : node.type === type));
    return all[this.#random(all.length || 1)];
  }

  #place(): Name | undefined {
    const directory = this.#pick(nodeTypes.directory);
    return directory && { parent: directory.slot, name: names[this.#random(names.length)] as Buffer };
  }

  at(place: Name): Node | undefined {
    return [...this.nodes.values()].find((node) =>
      node.names.some(({ parent, name }) => parent === place.parent && name.equals(place.name)),
    );
  }

  children(slot: number): { name: Buffer; node: Node }[] {
    return [...this.nodes.values()].flatMap((node) =>
      node.names.filter(({ parent }) => parent === slot).map(({ name }) => ({ name, node })),
    );
  }

  #isInside(slot: number, ancestor: number): boolean {
    for (let at = slot; at !== 0; at = this.nodes.get(at)?.names[0]?.parent ?? 0) if (at === ancestor) return true;
    return ancestor === 0;
  }

  /** Takes one name away, and all that hangs on it. */
  remove(node: Node, place: Name): void {
    const left = node.names.filter(({ parent, name }) => parent !== place.parent || !name.equals(place.name));
    if (left.length > 0) {
      this.nodes.set(node.slot, { ...node, names: left });
      return;
    }
    for (const child of this.children(node.slot)) {
      const present = this.nodes.get(child.node.slot);
      if (present) this.remove(present, { parent: node.slot, name: child.name });
    }
    this.nodes.delete(node.slot);
    this.content.delete(node.slot);
  }

  create(type: number, place: Name, content: Buffer = Buffer.alloc(0)): Node {
    let slot = 1;
    if (this.#random(2)) slot = this.slots;
    while (this.nodes.has(slot)) slot++;
    const node = { ...this.#fresh(slot, type), names: [place] };
    this.nodes.set(slot, node);
    if (type === nodeTypes.file) this.write(slot, content);
    return this.nodes.get(slot) as Node;
  }

  write(slot: number, content: Buffer): void {
    const node = this.nodes.get(slot) as Node;
    const granules = Array.from({ length: granuleCount(content.length) }, (_, at) =>
      granuleHash(granuleOf(content, at)),
    );
    this.content.set(slot, content);
    this.nodes.set(slot, { ...node, sizeBytes: content.length, contentRoot: contentRoot(Buffer.concat(granules)) });
  }

  #someContent(): Buffer {
    const random = this.#random;
    const content: Buffer = Buffer.alloc([0, 1, 100, 65536, 65537, 200_000, 300_000][random(7)] as number);
    for (let at = 0; at < content.length; at += granuleBytes)
      if (random(2)) content.fill(1 + random(200), at, Math.min(content.length, at + 40_000));
    return content;
  }

  /** One random change. */
  step(): void {
    const random = this.#random;
    const place = this.#place();
    if (!place) return;
    const there = this.at(place);
    const [move, other] = [this.#pick(), this.#pick()];
    switch (random(11)) {
      case 0:
      case 1:
      case 2: {
        if (there) this.remove(there, place);
        const special = this.#privileged ? [nodeTypes.fifo, nodeTypes.socket, nodeTypes.character] : [nodeTypes.fifo];
        const all = [
          nodeTypes.directory,
          nodeTypes.directory,
          nodeTypes.file,
          nodeTypes.file,
          nodeTypes.symlink,
          ...special,
        ];
        this.create(all[random(all.length)] as number, place, this.#someContent());
        return;
      }
      case 3:
        if (there && random(3) === 0) this.remove(there, place);
        return;
      case 4: // rename over whatever is there
      case 5: {
        const from = move?.names[0];
        if (!move || !from || this.#isInside(place.parent, move.slot) || there === move) return;
        if (there && this.#isInside(move.slot, there.slot)) return;
        if (there) this.remove(there, place);
        const present = this.nodes.get(move.slot);
        if (!present?.names.includes(from) || !this.nodes.has(place.parent)) return;
        this.nodes.set(move.slot, { ...present, names: [...present.names.filter((name) => name !== from), place] });
        return;
      }
      case 6: {
        // exchange
        const [a, b] = [move?.names[0], other?.names[0]];
        if (!move || !other || !a || !b || move === other) return;
        if (this.#isInside(b.parent, move.slot) || this.#isInside(a.parent, other.slot)) return;
        this.nodes.set(move.slot, { ...move, names: [b, ...move.names.slice(1)] });
        this.nodes.set(other.slot, { ...other, names: [a, ...other.names.slice(1)] });
        return;
      }
      case 7:
        if (!move || move.type === nodeTypes.directory || there) return;
        this.nodes.set(move.slot, { ...move, names: [...move.names, place] });
        return;
      case 8:
        if (move) this.nodes.set(move.slot, { ...move, ...pickState(this.#fresh(move.slot, move.type), move) });
        return;
      case 9: {
        const file = this.#pick(nodeTypes.file);
        if (file) this.write(file.slot, this.#someContent());
        return;
      }
      default: {
        // another type in the same slot, at the same name
        const only = move?.names.length === 1 && move.names[0];
        if (!move || !only) return;
        this.remove(move, only);
        const type = [nodeTypes.directory, nodeTypes.file, nodeTypes.symlink][random(3)] as number;
        this.nodes.set(move.slot, { ...this.#fresh(move.slot, type), names: [only] });
        if (type === nodeTypes.file) this.write(move.slot, this.#someContent());
      }
    }
  }

  /** What an agent sends for the changes since the last call; `shuffled` in any order. */
  epoch(): Epoch {
    const data: Data[] = [];
    const nodes: Node[] = [];
    for (const [slot, node] of this.nodes) {
      const old = this.#sentNodes.get(slot);
      if (!old || !nodeHash(old).equals(nodeHash(node))) nodes.push(node);
      const content = this.content.get(slot);
      const before = old?.type === nodeTypes.file ? this.#sentContent.get(slot) : undefined;
      if (content) data.push(...dataOf(slot, content, before));
    }
    for (const slot of this.#sentNodes.keys()) if (!this.nodes.has(slot)) nodes.push(goneNode(slot));
    for (let at = nodes.length - 1; at > 0; at--) {
      const other = this.#random(at + 1);
      [nodes[at], nodes[other]] = [nodes[other] as Node, nodes[at] as Node];
    }
    this.#sentNodes = new Map(this.nodes);
    this.#sentContent = new Map(this.content);
    return { data, nodes };
  }
}

function pickState(fresh: Node, old: Node): Partial<Node> {
  const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs } = fresh;
  return { mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs: old.type === nodeTypes.file ? xattrs : [] };
}

function granuleOf(content: Buffer, at: number): Buffer {
  return content.subarray(at * granuleBytes, (at + 1) * granuleBytes);
}

/** One message per granule that differs. */
export function dataOf(object: number, content: Buffer, before: Buffer | undefined): Data[] {
  const all: Data[] = [];
  for (let first = 0; first < granuleCount(content.length); first++) {
    const payload = granuleOf(content, first);
    if (before ? granuleOf(before, first).equals(payload) : isZero(payload)) continue;
    const zero = isZero(payload);
    const run = { object, first, count: 1, zero, tailBytes: payload.length };
    all.push({
      runs: [run],
      hashes: zero ? Buffer.alloc(0) : hash(payload),
      compression: 0,
      rawBytes: zero ? 0 : payload.length,
      payload: zero ? Buffer.alloc(0) : payload,
    });
  }
  return all;
}

export function commitOf(sequence: number, sizeBytes: number): CommitRecord {
  return {
    sequence,
    point: true,
    sourceUs: sequence,
    consistency: 'file',
    sizeBytes,
    verified: false,
    mismatchedGranules: 0,
    startedUs: 0,
    sentBytes: 0,
    groupCut: '',
    digest: Buffer.alloc(16),
    committedUs: 0,
    sourceId: 'source',
    generation: '1',
  };
}
