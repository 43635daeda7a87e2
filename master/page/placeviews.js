/** Where things run and lie - agents, volumes, storage classes - and what happened. */
import { newReplication } from './actions.js';
import { all, can } from './api.js';
import { el } from './dom.js';
import { size, time } from './format.js';
import { badge, buttons, facts, progressBar, table, troubles } from './parts.js';
import { t } from './text.js';
import { eventTable, filtered, levels, link, listOf, long, missing, moment, raw } from './viewparts.js';

/** @typedef {import('./viewparts.js').View} View */

/** Those that are not connected come first. @param {any} agent */
const away = ({ status }) => (status.state === 'ACTIVE' ? 1 : 0);

/** @type {View} */
export const agents = {
  title: () => t('agents'),
  kinds: ['Agent'],
  draw: (state, _name, ui, redraw) =>
    filtered(
      listOf(state, 'Agent').sort((a, b) => away(a) - away(b)),
      ui,
      redraw,
      (shown) =>
        table(
          t('agents'),
          [t('name'), t('state'), t('message'), t('role'), t('version'), t('lastSeen')],
          shown.map(({ metadata, spec, status }) => ({
            key: metadata.name,
            cells: [
              link('agents', metadata.name),
              badge(status.state),
              long(status.message),
              spec.role,
              status.version ?? '–',
              moment(status.lastSeenTime),
            ],
          })),
        ),
    ),
};

/** @type {View} */
export const agent = {
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
            long(el('code', {}, volume.csi?.claim ?? volume.path)),
            [volume.kind, ' ', volume.volumeMode, ' ', volume.filesystem],
            size(volume.sizeBytes),
            volume.eligible ? t('yes') : long(`${t('no')}: ${volume.reason ?? ''}`),
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
export const storage = {
  title: () => t('storage'),
  kinds: ['StorageClass'],
  draw: (state) => [
    ...listOf(state, 'StorageClass').flatMap(({ metadata, status }) => troubles(status.conditions, metadata.name)),
    table(
      t('storage'),
      [t('name'), t('driver'), t('path'), t('used'), t('capacity')],
      listOf(state, 'StorageClass').map(({ metadata, spec, status }) => ({
        key: metadata.name,
        cells: [
          metadata.displayName ?? metadata.name,
          spec.driver,
          long(el('code', {}, spec.parameters?.path ?? spec.parameters?.storageClassName ?? '–')),
          progressBar(status.capacityBytes === null ? null : { bytesTotal: status.capacityBytes, bytesDone: status.usedBytes ?? 0 }) ?? '–', // prettier-ignore
          size(status.capacityBytes),
        ],
      })),
    ),
  ],
};

/** @type {View} */
export const events = {
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
