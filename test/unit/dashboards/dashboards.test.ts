import t from 'tap';
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { dashboards } from '../../../dashboards/dashboards.ts';
import { startMetrics } from '../../../master/metrics.ts';

interface Grid {
  x: number;
  y: number;
  w: number;
  h: number;
}
interface Target {
  refId: string;
  expr: string;
  format?: string;
  datasource: { uid: string };
}
interface Panel {
  id: number;
  title: string;
  type: string;
  gridPos: Grid;
  datasource: { type: string; uid: string };
  targets: Target[];
  fieldConfig: {
    defaults: {
      unit: string;
      thresholds?: { steps: { value: number | null; color: string }[] };
      links?: { url: string }[];
    };
  };
}
interface Dashboard {
  uid: string;
  title: string;
  tags: string[];
  schemaVersion: number;
  links: { type: string; tags: string[]; asDropdown: boolean; includeVars: boolean }[];
  templating: { list: { name: string; type: string; refresh?: number }[] };
  panels: Panel[];
}
const folder = resolve(import.meta.dirname, '../../../dashboards');
const all = [...dashboards()].map(([name, text]) => ({ name, dashboard: JSON.parse(text) as Dashboard }));
/** Names of Grafana's value formats that we use. */
const units = ['s', 'bytes', 'Bps', 'percentunit', 'short', 'dateTimeFromNow'];

t.test('each dashboard is what Grafana imports: ids, places, sources, variables, links', async (t) => {
  t.equal(new Set(all.map(({ dashboard }) => dashboard.uid)).size, all.length, 'uids differ');
  for (const { name, dashboard } of all) {
    const { panels, templating, links } = dashboard;
    t.ok(dashboard.schemaVersion >= 36, name);
    t.ok(dashboard.title.length > 0 && /^[a-z0-9-]{1,40}$/.test(dashboard.uid), name);
    t.match(
      links,
      [{ type: 'dashboards', tags: dashboard.tags, asDropdown: true, includeVars: true }],
      `${name}: links`,
    );
    const variables = new Map(templating.list.map((one) => [one.name, one.type]));
    t.equal(variables.get('source'), 'datasource');
    // Else the list that Grafana has after an import is empty for ever.
    for (const one of templating.list) t.ok(one.type !== 'query' || one.refresh === 2, `${name}: $${one.name} is read`);
    t.equal(new Set(panels.map(({ id }) => id)).size, panels.length, `${name}: panel ids differ`);
    for (const [index, panel] of panels.entries()) {
      const where = `${name}, ${panel.title}`;
      t.match(panel.type, /^(stat|timeseries|table)$/, where);
      t.ok(units.includes(panel.fieldConfig.defaults.unit), `${where}: unit`);
      const { x, w, h } = panel.gridPos;
      t.ok(x >= 0 && w > 0 && h > 0 && x + w <= 24, `${where}: within 24 columns`);
      for (const { format } of panel.targets)
        t.equal(format, panel.type === 'table' ? 'table' : undefined, `${where}: all series in one table`);
      for (const { url } of panel.fieldConfig.defaults.links ?? []) {
        const [, uid, variable = ''] = /^\/d\/([a-z-]+)\?var-(\w+)=\$\{__\w+\.(?:fields|labels)\.\2\}/.exec(url) ?? [];
        const target = all.find(({ dashboard }) => dashboard.uid === uid)?.dashboard;
        t.ok(
          target?.templating.list.some((one) => one.name === variable),
          `${where}: leads to a dashboard that has the variable`,
        );
        for (const { expr } of panel.targets) t.match(expr, variable, `${where}: rows have the label`);
      }
      const after = panels.slice(index + 1).filter((other) => overlap(panel.gridPos, other.gridPos));
      t.strictSame(
        after.map(({ title }) => title),
        [],
        `${where}: covers no other`,
      );
      t.equal(new Set(panel.targets.map(({ refId }) => refId)).size, panel.targets.length, where);
      for (const { uid } of [panel.datasource, ...panel.targets.map(({ datasource }) => datasource)])
        t.equal(uid, '${source}', `${where}: any Prometheus`);
      for (const { expr } of panel.targets)
        for (const [, used = ''] of expr.matchAll(/\$([a-z]\w*)/g)) t.ok(variables.has(used), `${where}: $${used}`);
      const steps = (panel.fieldConfig.defaults.thresholds?.steps ?? []).map(({ value }) => value ?? -Infinity);
      t.strictSame(
        steps,
        [...steps].sort((a, b) => a - b),
        `${where}: thresholds ascend`,
      );
    }
  }
});

t.test('panels, rules and alerts ask only for metrics that there are', async (t) => {
  const store = { list: () => [] };
  const exposed = await startMetrics({ store, clock: { nowMs: () => 0 }, version: '1' }).text();
  const metrics = new Set([...exposed.matchAll(/^# TYPE (\w+) /gm)].map((match) => match[1]));
  t.ok(metrics.size > 30);
  const asked: [string, string][] = [
    ...all.flatMap(({ name, dashboard }) =>
      dashboard.panels.flatMap(({ targets }) => targets.map(({ expr }): [string, string] => [name, expr])),
    ),
    ...['alerts.yaml', 'records.yaml'].map((name): [string, string] => [
      name,
      readFileSync(join(folder, name), 'utf8'),
    ]),
  ];
  for (const [name, text] of asked)
    for (const [metric] of text.matchAll(/\breplicator_\w+/g))
      t.ok(metrics.has(metric.replace(/_(bucket|sum|count)$/, '')) || metrics.has(metric), `${name}: ${metric}`);
});

function overlap(a: Grid, b: Grid): boolean {
  return a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;
}
