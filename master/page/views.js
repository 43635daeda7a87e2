/**
 * Every view: what it needs of the API, and how it looks. Views draw what they are given, anew after each change; what a
 * person has chosen in a view is in `ui`.
 */
import { actionsOf, mayRecover, newReplication, recover, recoveryActions, snapshotActions } from './actions.js';
import { all, can } from './api.js';
import { el } from './dom.js';
import { ageOf, nowMs, size, span, time } from './format.js';
import { ageMeter, badge, buttons, facts, linkOf, progressBar, table, troubles } from './parts.js';
import { agePlot, timeLine } from './plot.js';
import { t } from './text.js';

/**
 * @typedef {object} State what the streams and the loading have brought
 * @property {Map<string, any>} objects by kind/name
 * @property {any[]} events newest first
 * @property {Record<string, any>} loaded
 * @property {boolean} synced the first of all has come
 * @typedef {Record<string, any>} Ui
 * @typedef {object} View
 * @property {(name: string) => string} title
 * @property {string[]} kinds
 * @property {(name: string) => string | undefined} [replication] the one that Snapshots and all are of
 * @property {(name: string) => string} [events] query of the events to show
 * @property {(name: string, signal: AbortSignal) => Promise<Record<string, any>>} [load]
 * @property {(state: State, message: { type: string, object: any }) => void} [onMessage]
 * @property {(state: State, name: string, ui: Ui, redraw: () => void) => (import('./dom.js').Child | import('./dom.js').Child[])[]} draw
 */

/** @param {State} state @param {string} kind @returns {any[]} */
function listOf(state, kind) {
  return [...state.objects.values()]
    .filter((object) => object.kind === kind)
    .sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1));
}
const rowsAtOnce = 200;

/** A filter above, and no more rows than a browser takes well. @returns {import('./dom.js').Child[]} */
function filtered(
  /** @type {any[]} */ objects,
  /** @type {Ui} */ ui,
  /** @type {() => void} */ redraw,
  /** @type {(shown: any[]) => import('./dom.js').Child} */ draw,
) {
  const wanted = (ui['filter'] ?? '').toLowerCase();
  const matching = objects.filter((object) => JSON.stringify([object.metadata, object.spec, object.status]).toLowerCase().includes(wanted)); // prettier-ignore
  const limit = ui['limit'] ?? rowsAtOnce;
  return [
    el(
      'div',
      { class: 'filter' },
      el('label', { for: 'filter' }, t('filter')),
      el('input', {
        id: 'filter',
        type: 'search',
        placeholder: t('filterHint'),
        oninput: (/** @type {any} */ { target }) => {
          ui['filter'] = target.value;
          redraw();
        },
      }),
    ),
    matching.length === 0 && objects.length > 0
      ? el('p', { class: 'quiet' }, t('noMatch'))
      : draw(matching.slice(0, limit)),
    matching.length > limit
      ? el('button', { type: 'button', onclick: () => { ui['limit'] = limit + rowsAtOnce; redraw(); } }, t('more', { n: Math.min(rowsAtOnce, matching.length - limit) })) // prettier-ignore
      : null,
  ];
}

/** @param {string} place @param {string} name */
const link = (place, name) => el('a', { href: `#/${place}/${name}` }, name);

/** @type {View} */
const replications = {
  title: () => t('replications'),
  kinds: ['Replication'],
  draw(state, _name, ui, redraw) {
    const list = listOf(state, 'Replication');
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
              [badge(one.status.state), ' ', el('span', { class: 'quiet' }, one.status.phase)],
              ageMeter(one),
              progressBar(one.status.progress) ?? '–',
              `${one.spec.source.agent}:${one.spec.source.path}`,
              one.spec.target.storageClass,
            ],
          })),
        ),
      ),
    ];
  },
};

/** @type {View} */
const replication = {
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
        [t('source'), `${spec.source.agent}:${spec.source.path} (${spec.source.volumeMode})`],
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
            [badge(snapshot.status.state), ' ', snapshot.status.message],
            time(snapshot.status.point?.sourceTime),
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

/** @param {any[]} parts */
function raw(...parts) {
  const text = JSON.stringify(Object.assign({}, ...parts.map((part, i) => ({ [['metadata', 'spec', 'status'][i] ?? '']: part }))), null, 2); // prettier-ignore
  return el('details', {}, el('summary', {}, t('details')), el('pre', { tabindex: 0 }, text));
}

/** @param {State} state */
function missing(state) {
  return el('p', { class: 'quiet' }, state.synced ? t('gone') : t('loading'));
}

/** @param {any[]} list */
function recoveryTable(list) {
  const newest = [...list].sort((a, b) => (a.metadata.creationTimestamp < b.metadata.creationTimestamp ? 1 : -1));
  return table(
    t('recoveries'),
    [t('name'), t('type'), t('what'), t('state'), t('outcome'), t('started'), t('rto')],
    newest.map(({ metadata, spec, status }) => ({
      key: metadata.name,
      cells: [
        link('recoveries', metadata.name),
        t(spec.type),
        spec.group ? link('groups', spec.group) : link('replications', spec.replication),
        badge(status.state),
        badge(status.outcome),
        time(status.startTime ?? metadata.creationTimestamp),
        span(status.rtoSeconds),
      ],
    })),
  );
}

/** @type {View} */
const recoveries = {
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
              [t('name'), t('state'), t('what')],
              schedules.map(({ metadata, spec, status }) => ({
                key: metadata.name,
                cells: [
                  metadata.name,
                  badge(status?.state ?? null),
                  `${spec.type ?? ''} ${spec.group ?? spec.replication ?? ''}`,
                ],
              })),
            ),
          ]),
    ];
  },
};

/** @type {View} */
const recovery = {
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
              [task.point && time(task.point.sourceTime), `${time(task.startTime)} – ${time(task.endTime)}`]
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

/** @type {View} */
const groups = {
  title: () => t('groups'),
  kinds: ['Replication', 'Recovery'],
  load: async (_name, signal) => ({ groups: await all('/groups', signal) }),
  onMessage: readGroups,
  draw: (state, _name, ui, redraw) =>
    filtered(state.loaded['groups'] ?? [], ui, redraw, (shown) =>
      table(
        t('groups'),
        [t('name'), t('state'), t('members'), t('rpo'), t('rto')],
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
const group = {
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
        [t('rpo'), span(spec.rpoSeconds)],
        [t('rto'), span(spec.rtoSeconds)],
      ]),
      el('h2', {}, t('members')),
      table(
        t('members'),
        [t('name'), t('startOrder'), t('state'), t('age')],
        status.members.map((/** @type {any} */ { replication, startOrder, state: word }) => {
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

/** @type {View} */
const agents = {
  title: () => t('agents'),
  kinds: ['Agent'],
  draw: (state, _name, ui, redraw) =>
    filtered(listOf(state, 'Agent'), ui, redraw, (shown) =>
      table(
        t('agents'),
        [t('name'), t('state'), t('message'), t('role'), t('version'), t('lastSeen')],
        shown.map(({ metadata, spec, status }) => ({
          key: metadata.name,
          cells: [
            link('agents', metadata.name),
            badge(status.state),
            status.message,
            spec.role,
            status.version ?? '–',
            time(status.lastSeenTime),
          ],
        })),
      ),
    ),
};

/** @type {View} */
const agent = {
  title: (name) => name,
  kinds: ['Agent', 'Replication'],
  events: (name) => `object=${encodeURIComponent(`Agent/${name}`)}`,
  load: async (name, signal) => ({ volumes: await all(`/agents/${name}/volumes`, signal) }),
  draw(state, name) {
    const one = state.objects.get(`Agent/${name}`);
    if (one === undefined) return [missing(state)];
    const { spec, status, metadata } = one;
    const mirrored = listOf(state, 'Replication').filter((other) => other.spec.source.agent === name);
    const by = new Map(mirrored.map((other) => [other.spec.source.path, other.metadata.name]));
    return [
      el('p', { class: 'states' }, badge(status.state), ' ', status.message),
      facts([
        [t('role'), spec.role],
        [t('version'), status.version ?? '–'],
        [t('kernel'), status.kernel ?? '–'],
        [t('lastSeen'), time(status.lastSeenTime)],
      ]),
      el('h2', {}, t('volumes')),
      table(
        t('volumes'),
        [t('path'), t('type'), t('size'), t('eligible'), t('replications')],
        (state.loaded['volumes'] ?? []).map((/** @type {any} */ volume) => ({
          key: volume.path,
          cells: [
            el('code', {}, volume.csi?.claim ?? volume.path),
            [volume.kind, ' ', volume.volumeMode, ' ', volume.filesystem],
            size(volume.sizeBytes),
            volume.eligible ? t('yes') : `${t('no')}: ${volume.reason ?? ''}`,
            by.has(volume.path)
              ? link('replications', by.get(volume.path) ?? '')
              : volume.eligible && can('POST', '/replications')
                ? buttons(
                    [{ label: t('newReplication'), run: () => newReplication({ agent: name, path: volume.path }) }],
                    volume.path,
                  )
                : null,
          ],
        })),
      ),
      el('h2', {}, t('events')),
      eventTable(state.events.slice(0, 50)),
      raw(metadata, spec, status),
    ];
  },
};

/** @type {View} */
const storage = {
  title: () => t('storage'),
  kinds: ['StorageClass'],
  draw: (state) => [
    ...listOf(state, 'StorageClass').flatMap(({ status }) => troubles(status.conditions)),
    table(
      t('storage'),
      [t('name'), t('driver'), t('path'), t('used'), t('capacity')],
      listOf(state, 'StorageClass').map(({ metadata, spec, status }) => ({
        key: metadata.name,
        cells: [
          metadata.displayName ?? metadata.name,
          spec.driver,
          el('code', {}, spec.parameters?.path ?? '–'),
          progressBar(status.capacityBytes === null ? null : { bytesTotal: status.capacityBytes, bytesDone: status.usedBytes ?? 0 }) ?? '–', // prettier-ignore
          size(status.capacityBytes),
        ],
      })),
    ),
  ],
};

const levels = ['FATAL', 'ERROR', 'WARNING', 'INFO', 'TRACE'];
/** @param {any[]} events */
function eventTable(events) {
  return table(
    t('events'),
    [t('time'), t('level'), t('code'), t('object'), t('message'), t('count')],
    events.map((event) => ({
      key: event.id,
      cells: [time(event.time), badge(event.level), event.code, linkOf(event.object), event.message, event.count],
    })),
  );
}
/** @type {View} */
const events = {
  title: () => t('events'),
  kinds: [],
  events: (name) => (levels.includes(name) ? `level=${name}` : ''),
  draw: (state, name) => [
    el(
      'nav',
      { class: 'levels', 'aria-label': t('level') },
      ...['', ...levels].map((level) =>
        el(
          'a',
          { href: `#/events${level && `/${level}`}`, 'aria-current': level === name ? 'page' : null },
          level || t('levelAll'),
        ),
      ),
    ),
    eventTable(state.events),
  ],
};

/** By the place in the address; with a name the second one. `needs`: the route without which there is no such thing here.
 * @type {Record<string, { many: View, one?: View, needs: string }>} */
export const views = {
  replications: { many: replications, one: replication, needs: '/replications' },
  groups: { many: groups, one: group, needs: '/groups' },
  recoveries: { many: recoveries, one: recovery, needs: '/recoveries' },
  agents: { many: agents, one: agent, needs: '/agents' },
  storage: { many: storage, needs: '/storageclasses' },
  events: { many: events, one: events, needs: '/events' },
};
/** The list that a kind has: kinds that this master does not know are not asked for. @type {Record<string, string>} */
export const collections = {
  Replication: '/replications',
  Snapshot: '/replications/{name}/snapshots',
  Recovery: '/recoveries',
  RecoverySchedule: '/recoveryschedules',
  Agent: '/agents',
  StorageClass: '/storageclasses',
};
