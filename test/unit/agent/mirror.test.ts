import t from 'tap';
import { mirror } from '../../../agent/mirror.ts';
import { bell, streamPair } from '../../../proto/stream.ts';
import type { Commit, MirrorReply, MirrorRequest } from '../../../proto/wire.ts';
import { mirroring } from './mirroring.ts';
import { opener, sizeBytes, Volume } from './memoryvolume.ts';

t.test(
  'work is saved while the line goes on: nobody waits for the target to make it durable, but a point',
  async (t) => {
    const volume = new Volume();
    const open = opener(t, volume);
    const pair = streamPair<MirrorRequest, MirrorReply>();
    const ending = new AbortController();
    const commits: Commit[] = [];
    /** Content that came after a commit that was not answered yet. */
    let behind = 0;
    let contentBytes = 0;
    const made = bell();
    const master = async (): Promise<void> => {
      let owed: Commit | undefined;
      const answer = async (): Promise<void> => {
        const { sequence } = owed ?? { sequence: 0 };
        owed = undefined;
        await pair.server.send({ committed: { sequence, digest: Buffer.alloc(16, sequence) } });
      };
      for await (const message of pair.server.receive) {
        if (message.hello) {
          const head = { headSequence: 0, initialized: false, sizeBytes: 0, digest: Buffer.alloc(16), sourceId: '' };
          await pair.server.send({ welcome: { protocol: 1, ...head, blank: true, incomplete: false } });
          continue;
        }
        if (message.commit) {
          t.equal(owed, undefined, 'one at a time');
          t.equal(message.commit.sequence, commits.length + 1);
          commits.push((owed = message.commit));
          // Others wait until more has come, or all of it.
          if (owed.point || contentBytes === sizeBytes) await answer();
          if (message.commit.point) made.ring();
        } else if (message.data) {
          contentBytes += message.data.rawBytes;
          if (owed) {
            behind++;
            await answer();
          }
        }
        await pair.server.send({ received: { number: message.number, workedUs: 0 } });
      }
    };
    const serving = master().catch(() => undefined);
    const running = mirror(mirroring(t, { openSource: async () => open(), connect: () => pair.client }), ending.signal);
    while (commits.at(-1)?.point !== true) await made.rung();
    t.equal(contentBytes, sizeBytes);
    t.ok(commits.length >= 3, `${commits.length} commits`);
    t.ok(behind >= 2, `${behind} of them had content behind them before they were answered`);
    ending.abort(new Error('the test is over'));
    await running;
    pair.cut();
    await serving;
  },
);
