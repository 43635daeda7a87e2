/**
 * `replctl support-bundle`: what somebody needs who is to find out what is wrong, in one file, without secrets: every object
 * with its status, events, points, metrics, the newest log of the master and of each connected agent, and on a machine with
 * journald the programs' logs of the last day, from before their last start too.
 *
 * Guarantees: what the token may not read, or the master does not answer, is left out and said in summary.json; the file is
 * for the caller alone (0600) and never overwrites another one.
 */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { arch, release } from 'node:os';
import { gzipSync } from 'node:zlib';
import { optional, programVersion } from '../../proto/cli.ts';
import { messageOf } from '../../proto/errors.ts';
import { parseText } from '../../proto/value.ts';
import { redact, redactLog, redactText } from './redact.ts';
import { tar, type TarFile } from './tar.ts';
import { verb } from './verb.ts';

const collections = [
  'agents',
  'storageclasses',
  'replications',
  'groups',
  'recoveries',
  'recoveryschedules',
  'garbage',
];
const units = ['replicator-master', 'cdmr_agent_1', 'cdmr_agent_0'];
const maxLogBytes = 32 << 20;

export const supportBundle = verb(
  {
    name: 'support-bundle',
    summary: 'Write what is needed to find a fault into one file, without secrets.',
    flags: { file: optional('FILE', 'where to; without: replicator-support-TIME.tar.gz here', parseText) },
    notes: `Tokens, keys, passwords, annotations and arguments of hooks are taken out. Names and paths of volumes, agents and
storage stay: look at the file before you give it away (tar -xzf).`,
  },
  async (session, { options }) => {
    const { client } = session;
    const now = new Date();
    const files: TarFile[] = [];
    const missing: Record<string, string> = {};
    const add = (name: string, content: unknown): void =>
      void files.push({ name, content: `${JSON.stringify(redact(content), null, 2)}\n` });
    async function take<T>(name: string, work: () => Promise<T>): Promise<T | undefined> {
      try {
        const content = await work();
        add(name, content);
        return content;
      } catch (error) {
        if (session.signal.aborted) throw error;
        missing[name] = messageOf(error);
        return undefined;
      }
    }

    type Named = { items: { metadata: { name: string } }[] };
    const lists: Record<string, Named | undefined> = {};
    for (const name of collections)
      lists[name] = await take(`${name}.json`, () => client.list<never>(`/${name}`) as Promise<Named>);
    // By number: names are as long as a tar's name may be.
    for (const [index, { metadata }] of (lists['replications']?.items ?? []).entries())
      for (const part of ['points', 'snapshots'])
        await take(`replications/${index}-${part}.json`, async () => ({
          replication: metadata.name,
          ...(await client.list(`/replications/${metadata.name}/${part}`)),
        }));
    for (const [index, { metadata }] of (lists['agents']?.items ?? []).entries())
      await take(`agents/${index}-volumes.json`, async () => ({
        agent: metadata.name,
        ...(await client.list(`/agents/${metadata.name}/volumes`)),
      }));
    for (const [name, path] of [
      ['logs/master.log', '/log'],
      ...(lists['agents']?.items ?? []).map(({ metadata }, index) => [
        `agents/${index}.log`,
        `/agents/${metadata.name}/log`,
      ]),
    ] as [string, string][])
      try {
        files.push({ name, content: redactLog((await client.get<{ text: string }>(path)).text) });
      } catch (error) {
        if (session.signal.aborted) throw error;
        missing[name] = messageOf(error);
      }
    await take('events.json', () => client.list('/events'));
    const version = await client.version().catch((error: unknown) => void (missing['version'] = messageOf(error)));
    try {
      files.push({ name: 'metrics.txt', content: redactText(await client.metrics()) });
    } catch (error) {
      missing['metrics.txt'] = messageOf(error);
    }
    for (const unit of units) {
      const argv = ['--unit', unit, '--since', '-24h', '--no-pager', '--output', 'short-iso-precise', '--quiet'];
      const { status, stdout } = spawnSync('journalctl', argv, { encoding: 'utf8', maxBuffer: maxLogBytes });
      if (status === 0 && stdout !== '') files.push({ name: `logs/${unit}.log`, content: redactLog(stdout) });
    }
    add('summary.json', {
      time: now.toISOString(),
      replctl: programVersion(),
      master: { url: client.url, version: version ?? null },
      machine: { kernel: release(), architecture: arch() },
      missing,
    });
    if (lists['replications'] === undefined) {
      session.note(`replctl: nothing could be read: ${missing['replications.json'] ?? ''}`);
      return 1;
    }
    const path = options.file ?? `replicator-support-${now.toISOString().replaceAll(/[-:]|\.\d+/g, '')}.tar.gz`;
    writeFileSync(path, gzipSync(tar(files, now)), { mode: 0o600, flag: 'wx' });
    const gaps = Object.keys(missing);
    if (gaps.length > 0) session.note(`Left out, see summary.json: ${gaps.join(', ')}`);
    session.print(path);
    return 0;
  },
);
