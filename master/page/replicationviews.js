/** Replications: all of them, and one with its time line, snapshots and recoveries. */
import { actionsOf, newReplication, snapshotActions } from './actions.js';
import { all, can } from './api.js';
import { el } from './dom.js';
import { ageOf, byName, nowMs, size, span, time } from './format.js';
import { ageMeter, badge, buttons, facts, progressBar, table, troubles } from './parts.js';
import { agePlot, timeLine } from './plot.js';
import { t } from './text.js';
import {
  eventTable,
  filtered,
  link,
  listOf,
  long,
  missing,
  moment,
  raw,
  recoveryTable,
  sourceText,
} from './viewparts.js';

/** @typedef {import('./viewparts.js').View} View */

/**
 * Trouble first, then what is not there yet. By what the master says, which keeps to it for a while: ages alone would make rows jump.
 * @param {any} replication
 */
function rank({ status }) {
  if (status.state === 'ERROR' || status.state === 'FAILED') return 0;
  if (degradedOf({ status }) !== undefined) return 1;
  return status.state === 'NORMAL' ? 3 : 2;
}
/** As they are listed. @param {any[]} list */
export function inOrder(list) {
  return list.toSorted((a, b) => rank(a) - rank(b) || byName(a.metadata.name, b.metadata.name));
}
/** Why it is not as it should be. @param {{ status: any }} replication @returns {string | undefined} */
function degradedOf({ status }) {
  return status.conditions.find((/** @type {any} */ one) => one.type === 'Degraded' && one.status === 'True')?.reason;
}

/** @type {View} */
export const replications = {
  title: () => t('replications'),
  kinds: ['Replication'],
  draw(state, _name, ui, redraw) {
    const list = inOrder(listOf(state, 'Replication'));
    const states = Map.groupBy(list, ({ status }) => status.state);
    const ages = list.map(({ status }) => ageOf(status)).filter((age) => age !== null);
    const late = list.filter(({ spec, status }) => (ageOf(status) ?? 0) > spec.rpoSeconds).length;
    return [
      el(
        'ul',
        { class: 'tiles' },
        ...[...states].map(([word, group]) => el('li', { key: word }, el('b', {}, group.length), badge(word))),
        ages.length === 0 ? null : el('li', { key: 'worst' }, el('b', {}, span(ages.reduce((most, age) => Math.max(most, age), 0))), t('worstAge')), // prettier-ignore
        el('li', { key: 'late' }, el('b', {}, late), t('beyond')),
      ),
      can('POST', '/replications')
        ? buttons([{ label: t('newReplication'), kind: 'primary', run: () => newReplication() }])
        : null,
      ...filtered(list, ui, redraw, (shown) =>
        table(
          t('replications'),
          [t('name'), t('state'), t('age'), t('progress'), t('source'), t('target')],
          shown.map((one) => ({
            key: one.metadata.name,
            cells: [
              link('replications', one.metadata.name),
              [badge(one.status.state), ' ', el('span', { class: 'quiet' }, degradedOf(one) ?? one.status.phase)],
              ageMeter(one),
              progressBar(one.status.progress) ?? '–',
              long(sourceText(one.spec.source)),
              one.spec.target.storageClass,
            ],
          })),
        ),
      ),
    ];
  },
};

/** @type {View} */
export const replication = {
  title: (name) => name,
  kinds: ['Replication', 'Snapshot', 'Recovery'],
  replication: (name) => name,
  events: (name) => `object=${encodeURIComponent(`Replication/${name}`)}`,
  async load(name, signal) {
    const [history, points] = await Promise.all([
      all(`/replications/${name}/history`, signal),
      all(`/replications/${name}/points`, signal),
    ]);
    return {
      samples: history.map((one) => ({ atMs: Date.parse(one.time), age: one.lagSeconds })),
      points,
    };
  },
  onMessage(state, { object }) {
    if (object.kind !== 'Replication' || state.loaded['points'] === undefined) return;
    const { points, samples } = state.loaded;
    const newest = object.status.recoveryPoint;
    if (newest !== null && (points.at(-1)?.sequence ?? -1) < newest.sequence) points.push(newest);
    const oldestMs = nowMs() - 1000 * Math.max(60, object.spec.journalSeconds);
    while (points.length > 1 && Date.parse(points[0].sourceTime) < oldestMs) points.shift();
    const before = samples.at(-1);
    // Before it moved the age was at its worst.
    const last = state.loaded['lastSyncTime'];
    const atMs = nowMs();
    if (last !== object.status.lastSyncTime && atMs - (before?.atMs ?? 0) > 500) {
      if (last) samples.push({ atMs, age: ageOf({ lastSyncTime: last }) });
      samples.push({ atMs, age: ageOf(object.status) });
    }
    state.loaded['lastSyncTime'] = object.status.lastSyncTime;
    while (samples.length > 0 && samples[0].atMs < atMs - 3_600_000) samples.shift();
  },
  draw(state, name) {
    const one = state.objects.get(`Replication/${name}`);
    if (one === undefined) return [missing(state)];
    const { spec, status, metadata } = one;
    const snapshots = listOf(state, 'Snapshot').reverse();
    const { samples = [], points = [] } = state.loaded;
    const now = { atMs: nowMs(), age: ageOf(status) };
    return [
      el('p', { class: 'states' }, badge(status.state), ' ', badge(status.phase), ' ', ageMeter(one)),
      ...troubles(status.conditions),
      progressBar(status.progress),
      buttons(actionsOf(one, snapshots), name),
      facts([
        [t('source'), `${sourceText(spec.source)} (${spec.source.volumeMode})`],
        ...(spec.source.pvc ? [/** @type {[string, any]} */ ([t('agent'), spec.source.agent || '–'])] : []),
        [t('target'), spec.target.storageClass],
        ...(spec.group ? [/** @type {[string, any]} */ ([t('group'), link('groups', spec.group)])] : []),
        [t('capture'), status.captureMethod ?? '–'],
        [t('point'), status.recoveryPoint === null ? '–' : `${time(status.recoveryPoint.sourceTime)} (${status.recoveryPoint.consistency})`], // prettier-ignore
        [t('lastVerified'), time(status.lastVerifiedTime)],
        [t('lastDrilled'), time(status.lastDrilledTime)],
        [t('used'), size(status.usedBytes)],
      ]),
      agePlot([...samples, now], spec.rpoSeconds, now.atMs),
      timeLine(points, snapshots, now.atMs),
      el('h2', {}, t('snapshots')),
      table(
        t('snapshots'),
        [t('name'), t('state'), t('point'), t('size'), '', ''],
        snapshots.map((snapshot) => ({
          key: snapshot.metadata.name,
          cells: [
            snapshot.metadata.name,
            [badge(snapshot.status.state), snapshot.status.message && long(snapshot.status.message)],
            moment(snapshot.status.point?.sourceTime),
            size(snapshot.status.sizeBytes),
            [
              snapshot.spec.pinned ? t('pinned') : null,
              ' ',
              snapshot.spec.lockedUntil === null ? null : t('locked', { time: time(snapshot.spec.lockedUntil) }),
            ],
            buttons(snapshotActions(one, snapshot, snapshots), snapshot.metadata.name),
          ],
        })),
      ),
      el('h2', {}, t('recoveries')),
      recoveryTable(listOf(state, 'Recovery')),
      el('h2', {}, t('events')),
      eventTable(state.events.slice(0, 50)),
      raw(metadata, spec, status),
    ];
  },
};
