/** What views have in common: their form, lists with a filter, tables of recoveries and events. */
import { el } from './dom.js';
import { byName, span, time } from './format.js';
import { badge, linkOf, table } from './parts.js';
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
export function listOf(state, kind) {
  return [...state.objects.values()]
    .filter((object) => object.kind === kind)
    .sort((a, b) => byName(a.metadata.name, b.metadata.name));
}
const rowsAtOnce = 200;

/** A filter above, and no more rows than a browser takes well. @returns {import('./dom.js').Child[]} */
export function filtered(
  /** @type {any[]} */ objects,
  /** @type {Ui} */ ui,
  /** @type {() => void} */ redraw,
  /** @type {(shown: any[]) => import('./dom.js').Child} */ draw,
) {
  const wanted = (ui['filter'] ?? '').toLowerCase();
  const says = (/** @type {any} */ { metadata, spec, status }) =>
    JSON.stringify([metadata, spec, status]).toLowerCase();
  // Drawn each second: thousands are not looked through for nothing.
  const matching = wanted === '' ? objects : objects.filter((object) => says(object).includes(wanted));
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

/** What may be long, in a table. @param {import('./dom.js').Child | import('./dom.js').Child[]} text */
export const long = (text) => el('span', { class: 'long' }, text);
/** A time that stays on one line. @param {string | null | undefined} text */
export const moment = (text) => el('span', { class: 'time' }, time(text));

/** @param {string} place @param {string} name */
export const link = (place, name) => el('a', { href: `#/${place}/${name}` }, name);

/** @param {any[]} parts */
export function raw(...parts) {
  const text = JSON.stringify(Object.assign({}, ...parts.map((part, i) => ({ [['metadata', 'spec', 'status'][i] ?? '']: part }))), null, 2); // prettier-ignore
  return el('details', {}, el('summary', {}, t('details')), el('pre', { tabindex: 0 }, text));
}

/** @param {State} state */
export function missing(state) {
  return el('p', { class: 'quiet' }, state.synced ? t('gone') : t('loading'));
}

/** @param {any[]} list */
export function recoveryTable(list) {
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
        moment(status.startTime ?? metadata.creationTimestamp),
        span(status.rtoSeconds),
      ],
    })),
  );
}

export const levels = ['FATAL', 'ERROR', 'WARNING', 'INFO', 'TRACE'];
/** @param {any[]} events */
export function eventTable(events) {
  return table(
    t('events'),
    [t('time'), t('level'), t('code'), t('object'), t('message'), t('count')],
    events.map((event) => ({
      key: event.id,
      cells: [time(event.time), badge(event.level), event.code, linkOf(event.object), long(event.message), event.count],
    })),
  );
}

/** @param {any} source */
export function sourceText({ agent, path, pvc }) {
  return pvc ? `${pvc.cluster ? `${pvc.cluster}:` : ''}${pvc.namespace}/${pvc.name}` : `${agent}:${path}`;
}
