/**
 * `node workload.ts FOLDER MODE SEED`: the life of a replica, run under strace by powerloss.test.ts: commits, the base brought forward,
 * snapshots made and removed, copies, a fence, sessions that break, the replica closed and opened. What is begun and what is
 * done is told line by line on standard output, so that it stands in the trace among the calls that made it so.
 */
import { writeSync } from 'node:fs';
import type { VolumeMode } from '../../proto/wire.ts';
import { commit, none, openReplica, removeCopy, send, Source, writer } from './subject.ts';

const [folder = '', mode = 'Block', seed = '1'] = process.argv.slice(2);

function tell(event: object): void {
  writeSync(
    1,
    `${JSON.stringify(event, (_, value: unknown) => (isBytes(value) ? Buffer.from(value.data).toString('hex') : value))}\n`,
  );
}

function isBytes(value: unknown): value is { type: 'Buffer'; data: number[] } {
  return typeof value === 'object' && value !== null && 'type' in value && value.type === 'Buffer';
}

const source = new Source(mode as VolumeMode, Number(seed));
const replicaFolder = `${folder}/r`;
const segmentBytes = 200_000;
const open = (): ReturnType<typeof openReplica> => openReplica(replicaFolder, source.mode, undefined, segmentBytes);

let replica = await open();
let session = await replica.attach({ ...writer, generation: '1', sizeBytes: 0 });
tell({ done: 'open' });
const commits = async (count: number, isPoint = (at: number) => at % 3 !== 2): Promise<void> => {
  for (let at = 0; at < count; at++) {
    await send(replica, session, source.change());
    const point = isPoint(at);
    tell({ begin: 'commit', sequence: replica.head.sequence + 1, point });
    tell({ done: 'commit', record: await commit(replica, session, source, point) });
  }
};
const advance = async (): Promise<void> => {
  tell({ begin: 'advance' });
  await replica.advance(0, none);
  tell({ done: 'advance' });
};
const snapshot = async (name: string): Promise<void> => {
  const point = replica.newestPoint;
  if (!point) return;
  tell({ begin: 'snapshot', name });
  await replica.snapshot(name, point, none, () => undefined);
  tell({ done: 'snapshot', name, sequence: point.sequence });
};

// The first copy: saved on its way, broken off, begun again.
await commits(2, () => false);
const half = source.change();
await send(replica, session, half);
session = await replica.attach({ ...writer, generation: '1', sizeBytes: 0 });
await send(replica, session, half);
tell({ begin: 'commit', sequence: replica.head.sequence + 1, point: false });
tell({ done: 'commit', record: await commit(replica, session, source, false) });
await commits(3);
await advance();
await commits(2);
await snapshot('a');
await commits(2);
await advance();
await snapshot('b');
tell({ begin: 'delete', name: 'a' });
await replica.deleteSnapshot('a');
tell({ done: 'delete', name: 'a' });
await commits(1);
const point = replica.newestPoint;
if (point) {
  await replica.recover(point, `${folder}/copy`, { verify: true, signal: none, progress: () => undefined });
  await removeCopy(`${folder}/copy`, source.mode);
}
// A line that breaks in the middle of an epoch: another session sends it again.
const lost = source.change();
await send(replica, session, lost);
session = await replica.attach({ ...writer, generation: '1', sizeBytes: 0 });
await send(replica, session, lost);
tell({ begin: 'commit', sequence: replica.head.sequence + 1, point: true });
tell({ done: 'commit', record: await commit(replica, session, source) });
tell({ begin: 'fence', generation: '2' });
await replica.fence('2');
tell({ done: 'fence', generation: '2' });
await replica.close();
replica = await open();
session = await replica.attach({ ...writer, generation: '2', sizeBytes: 0 });
await commits(2);
await advance();
await commits(1);
await replica.close();
