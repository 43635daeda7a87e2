/**
 * `npm run dashboards`: writes the JSON files that Grafana imports (10 and later) beside this file, from panels.ts. The data
 * source is a variable, so that they fit any Grafana; each links to the others by their tag.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraphThresholdsStyleConfigBuilder, GraphThresholdsStyleMode } from '@grafana/grafana-foundation-sdk/common';
import {
  DashboardBuilder,
  DashboardLinkBuilder,
  DashboardLinkType,
  DatasourceVariableBuilder,
  QueryVariableBuilder,
  ThresholdsConfigBuilder,
  ThresholdsMode,
  VariableRefresh,
  VariableSort,
  type DataSourceRef,
  type GridPos,
} from '@grafana/grafana-foundation-sdk/dashboard';
import { DataqueryBuilder, PromQueryFormat } from '@grafana/grafana-foundation-sdk/prometheus';
import { PanelBuilder as Stat } from '@grafana/grafana-foundation-sdk/stat';
import { PanelBuilder as Table } from '@grafana/grafana-foundation-sdk/table';
import { PanelBuilder as Lines } from '@grafana/grafana-foundation-sdk/timeseries';
import { pages, type Page, type Panel } from './panels.ts';

const tag = 'cdm-replicator';
/** What the variable `replication` may be. */
export const variableQuery = 'label_values(replicator_state, replication)';
const ofOne = 'cdmr-replication';
const source: DataSourceRef = { type: 'prometheus', uid: '${source}' };

function panelOf(
  { title, queries, unit, kind, thresholds, toReplication }: Panel,
  id: number,
  gridPos: GridPos,
): Stat | Lines | Table {
  const panel = kind === 'stat' ? new Stat() : kind === 'table' ? new Table() : new Lines();
  panel.id(id).gridPos(gridPos).title(title).unit(unit).datasource(source);
  if (thresholds !== undefined) {
    const [yellow, red] = thresholds;
    const colors = red < yellow ? ['red', 'yellow', 'green'] : ['green', 'yellow', 'red'];
    const values = [null, Math.min(yellow, red), Math.max(yellow, red)];
    const steps = values.map((value, index) => ({ value, color: colors[index] ?? '' }));
    panel.thresholds(new ThresholdsConfigBuilder().mode(ThresholdsMode.Absolute).steps(steps));
    if (panel instanceof Lines)
      panel.thresholdsStyle(new GraphThresholdsStyleConfigBuilder().mode(GraphThresholdsStyleMode.Dashed));
  }
  if (toReplication === true) {
    const label = kind === 'table' ? '${__data.fields.replication}' : '${__field.labels.replication}';
    panel.dataLinks([
      new DashboardLinkBuilder('This replication')
        .type(DashboardLinkType.Link)
        .url(`/d/${ofOne}?var-replication=${label}&\${source:queryparam}&\${__url_time_range}`),
    ]);
  }
  // Without the columns that are the same in each row.
  if (panel instanceof Table)
    panel.withTransformation({
      id: 'organize',
      options: { excludeByName: { Time: true }, renameByName: { Value: title } },
    });
  Object.entries(queries).forEach(([legend, expr], index) => {
    const query = new DataqueryBuilder()
      .expr(expr)
      .legendFormat(legend)
      .refId(String.fromCharCode(65 + index))
      .datasource(source);
    // One table of all series: in the other format each series is a table of its own.
    if (kind === 'table') query.format(PromQueryFormat.Table);
    panel.withTarget(kind === 'lines' ? query.range() : query.instant());
  });
  return panel;
}

/** From left to right in rows of 24 columns; a row is as high as its highest panel. */
function placed(panels: Panel[]): GridPos[] {
  let [x, y, rowHeight] = [0, 0, 0];
  return panels.map(({ kind }) => {
    const [w, h] = kind === 'stat' ? [8, 5] : [12, 8];
    if (x + w > 24) [x, y, rowHeight] = [0, y + rowHeight, 0];
    const place = { x, y, w, h };
    x += w;
    rowHeight = Math.max(rowHeight, h);
    return place;
  });
}

function dashboardOf({ uid, title, ofReplication, panels }: Page): string {
  const dashboard = new DashboardBuilder(title)
    .uid(uid)
    .tags([tag])
    .refresh('30s')
    .time({ from: 'now-6h', to: 'now' })
    .timezone('browser')
    .link(
      new DashboardLinkBuilder('Replicator')
        .type(DashboardLinkType.Dashboards)
        .tags([tag])
        .asDropdown(true)
        .keepTime(true)
        .includeVars(true),
    )
    .withVariable(new DatasourceVariableBuilder('source').label('Prometheus').type('prometheus'));
  if (ofReplication === true)
    dashboard.withVariable(
      new QueryVariableBuilder('replication')
        .label('Replication')
        .datasource(source)
        .query(variableQuery)
        .refresh(VariableRefresh.OnTimeRangeChanged)
        .sort(VariableSort.AlphabeticalAsc),
    );
  const places = placed(panels);
  for (const [index, panel] of panels.entries())
    dashboard.withPanel(panelOf(panel, index + 1, places[index] ?? { x: 0, y: 0, w: 24, h: 8 }));
  return `${JSON.stringify(dashboard.build(), null, 2)}\n`;
}

/** File name and content of each. */
export function dashboards(): Map<string, string> {
  return new Map(pages.map((page) => [`${page.uid.replace('cdmr-', '')}.json`, dashboardOf(page)]));
}

if (import.meta.main) for (const [name, text] of dashboards()) writeFileSync(join(import.meta.dirname, name), text);
