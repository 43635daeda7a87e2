import t from 'tap';
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parse, stringify } from 'yaml';
import { promtoolTests, situations } from './situations.ts';

const folder = resolve(import.meta.dirname, '../../../dashboards');
const skip = spawnSync('promtool', ['--version']).status === 0 ? false : 'needs promtool';
interface Rules {
  groups: { rules: { alert?: string; annotations?: Record<string, string>; labels?: Record<string, string> }[] }[];
}
interface Config {
  scrape_configs: { job_name: string }[];
}
const alerts = (parse(readFileSync(join(folder, 'alerts.yaml'), 'utf8')) as Rules).groups.flatMap(({ rules }) => rules);

t.test('each alert has a situation, a severity and a place in the runbook', async (t) => {
  const names = alerts.map(({ alert }) => alert ?? '').sort();
  t.strictSame(situations.map(({ alert }) => alert).sort(), names);
  const runbook = readFileSync(join(folder, 'RUNBOOK.md'), 'utf8');
  for (const { alert = '', annotations = {}, labels = {} } of alerts) {
    t.match(labels['severity'], /^(critical|warning|info)$/, alert);
    t.equal(annotations['runbook_url'], `RUNBOOK.md#${alert.toLowerCase()}`);
    t.ok(runbook.includes(`\n## ${alert}\n`), `${alert} is in RUNBOOK.md`);
  }
});

t.test('promtool finds the rules right, and each alert fires and resolves in its situation', { skip }, async (t) => {
  const checked = spawnSync('promtool', ['check', 'rules', 'records.yaml', 'alerts.yaml'], {
    cwd: folder,
    encoding: 'utf8',
  });
  t.equal(checked.status, 0, checked.stderr);
  const config = spawnSync('promtool', ['check', 'config', '--syntax-only', 'prometheus.yaml'], {
    cwd: folder,
    encoding: 'utf8',
  });
  t.equal(config.status, 0, config.stderr);
  const jobs = (parse(readFileSync(join(folder, 'prometheus.yaml'), 'utf8')) as Config).scrape_configs;
  t.strictSame(
    jobs.map(({ job_name: name }) => `up{job="${name}"}`),
    [...new Set(readFileSync(join(folder, 'alerts.yaml'), 'utf8').match(/up\{[^}]*\}/g))],
    'the example has the name that the rules ask for',
  );
  const file = join(t.testdir({}), 'tests.yaml');
  const tests = { ...promtoolTests(), rule_files: [join(folder, 'records.yaml'), join(folder, 'alerts.yaml')] };
  writeFileSync(file, stringify(tests));
  const tested = spawnSync('promtool', ['test', 'rules', file], { encoding: 'utf8' });
  t.equal(tested.status, 0, `${tested.stdout}${tested.stderr}`);
});
