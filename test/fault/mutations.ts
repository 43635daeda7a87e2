/** Mistakes that somebody could make in what keeps copies right, each as a change of one place, and the tests that must notice. */

export interface Mutation {
  file: string;
  /** There once. */
  find: string;
  replace: string;
  /** Below test/, run in this order until one fails. */
  tests: string[];
  /** Why no test can notice: equal in effect. */
  equal?: string;
}

const replica = 'unit/master/replica/replica.test.ts';
const journal = 'unit/master/replica/journal.test.ts';
const placing = 'unit/master/replica/placing.test.ts';
const unreadable = 'unit/master/replica/unreadable.test.ts';
const index = 'unit/master/replica/blockindex.test.ts';
const horizon = 'unit/master/replica/horizon.test.ts';
const treeIndex = 'unit/master/replica/treeindex.test.ts';
const treeBase = 'unit/master/replica/treebase.test.ts';
const map = 'unit/agent/capture/dirtymap.test.ts';
const sender = 'unit/agent/sender.test.ts';
const plan = 'unit/agent/plan.test.ts';
const scan = 'unit/agent/blockscan.test.ts';
const source = 'unit/agent/blocksource.test.ts';
const payload = 'unit/proto/payload.test.ts';
const session = 'unit/master/session.test.ts';
const sim = 'sim/sim.test.ts';
const power = 'fault/powerloss.test.ts';
const rot = 'fault/rot.test.ts';

type Row = [find: string, replace: string, tests: string[], equal?: string];

const rows: Record<string, Row[]> = {
  'master/replica/journal.ts': [
    ['    await this.#file?.sync();\n    segment.last', '    segment.last', [journal, sim, power]],
    [
      '    await this.#file?.sync();\n    await this.append(commit',
      '    await this.append(commit',
      [journal, sim, power],
    ],
    ['    await this.#file.truncate(this.#committedBytes);\n', '', [journal, replica, sim]],
    [
      'if (sequence !== segment.last + 1) break;',
      '',
      [journal, sim],
      'a second line of defence: a discard is durable and damage fails the hash before',
    ],
    ['segment.first !== next', 'segment.first < next', [journal]],
    [
      'if (segment.last <= after ||',
      'if (segment.last < after ||',
      [journal],
      'such a segment is read and yields nothing',
    ],
    ['oldest.last <= sequence', 'oldest.last <= sequence + 1', [journal, replica]],
    [
      'await this.#disk.remove(oldest.path);\n      await this.#disk.syncDirectory(this.#folder);',
      'await this.#disk.remove(oldest.path);',
      [journal, sim],
    ],
    [
      '      await file.truncate(0);\n      await this.#disk.syncDirectory(this.#folder);',
      '      await file.truncate(0);',
      [journal, sim, power],
    ],
    ['if (sequence <= after) continue;', 'if (sequence < after) continue;', [journal, replica, sim]],
    ['if (!hash(head.subarray(0, 24), meta).equals(head.subarray(24, headerBytes))) return;', '', [journal, rot]],
    ['base > after ||', 'base > after + 1 ||', [journal, replica, sim]],
  ],
  'master/replica/replica.ts': [
    ['if (BigInt(writer.generation) < present) {', 'if (BigInt(writer.generation) < present - 1n) {', [replica, sim]],
    [
      'if (BigInt(writer.generation) > present) await this.#timeline.setNote({ generation: writer.generation });',
      '',
      [replica, sim],
    ],
    ['if (BigInt(generation) <= BigInt(this.#timeline.note.generation)) return;', 'return;', [replica, sim]],
    ['this.#session.writer !== writer.name &&', 'false &&', [replica, sim]],
    ['commit.sequence !== this.#head.sequence + 1', 'commit.sequence < this.#head.sequence + 1', [replica]],
    ['if (commit.point && unknown > 0) {', 'if (commit.point && unknown > 1) {', [replica, sim, placing]],
    ['        await this.#placing.sync();\n', '', [placing, power]],
    ['if (placed) await this.#checkpoint.follow();', '', [placing, sim, power]],
    [
      'if (point) await this.#checkpoint.endPlacing();',
      '',
      [placing, sim, power],
      'the next opening reads those windows once more and ends it then',
    ],
    ['      await this.#discard();\n      this.#session = {', '      this.#session = {', [replica, sim]],
    ['    if (this.#session !== session) {', '    if (!session) {', [replica, sim]],
  ],
  'master/replica/writer.ts': [
    [
      "mode === 'Block' && writer.sizeBytes < sizeBytes",
      "mode === 'Block' && writer.sizeBytes < sizeBytes - 65536",
      [replica, sim],
    ],
  ],
  'master/replica/blockbase.ts': [
    ['    await this.#image.sync();\n    this.index.commit(commit);', '    this.index.commit(commit);', [sim, power]],
    [
      'if ((await this.#image.size()) !== commit.sizeBytes) await',
      'if ((await this.#image.size()) < commit.sizeBytes) await',
      [replica, sim],
    ],
    ['const count = granuleCount(size);', 'const count = granuleCount(size) - 1;', [replica, rot, sim]],
    ['const right = to <= got &&', 'const right = to > got ||', [unreadable, replica, sim]],
  ],
  'master/replica/checkpoint.ts': [
    [
      'makeDurable(this.#base.index.database);\n        await this.#journal.trim',
      'await this.#journal.trim',
      [replica, sim, power],
    ],
    ['await this.#timeline.setNote({ applying: target });', '', [replica, sim, power]],
    ['      if (this.#unfinished) await this.#work.run(() => this.#finish(signal));\n', '', [replica, sim]],
    [
      'Math.min(this.#base.index.sequence, this.#timeline.oldestPinned ?? Infinity)',
      'this.#base.index.sequence',
      ['unit/master/replica/sharing.test.ts', replica, sim],
    ],
  ],
  'master/replica/base.ts': [
    ['base.index.discard();', '', ['unit/master/replica/redo.test.ts', replica, sim, treeBase]],
    ['bytes >= settleBytes || isResized', 'bytes >= settleBytes', [replica, sim]],
    ["error.code !== 'HashMismatch'", "error.code === 'HashMismatch'", [replica, rot]],
  ],
  'master/replica/copies.ts': [
    ['if (!copy.index.digest.equals(point.digest)) {', 'if (copy.index.digest.length === 0) {', [replica, rot, sim]],
    ['      await copy.sync();\n', '', [sim, power]],
    [
      '    await disk.syncDirectory(unfinished.folder);\n',
      '',
      [sim, power],
      'recover has synced that folder; only files of SQLite are removed after it',
    ],
    [
      'sequence >= journalBase',
      'sequence >= journalBase - 1',
      [replica, sim],
      'base and listed points are never before it, and the journal reads nothing from before where it begins',
    ],
    ['if (read && read.bad.length > 0) {', 'if (read && read.bad.length > 1) {', [replica, rot]],
  ],
  'master/replica/open.ts': [
    ["if (mode === 'Block') await disk.syncDirectory(basePlace.folder);\n", '', [sim, power]],
    [
      'head.unknown === 0 && !head.digest.equals(expected.digest)',
      'head.unknown === 0 && expected.sequence < 0',
      ['unit/master/replica/opening.test.ts', replica, rot],
    ],
    ['if (commit.sequence > base.index.sequence) commits.push(commit);', 'commits.push(commit);', [replica, sim]],
    ['if (isOfStorage(error)) throw error;\n      wrong', 'wrong', [replica, sim]],
  ],
  'master/replica/hashpages.ts': [
    ['if (number >= pageCount(count)) this.#staged.delete(number);', '', [index, sim]],
    [
      'fill(0, (count % pageHashes) * hashBytes);',
      'fill(0, (count % pageHashes) * hashBytes + hashBytes);',
      [index, replica, sim],
    ],
    [
      'if (known.length === 0 || sum.equals(known)) return page;',
      'if (known.length >= 0) return page;',
      [index, replica, rot],
    ],
  ],
  'master/replica/horizon.ts': [
    [
      'index < points.length - 1) {',
      'index < points.length) {',
      [horizon],
      'the index is cut to the newest point in the next line',
    ],
    ['while (index > 0 && (points[index]?.sequence ?? 0) > pin) index--;', '', [horizon, sim]],
    ['point.committedUs <= input.nowUs - input.journalUs', 'point.committedUs <= input.nowUs', [horizon, replica, sim]],
  ],
  'master/replica/treebase.ts': [
    ['    if (this.index.isOpen) await syncfs(this.#root.fd);\n', '', [power]],
    ['        await detach(work);\n        await syncfs(this.#root.fd);', '        await detach(work);', [power]],
    ['      this.#loosened.clear();\n      await syncfs(this.#root.fd);', '      this.#loosened.clear();', [power]],
    ['    await this.#clean();\n    const wasThere', '    const wasThere', [treeBase, power]],
  ],
  'master/replica/treeindex.ts': [
    ["    if (this.#keepsWork) this.database.exec('PRAGMA synchronous = FULL');\n", '', [power]],
    ['if (isStaged && unknown === 0) {', 'if (isStaged && unknown === -1) {', [treeIndex, treeBase]],
    ['this.content.end(slot, granuleCount(sizeBytes));', '', [treeIndex, treeBase]],
  ],
  'master/session.ts': [
    [
      'if (hello.protocol < ours.oldest || hello.protocol > ours.newest) {',
      'if (hello.protocol > ours.newest) {',
      [session],
    ],
    ['    await replica.detach(session);', '', [session]],
  ],
  'agent/sender.ts': [
    ['    await this.#until(() => !this.#pending.meets(piece));\n', '', ['unit/agent/sender.test.ts', sim]],
  ],
  'agent/capture/dirtymap.ts': [
    [
      'const end = Math.ceil((offset + length) / granuleBytes);',
      'const end = Math.floor((offset + length) / granuleBytes);',
      [map, sim],
    ],
    ['of [this.#taken, this.#committing]) {', 'of [this.#committing]) {', [map, sim]],
    ['of [this.#taken, this.#committing]) {', 'of [this.#taken]) {', [map, sim]],
    ['[this.dirty, this.#reading, this.#taken].map', '[this.dirty, this.#reading].map', [map, sim]],
    [
      'this.markBytes(Math.max(0, before - 1), sizeBytes - before + 1)',
      'this.markBytes(before, sizeBytes - before)',
      [map, sim],
    ],
    [
      'const isKnown = head?.sequence === sequence &&',
      'const isKnown = (head?.sequence ?? 0) >= sequence ||',
      [map, sim],
    ],
    ['if (!isHeadKept) return void this.back();', '', [map, sim]],
    [
      '    this.dirty.delete(first, end);\n    this.#reading.add(first, end);',
      '    this.dirty.delete(first, end);',
      [map, scan, sim],
    ],
  ],
  'agent/capture/tracking.ts': [
    ['    this.doubtCount++;\n    this.map.markAll(true);', '    this.doubtCount++;', [sim]],
    ['if (proven && map.belongsTo(headSequence,', 'if (map.belongsTo(headSequence,', [sim]],
  ],
  'agent/blocksource.ts': [
    ['if (doubts === this.#tracking.doubtCount) map.passed();', 'map.passed();', [source]],
    ['return (await this.#stampNow()) === this.#committedStamp ? agentUs : undefined;', 'return agentUs;', [sim]],
  ],
  'agent/mirror.ts': [
    ['    if (broken !== undefined) {', '    if (broken === null) {', [sim]],
    [
      '  await sender.settle();\n',
      '',
      [sim, sender],
      'send() has settled already; between pieces of a round, the commit is queued behind them',
    ],
    ['whole: attached.whole || welcome.incomplete,', 'whole: attached.whole,', [session, sim]],
  ],
  'agent/plan.ts': [['if (input.whole) return pacedSync', 'if (input.whole && last) return pacedSync', [plan, sim]]],
  'proto/payload.ts': [
    ['if (sum.compare(data.hashes, hashAt, hashAt + hashBytes) !== 0) {', 'if (hashAt < 0) {', [replica, rot, sim]],
    ['granule === run.count - 1 ? run.tailBytes : granuleBytes', 'granuleBytes', [payload]],
  ],
  'proto/system.ts': [['await file.datasync();', '', [power]]],
};

export const mutations: Mutation[] = Object.entries(rows).flatMap(([file, own]) =>
  own.map(([find, replace, tests, equal]) => ({ file, find, replace, tests, ...(equal !== undefined && { equal }) })),
);
