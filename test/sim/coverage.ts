/** Which branches of the data path the simulated seeds went through: what V8 counted, as a table of c8. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = join(import.meta.dirname, '../..');
const sides = ['agent/**', 'master/session.ts', 'master/replica/**', 'proto/{granule,line,lock,payload,stream}.ts'];
/** Of trees, groups and what is made beside the copy; on real files they are tested elsewhere. */
const notSimulated = [
  'agent/{groupcut,mapping}.ts',
  'agent/capture/bios.ts',
  'master/replica/{tree,unknown}*.ts',
  'master/replica/{proof,records,rows,snapshotlock}.ts',
];

export interface Coverage {
  /** Of the processes that simulate. */
  env: NodeJS.ProcessEnv;
  /** Once they have ended. */
  table(): string;
}

export function startCoverage(): Coverage {
  const folder = mkdtempSync(join(tmpdir(), 'coverage-'));
  return {
    env: { ...process.env, NODE_V8_COVERAGE: folder },
    table() {
      const c8 = createRequire(import.meta.url).resolve('c8/bin/c8.js');
      const flags = [
        ...sides.flatMap((one) => ['--include', one]),
        ...notSimulated.flatMap((one) => ['--exclude', one]),
      ];
      const argv = [c8, 'report', '--temp-directory', folder, '--reporter', 'text', ...flags];
      const { stdout, stderr } = spawnSync(process.execPath, argv, { cwd: root, encoding: 'utf8' });
      rmSync(folder, { recursive: true });
      return `${stdout}${stderr}`;
    },
  };
}
