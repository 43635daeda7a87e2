/** A replicator-receiver as a process on a folder, and the certificates of a CA that lets a master dial it. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { openAuthority, type Pair } from '../master/authority.ts';
import { openDatabase } from '../master/database.ts';
import { receiverStorage } from '../master/receiver/driver.ts';
import type { Line } from '../master/receiver/remote.ts';
import { sqliteStore } from '../master/store-sqlite.ts';
import type { Clock } from '../proto/effects.ts';
import { connectReceiver, masterClientName } from '../proto/rpc.ts';
import { systemClock, systemRandom } from '../proto/system.ts';
import { program, type Program } from './e2e/program.ts';
import { freePort } from './ports.ts';

export interface TestReceiver {
  process: Program;
  /** As a master of that term dials it; locks end by that clock. */
  line(clock?: Clock, term?: number): Line;
  /** With a certificate of another name. */
  lineAs(name: string): Promise<Line>;
  /** Resolves when it can be dialled. */
  ready(): Promise<void>;
}

const name = 'receiver.test';

export async function startReceiver(t: Pick<Test, 'teardown'>, volume: string): Promise<TestReceiver> {
  const dir = mkdtempSync(join(tmpdir(), 'receiver-'));
  const store = sqliteStore(openDatabase(join(dir, 'master.db')), { clock: systemClock, random: systemRandom });
  const authority = await openAuthority({ dir, store, clock: systemClock });
  const port = await freePort();
  const { keyPem, certificatePem } = await authority.pair('server', name);
  const file = (leaf: string, text: string): string => {
    writeFileSync(join(dir, leaf), text, { mode: 0o600 });
    return join(dir, leaf);
  };
  const argv = [
    ...['--volume', volume, '--listen', `127.0.0.1:${port}`, '--ca', join(dir, 'ca.pem')],
    ...['--cert', file('receiver.pem', certificatePem), '--key', file('receiver.key', keyPem)],
  ];
  const process = program('replicator-receiver', () => argv, join(dir, 'receiver.log'));
  const clients: { close(): void }[] = [];
  t.teardown(async () => {
    for (const client of clients) client.close();
    await process.kill();
    store.close();
    rmSync(dir, { recursive: true, force: true });
  });
  const pair = await authority.pair('client', masterClientName);
  const dial = (pair: Pair, trusted: Clock, term: number): Line => {
    const client = connectReceiver({ host: '127.0.0.1', port }, name, { caPem: authority.caPem, ...pair });
    clients.push(client);
    return { client, term, clock: systemClock, trusted };
  };
  const made: TestReceiver = {
    process,
    line: (clock = systemClock, term = 0) => dial(pair, clock, term),
    lineAs: async (other) => dial(await authority.pair('client', other), systemClock, 0),
    async ready() {
      const driver = receiverStorage(made.line());
      for (let tries = 0; ; tries++) {
        try {
          return void (await driver.list());
        } catch (error) {
          if (tries > 600 || !process.running) throw new Error(process.logEnd(), { cause: error });
          await systemClock.sleep(50);
        }
      }
    },
  };
  process.start();
  await made.ready();
  return made;
}
