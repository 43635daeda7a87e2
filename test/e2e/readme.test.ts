/** The scripts of the README do what it says, as they stand there, against a real master and agent. */
import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Recovery } from '../../master/resources.ts';
import { writeNoise } from './content.ts';
import { openWorld } from './world.ts';

const root = resolve(import.meta.dirname, '../..');
const lacking = ['bash', 'curl', 'jq'].filter(
  (name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status !== 0,
);
const skip = lacking.length > 0 && `no ${lacking.join(', ')}`;

function script(name: string): string {
  const readme = readFileSync(join(root, 'README.md'), 'utf8');
  const found = new RegExp(`<!-- run: ${name} -->\\n+\`\`\`sh\\n([^]*?)\`\`\`\\n`).exec(readme)?.[1];
  if (found === undefined) throw new Error(`the README has no script ${name}`);
  return found;
}

t.test('scripts of the README', { skip }, async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'shop.img');
  writeNoise(source, 4 << 20);
  await world.startAgent();
  await world.replicate('shop', source);
  await world.normal('shop');
  const cwd = t.testdir();
  async function run(name: string): Promise<{ status: number | null; out: string }> {
    const env = {
      PATH: `${join(root, 'master')}:${process.env['PATH'] ?? ''}`,
      HOME: cwd,
      REPLICATOR_URL: world.client.url,
      REPLICATOR_TOKEN_FILE: join(world.masterDir, 'admin.token'),
    };
    const child = spawn('bash', ['-c', script(name)], { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (data: Buffer) => (out += data.toString()));
    const status = await new Promise<number | null>((done) => child.once('close', done));
    return { status, out };
  }
  t.equal(script('curl').trimEnd().split('\n').length, 10, 'as long as it says');

  const drilled = await run('curl');
  t.equal(drilled.status, 0, drilled.out);
  t.match(drilled.out, /"outcome": "success",\n +"rtoSeconds": [\d.]+,\n +"rpoSeconds": [\d.]+/);
  const failed = await run('replctl');
  t.equal(failed.status, 0, failed.out);
  const { items } = await world.client.list<Recovery>('/recoveries');
  t.same(items.map(({ spec, status }) => `${spec.type} ${status.state}`).sort(), [
    'drill RolledBack',
    'failover RolledBack',
  ]);
  const { status } = JSON.parse(readFileSync(join(cwd, 'failover.json'), 'utf8')) as Recovery;
  t.match(status, { state: 'Completed', tasks: [{ path: String }] });
  t.notOk(existsSync(status.tasks[0]?.path ?? ''), 'the copy is gone again');
  await world.normal('shop', Date.now());
});
