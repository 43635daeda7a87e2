import t from 'tap';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { holdData } from '../../../proto/hold.ts';

t.test('a data directory is held by one process until that one is gone', async (t) => {
  const dir = t.testdir();
  const module = JSON.stringify(new URL('../../../proto/hold.ts', import.meta.url).pathname);
  const text = `import { holdData } from ${module}; holdData(${JSON.stringify(dir)}); console.log('held'); setInterval(() => {}, 1000);`;
  const other = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', text], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => other.kill('SIGKILL'));
  await once(other.stdout, 'data');
  t.throws(() => holdData(dir), /is in use by another running process/);
  const exited = once(other, 'exit');
  other.kill('SIGKILL');
  await exited;
  t.doesNotThrow(() => holdData(dir), 'a crash leaves no lock behind');
  t.throws(() => holdData(dir), /in use/, 'nor twice in one process');
});
