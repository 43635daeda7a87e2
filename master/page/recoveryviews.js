/** Recoveries as they run and when they are planned, and the groups that are recovered together. */
import { mayRecover, recover, recoveryActions } from './actions.js';
import { all } from './api.js';
import { el } from './dom.js';
import { byName, span, time } from './format.js';
import { ageMeter, badge, buttons, facts, progressBar, table } from './parts.js';
import { t } from './text.js';
import { eventTable, filtered, link, listOf, long, missing, moment, raw, recoveryTable } from './viewparts.js';

/** @typedef {import('./viewparts.js').View} View */
/** @typedef {import('./viewparts.js').State} State */

/** @type {View} */
export const recoveries = {
  title: () => t('recoveries'),
  kinds: ['Recovery', 'RecoverySchedule'],
  draw(state, _name, ui, redraw) {
    const schedules = listOf(state, 'RecoverySchedule');
    return [
      ...filtered(listOf(state, 'Recovery'), ui, redraw, recoveryTable),
      ...(schedules.length === 0
        ? []
        : [
            el('h2', {}, t('recoverySchedules')),
            table(
              t('recoverySchedules'),
              [t('name'), t('state'), t('type'), t('what'), t('repeat'), t('next'), t('lastOne'), t('message')],
              schedules.map(({ metadata, spec, status }) => ({
                key: metadata.name,
                cells: [
                  metadata.name,
                  [badge(status.state), ' ', spec.paused ? t('paused') : null],
                  t(spec.type),
                  spec.group ? link('groups', spec.group) : link('replications', spec.replication),
                  // once, hourly, daily, weekly, monthly
                  t(spec.repeat),
                  moment(status.nextTime),
                  status.lastRecovery === null ? moment(status.lastTime) : link('recoveries', status.lastRecovery),
                  long(status.message),
                ],
              })),
            ),
          ]),
    ];
  },
};

/** @type {View} */
export const recovery = {
  title: (name) => name,
  kinds: ['Recovery'],
  events: (name) => `object=${encodeURIComponent(`Recovery/${name}`)}`,
  draw(state, name) {
    const one = state.objects.get(`Recovery/${name}`);
    if (one === undefined) return [missing(state)];
    const { spec, status, metadata } = one;
    return [
      el('p', { class: 'states' }, t(spec.type), ' ', badge(status.state), ' ', badge(status.outcome)),
      status.message === null
        ? null
        : el('p', { class: status.outcome === 'failed' ? 'notice bad' : 'notice' }, status.message),
      buttons(recoveryActions(one), name),
      facts([
        [t('what'), spec.group ? link('groups', spec.group) : link('replications', spec.replication)],
        [t('recoverTo'), typeof spec.point === 'string' ? spec.point : (spec.point.snapshot ?? time(spec.point.time))],
        [t('point'), time(status.point?.sourceTime)],
        [t('rpo'), span(status.rpoSeconds)],
        [t('rto'), span(status.rtoSeconds)],
        [t('verified'), status.verified === null ? '–' : t(status.verified ? 'yes' : 'no')],
        [t('started'), time(status.startTime)],
        [t('ended'), time(status.endTime)],
      ]),
      el('h2', {}, t('steps')),
      el(
        'ol',
        { class: 'steps' },
        ...status.tasks.map((/** @type {any} */ task) =>
          el(
            'li',
            { key: task.volume, class: task.state },
            el(
              'p',
              {},
              el('strong', {}, task.volume),
              ' ',
              badge(task.state),
              ' ',
              el('span', { class: 'quiet' }, task.message),
            ),
            progressBar(task.progress),
            task.path === null ? null : el('p', {}, el('code', {}, task.path)),
            task.check
              ? el(
                  'p',
                  {},
                  t('checked', { status: task.check.exitStatus ?? '–', seconds: span(task.check.durationSeconds) }),
                )
              : null,
            task.check?.output ? el('pre', { tabindex: 0 }, task.check.output) : null,
            el(
              'p',
              { class: 'quiet' },
              [
                task.point && `${t('point')} ${time(task.point.sourceTime)}`,
                task.startTime && `${t('started')} ${time(task.startTime)}`,
                task.endTime && `${t('ended')} ${time(task.endTime)}`,
              ]
                .filter(Boolean)
                .join(' · '),
            ),
          ),
        ),
      ),
      el('h2', {}, t('events')),
      eventTable(state.events.slice(0, 50)),
      raw(metadata, spec, status),
    ];
  },
};

let isReadingGroups = false;
/**
 * Groups have no stream: what they are is computed from their members and recoveries when they are read. So they are
 * read again after these have changed, at most once a second.
 * @param {State} state
 */
function readGroups(state) {
  if (isReadingGroups) return;
  isReadingGroups = true;
  setTimeout(() => {
    all('/groups', AbortSignal.timeout(10_000))
      .then((groups) => (state.loaded['groups'] = groups))
      // The stream says that the line is cut; what comes on it afterwards reads them again.
      .catch(() => undefined)
      .finally(() => (isReadingGroups = false));
  }, 1000);
}

/** @param {any[]} list */
function troubleFirst(list) {
  const rank = (/** @type {any} */ { status }) => ['WARNING', 'PREPARING', 'NORMAL'].indexOf(status.state);
  return [...list].sort((a, b) => rank(a) - rank(b) || byName(a.metadata.name, b.metadata.name));
}

/** @type {View} */
export const groups = {
  title: () => t('groups'),
  kinds: ['Replication', 'Recovery'],
  load: async (_name, signal) => ({ groups: await all('/groups', signal) }),
  onMessage: readGroups,
  draw: (state, _name, ui, redraw) =>
    filtered(troubleFirst(state.loaded['groups'] ?? []), ui, redraw, (shown) =>
      table(
        t('groups'),
        [t('name'), t('state'), t('members'), t('rpoTarget'), t('rtoTarget')],
        shown.map(({ metadata, spec, status }) => ({
          key: metadata.name,
          cells: [
            link('groups', metadata.name),
            badge(status.state),
            status.members.length,
            span(spec.rpoSeconds),
            span(spec.rtoSeconds),
          ],
        })),
      ),
    ),
};

/** @type {View} */
export const group = {
  title: (name) => name,
  kinds: ['Replication', 'Recovery'],
  load: groups.load,
  onMessage: readGroups,
  events: (name) => `object=${encodeURIComponent(`Group/${name}`)}`,
  draw(state, name) {
    const { groups } = state.loaded;
    const one = groups?.find((/** @type {any} */ { metadata }) => metadata.name === name);
    if (one === undefined) return [missing({ ...state, synced: groups !== undefined })];
    const { spec, status } = one;
    const types = /** @type {('drill' | 'failover')[]} */ (['drill', 'failover']).filter(mayRecover);
    return [
      el('p', { class: 'states' }, badge(status.state)),
      status.message === null
        ? null
        : el('p', { class: status.state === 'WARNING' ? 'notice bad' : 'notice' }, status.message),
      buttons(
        types.map((type) => ({
          label: t(type),
          kind: type === 'drill' ? /** @type {const} */ ('primary') : /** @type {const} */ ('danger'),
          run: () => recover(one, [], type),
        })),
        name,
      ),
      facts([
        [t('target'), badge(status.targetState)],
        [t('recoverable'), time(status.recoverableTime)],
        [t('rpoTarget'), span(spec.rpoSeconds)],
        [t('rtoTarget'), span(spec.rtoSeconds)],
      ]),
      el('h2', {}, t('members')),
      table(
        t('members'),
        [t('name'), t('startOrder'), t('state'), t('age')],
        [...status.members]
          .sort((a, b) => a.startOrder - b.startOrder || byName(a.replication, b.replication))
          .map((/** @type {any} */ { replication, startOrder, state: word }) => {
            const member = state.objects.get(`Replication/${replication}`);
            return {
              key: replication,
              cells: [
                link('replications', replication),
                startOrder,
                badge(word),
                member === undefined ? '–' : ageMeter(member),
              ],
            };
          }),
      ),
      el('h2', {}, t('recoveries')),
      recoveryTable(listOf(state, 'Recovery').filter(({ spec }) => spec.group === name)),
      el('h2', {}, t('events')),
      eventTable(state.events.slice(0, 50)),
      raw(one.metadata, spec, status),
    ];
  },
};
