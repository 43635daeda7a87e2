/**
 * What a folder of an agent has that a tree's point has not: the agent gets the point's nodes and answers those that a resync would
 * send, then the granules of files whose content differs are asked for by their hashes. Nothing is sent but nodes and hashes.
 *
 * An entry is what has a slot: a file with several names is one. A file of the same content under a new name counts as changed, not
 * as new and gone. A directory of which only the time differs is none: something came or went in it, which is told itself.
 * Failure: as of offering.ts; SourceGone for another folder than the one that was mirrored. In memory are the paths that are told;
 * what differs is in a temporary table, however much it is.
 */
import { setImmediate as others } from 'node:timers/promises';
import { ReplicationError } from '../proto/errors.ts';
import { granuleBytes, granuleCount, granuleLength } from '../proto/granule.ts';
import { checkedNode, nodeHash } from '../proto/node.ts';
import { nodeBatches } from '../proto/nodebatch.ts';
import { encode, nodeTypes, type Name, type Node } from '../proto/wire.ts';
import { maxPaths, safePath } from './forktext.ts';
import { bitsOf, Talk, type OfferOptions, type RestoreCall } from './offering.ts';
import { Rows } from './replica/rows.ts';
import type { TreeIndex } from './replica/treeindex.ts';
import { toNode } from './replica/treelog.ts';
import type { ForkFound, ForkPath } from './resources.ts';

export type TreeDifference = Required<Pick<ForkFound, 'bytes' | 'entries' | 'paths'>>;

const kinds = { changed: 0, new: 1, gone: 2 } as const;
type Kind = keyof typeof kinds;
const pageRows = 500;
/** Directories above an entry of an agent that makes circles of them. */
const maxDepth = 10_000;

export async function compareTree(
  call: RestoreCall,
  index: TreeIndex,
  options: Pick<OfferOptions, 'uid' | 'generation' | 'signal' | 'progress'>,
): Promise<TreeDifference> {
  const { signal, progress } = options;
  const talk = new Talk(call);
  const { sourceId } = await talk.greet(index.sizeBytes, options, 'Filesystem');
  if (index.sourceId !== '' && sourceId !== index.sourceId)
    throw new ReplicationError(
      'SourceGone',
      'another directory stands there than the one that was mirrored: mount it, or resync with force gives it up',
    );
  for await (const nodes of nodeBatches(index.nodes())) {
    signal.throwIfAborted();
    await talk.message({ nodes: { nodes } });
  }
  const differing = new Differing(index);
  await talk.manifest(
    (nodes) => differing.take(nodes),
    (done, total) => progress('comparing', done, total),
  );
  await differing.pair(signal);
  let bytes = differing.newBytes;
  for await (const [own, wanted] of differing.otherContent(signal)) {
    const sizeBytes = Math.max(own.sizeBytes, wanted.sizeBytes);
    if (sizeBytes <= granuleBytes) {
      bytes += sizeBytes;
      continue;
    }
    const content = {
      object: wanted.slot,
      sizeBytes: wanted.sizeBytes,
      hashes: (first: number, count: number) => index.content.hashes(wanted.slot, first, count),
    };
    for await (const { first, bitmap } of talk.offer(content, options))
      for (const granule of bitsOf(bitmap, first)) bytes += granuleLength(granule, sizeBytes);
    bytes += Math.max(0, own.sizeBytes - granuleCount(wanted.sizeBytes) * granuleBytes);
  }
  call.end();
  return { bytes, entries: differing.entries, paths: differing.paths() };
}

/** What was answered, beside the point. */
class Differing {
  readonly #index: TreeIndex;
  readonly #rows: Rows;

  constructor(index: TreeIndex) {
    this.#index = index;
    this.#rows = new Rows(index.database);
    // Of files with content, `root` and `size` are of what there is of them: here, or at the point.
    index.database.exec(`DROP TABLE IF EXISTS temp.differing;
      CREATE TEMP TABLE differing (slot INTEGER PRIMARY KEY, kind INTEGER NOT NULL, state BLOB NOT NULL, root BLOB,
        size INTEGER NOT NULL, former INTEGER) STRICT;
      CREATE INDEX temp.differing_kind ON differing (kind, root, size)`);
  }

  /** The last one of a slot counts. @throws BadMessage */
  take(nodes: Node[]): void {
    for (const own of nodes.map(checkedNode)) {
      const wanted = this.#index.node(own.slot);
      const kind = kindOf(own, wanted);
      const of = kind === 'gone' ? wanted : own;
      if (kind === undefined || !of) this.#rows.run('DELETE FROM differing WHERE slot = ?', own.slot);
      else
        this.#rows.run(
          'INSERT OR REPLACE INTO differing (slot, kind, state, root, size) VALUES (?, ?, ?, ?, ?)',
          own.slot,
          kinds[kind],
          encode('Node', own),
          of.sizeBytes > 0 ? of.contentRoot : null,
          of.sizeBytes,
        );
    }
  }

  /** What is gone and what is new with the same content is one file that was moved. */
  async pair(signal: AbortSignal): Promise<void> {
    for await (const { slot, state } of this.#of('new', signal)) {
      const { contentRoot, sizeBytes } = state;
      if (sizeBytes === 0) continue;
      const found = this.#rows.get(
        'SELECT slot FROM differing WHERE kind = ? AND root = ? AND size = ? LIMIT 1',
        kinds.gone,
        contentRoot,
        sizeBytes,
      );
      if (!found) continue;
      const former = Number(found['slot']);
      this.#rows.run('DELETE FROM differing WHERE slot = ?', former);
      this.#rows.run('UPDATE differing SET kind = ?, former = ? WHERE slot = ?', kinds.changed, former, slot);
    }
  }

  get newBytes(): number {
    return Number(this.#rows.get('SELECT TOTAL(size) AS sum FROM differing WHERE kind = ?', kinds.new)?.['sum'] ?? 0);
  }

  get entries(): NonNullable<ForkFound['entries']> {
    const count = (kind: Kind): number =>
      Number(this.#rows.get('SELECT COUNT(*) AS count FROM differing WHERE kind = ?', kinds[kind])?.['count']);
    return { changed: count('changed'), new: count('new'), gone: count('gone') };
  }

  async *otherContent(signal: AbortSignal): AsyncGenerator<[Node, Node]> {
    for await (const { slot, state, former } of this.#of('changed', signal)) {
      const wanted = this.#index.node(slot);
      if (former === undefined && wanted && hasOtherContent(state, wanted)) yield [state, wanted];
    }
  }

  /** Of each kind as many as there is room for. */
  paths(): ForkPath[] {
    const lists = (Object.keys(kinds) as Kind[]).map((kind) => this.#page(kind, -1, maxPaths));
    const room = lists.map(() => 0);
    for (let left = maxPaths, before = -1; left > 0 && left !== before;) {
      before = left;
      for (const [at, list] of lists.entries()) {
        if (left === 0 || list.length === room[at]) continue;
        room[at] = (room[at] ?? 0) + 1;
        left--;
      }
    }
    return lists.flatMap((list, at) => list.slice(0, room[at]).map((one) => this.#told(one)));
  }

  #told({ slot, kind, state, former }: Differed): ForkPath {
    const wanted = this.#index.node(former ?? slot);
    if (kind === 'gone') return { path: safePath(this.#index.path(slot)), change: kind, what: [], formerPath: null };
    const path = safePath(this.#path(state));
    if (kind === 'new' || !wanted) return { path, change: 'new', what: [], formerPath: null };
    const before = slot === 0 ? path : safePath(this.#index.path(wanted.slot));
    return { path, change: kind, what: whatDiffers(state, wanted), formerPath: before === path ? null : before };
  }

  /** By the first of its names. */
  #path({ slot, names }: Node): Buffer {
    if (slot === 0) return Buffer.from('.');
    const parts: Buffer[] = [];
    for (let name: Name | undefined = names[0]; name && parts.length < maxDepth;) {
      parts.unshift(name.name);
      if (name.parent === 0) break;
      const row = this.#rows.get('SELECT state FROM differing WHERE slot = ?', name.parent);
      name = (toNode(row?.['state']) ?? this.#index.node(name.parent))?.names[0];
    }
    return Buffer.concat(parts.flatMap((part, at) => (at === 0 ? [part] : [Buffer.from('/'), part])));
  }

  /** Not one statement is open, and others have their turn, while the caller works. */
  async *#of(kind: Kind, signal: AbortSignal): AsyncGenerator<Differed> {
    for (let after = -1; ;) {
      signal.throwIfAborted();
      const page = this.#page(kind, after, pageRows);
      yield* page;
      const last = page.at(-1);
      if (!last) return;
      after = last.slot;
      await others();
    }
  }

  #page(kind: Kind, after: number, limit: number): Differed[] {
    const rows = this.#rows.all(
      'SELECT slot, state, former FROM differing WHERE +kind = ? AND slot > ? ORDER BY slot LIMIT ?',
      kinds[kind],
      after,
      limit,
    );
    return rows.map((row) => ({
      kind,
      slot: Number(row['slot']),
      state: toNode(row['state']) as Node,
      former: row['former'] === null ? undefined : Number(row['former']),
    }));
  }
}

interface Differed {
  kind: Kind;
  slot: number;
  state: Node;
  /** Where the point has it, when it was moved. */
  former: number | undefined;
}

function kindOf(own: Node, wanted: Node | undefined): Kind | undefined {
  if (own.type === nodeTypes.gone) return wanted && 'gone';
  if (!wanted) return 'new';
  return whatDiffers(own, wanted).length > 0 ? 'changed' : undefined;
}

function hasOtherContent(own: Node, wanted: Node): boolean {
  return own.sizeBytes !== wanted.sizeBytes || !own.contentRoot.equals(wanted.contentRoot);
}

/** Pure. Empty: the same to whoever looks for what was written. */
export function whatDiffers(own: Node, wanted: Node): ForkPath['what'] {
  const { type, mode, uid, gid, mtimeSeconds, mtimeNanoseconds, deviceMajor, deviceMinor } = wanted;
  const isTime = own.mtimeSeconds !== mtimeSeconds || own.mtimeNanoseconds !== mtimeNanoseconds;
  const isOther: Record<ForkPath['what'][number], boolean> = {
    type: own.type !== type || own.deviceMajor !== deviceMajor || own.deviceMinor !== deviceMinor,
    content: hasOtherContent(own, wanted),
    name: !sameIn(own, wanted, ({ names }) => ({ names })),
    mode: own.mode !== mode,
    owner: own.uid !== uid || own.gid !== gid,
    time: isTime && own.type !== nodeTypes.directory,
    attributes: !sameIn(own, wanted, ({ xattrs }) => ({ xattrs })),
    target: !own.target.equals(wanted.target),
  };
  return (Object.keys(isOther) as ForkPath['what']).filter((what) => isOther[what]);
}

/** In these of its fields, in whatever order they come. */
function sameIn(own: Node, wanted: Node, fields: (node: Node) => Partial<Node>): boolean {
  return nodeHash({ ...wanted, ...fields(own) }).equals(nodeHash(wanted));
}
