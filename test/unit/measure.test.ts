import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { measure } from '../bench/processes.ts';

t.test('what a process has used counts when it is killed and another one takes its place', async (t) => {
  const burn = () => spawn('sh', ['-c', 'while :; do :; done'], { stdio: 'ignore' });
  let child = burn();
  t.teardown(() => child.kill('SIGKILL'));
  const figures = await measure(
    () => [child.pid ?? 0],
    () => 0,
    async () => {
      const ticks = () => Number(readFileSync(`/proc/${child.pid}/stat`, 'utf8').split(' ')[13]);
      while (ticks() < 10) await sleep(20);
      // Seen by the one who measures.
      await sleep(200);
      const exited = once(child, 'exit');
      child.kill('SIGKILL');
      await exited;
      child = spawn('sleep', ['60'], { stdio: 'ignore' });
    },
  );
  t.ok(figures.cpuSeconds > 0, `${figures.cpuSeconds} s of CPU`);
});
