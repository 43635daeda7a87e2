import t, { type Test } from 'tap';
import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { loopMount, missingForLoop } from '../loop.ts';
import { noise } from './content.ts';
import { openWorld } from './world.ts';

await t.test('hooks around a freeze', { skip: missingForLoop('ext4') }, (t) => hooksAround(t, 'Block'));
await t.test("hooks around a file volume's freeze", { skip: missingForLoop('ext4') }, (t) =>
  hooksAround(t, 'Filesystem'),
);

async function hooksAround(t: Test, volumeMode: 'Block' | 'Filesystem'): Promise<void> {
  const { device, mountPoint, directory } = await loopMount(t, 'ext4', 64);
  const source = volumeMode === 'Block' ? device : mountPoint;
  const hooks = join(directory, 'hooks');
  const log = join(directory, 'log');
  mkdirSync(hooks);
  const hook = (name: string, script: string): string => {
    writeFileSync(join(hooks, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(hooks, name), 0o755);
    return join(hooks, name);
  };
  const before = hook('before', `echo "before $1 $REPLICATION" >> ${log}; [ ! -e ${directory}/fail ] || { echo no; exit 3; }; [ ! -e ${directory}/hang ] || sleep 600`); // prettier-ignore
  const after = hook('after', `echo after >> ${log}; touch ${mountPoint}/writable`);
  const stranger = hook('stranger', 'exit 0');
  const world = await openWorld(t, { allow: [source, before, after] });
  await world.startAgent();
  await world.replicate('hooked', source, {
    volumeMode,
    consistency: 'filesystem',
    hooks: { beforeFreeze: [before, 'a b'], afterThaw: [after], timeoutSeconds: 2 },
  });
  const lines = (): string[] => (existsSync(log) ? readFileSync(log, 'utf8').trim().split('\n') : []);
  const change = (): void => writeFileSync(join(mountPoint, 'changed'), noise(100_000));
  const refusedCuts = (): Promise<number> => world.metric('cuts_refused_total', 'reason="hook"');
  const refusedBy = async (pattern: RegExp): Promise<void> => {
    const before = await refusedCuts();
    await world.until(`a cut is refused by ${String(pattern)}`, async () => {
      change();
      const { status } = await world.get('hooked');
      return status.conditions.some(
        ({ type, reason, message }) => type === 'Degraded' && reason === 'NoConsistentCut' && pattern.test(message),
      );
    });
    const points = await world.points('hooked');
    rmSync(join(mountPoint, 'writable'), { force: true });
    await world.until('afterThaw runs all the same, and the workload can write', async () =>
      existsSync(join(mountPoint, 'writable')),
    );
    t.same((await world.points('hooked')).length, points.length, 'no point');
    await world.until('it is counted', async () => (await refusedCuts()) > before);
    const ended = (await world.events()).find(({ code }) => code === 'SourceTrouble');
    t.equal(ended, undefined, 'the session goes on');
  };

  await world.normal('hooked');
  t.same(lines().slice(0, 2), ['before a b hooked', 'after'], 'in turn, with their arguments');

  await t.test('one that fails makes no point, and says why', async () => {
    writeFileSync(join(directory, 'fail'), '');
    await refusedBy(/hook beforeFreeze: .*before: exit status 3: no/);
    rmSync(join(directory, 'fail'));
    await world.normal('hooked', Date.now());
  });

  await t.test('one that hangs is killed when its time is over', async () => {
    writeFileSync(join(directory, 'hang'), '');
    await refusedBy(/hook beforeFreeze: .*no end within 2 s/);
    rmSync(join(directory, 'hang'));
    await world.normal('hooked', Date.now());
  });

  await t.test('an agent killed in between: afterThaw runs at the next start', async (t) => {
    writeFileSync(join(directory, 'hang'), '');
    const begun = lines().length;
    change();
    await world.until('a hook is running', async () => lines().length > begun && lines().at(-1)?.startsWith('before'));
    await world.agent.kill();
    rmSync(join(directory, 'hang'));
    const killed = lines().length;
    await world.startAgent();
    await world.normal('hooked', Date.now());
    t.equal(lines()[killed], 'after', 'before anything else');
  });

  await t.test('what this node does not list never runs', async () => {
    const spec = { hooks: { beforeFreeze: [stranger], afterThaw: [], timeoutSeconds: 2 } };
    await world.client.send('PATCH', '/replications/hooked', { spec });
    await world.until('it is refused', async () => {
      change();
      const { status } = await world.get('hooked');
      return status.conditions.some(({ message }) => /stranger may not be run: start this program/.test(message));
    });
  });
}
