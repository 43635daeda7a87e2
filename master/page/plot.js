/** Drawings: the age of a copy against its target, and the time line of recovery points and snapshots. Pure of state. */
import { el } from './dom.js';
import { span, time } from './format.js';
import { t } from './text.js';

const width = 720;
const left = 52;
const right = 8;

/** @param {number} from @param {number} to @returns {(atMs: number) => number} */
function scale(from, to) {
  return (atMs) => left + ((width - left - right) * (atMs - from)) / Math.max(1, to - from);
}
/** A round number of at least this, for the top of an axis. @param {number} value */
export function ceiling(value) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 43_200, 86_400];
  return steps.find((step) => step >= value) ?? Math.ceil(value / 86_400) * 86_400;
}

/**
 * @param {{ atMs: number, age: number | null }[]} samples oldest first; null: unknown, a gap
 * @param {number} target seconds
 * @param {number} nowMs
 */
export function agePlot(samples, target, nowMs) {
  const [top, bottom, height] = [10, 150, 172];
  const from = Math.min(nowMs - 60_000, samples[0]?.atMs ?? nowMs);
  const x = scale(from, nowMs);
  const ages = samples.flatMap(({ age }) => (age === null ? [] : [age]));
  const worst = ages.reduce((most, age) => Math.max(most, age), 0);
  const most = ceiling(Math.max(worst, target) * 1.1);
  const y = (/** @type {number} */ age) => bottom - ((bottom - top) * Math.min(age, most)) / most;
  let line = '';
  let isOpen = false;
  for (const { atMs, age } of samples) {
    if (age !== null) line += `${isOpen ? 'L' : 'M'}${x(atMs).toFixed(1)} ${y(age).toFixed(1)}`;
    isOpen = age !== null;
  }
  const text = t('plotText', { now: span(ages.at(-1)), worst: span(worst), target: span(target) });
  return el(
    'figure',
    { class: 'plot' },
    el('figcaption', {}, el('strong', {}, t('plotTitle')), ' ', el('span', { class: 'quiet' }, text)),
    el(
      'svg',
      { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${t('plotTitle')}. ${text}` },
      el('rect', {
        class: 'beyond',
        x: left,
        y: top,
        width: width - left - right,
        height: Math.max(0, y(target) - top),
      }),
      ...[0, most / 2, most].flatMap((age) => [
        el('line', { class: 'grid', x1: left, x2: width - right, y1: y(age), y2: y(age) }),
        el('text', { class: 'axis', x: left - 6, y: y(age) + 4, 'text-anchor': 'end' }, span(age)),
      ]),
      el('line', { class: 'target', x1: left, x2: width - right, y1: y(target), y2: y(target) }),
      el(
        'text',
        { class: 'axis', x: width - right, y: y(target) - 5, 'text-anchor': 'end' },
        t('targetLine', { target: span(target) }),
      ),
      el('path', { class: 'age', d: line === '' ? 'M0 0' : line }),
      ...timeAxis(from, nowMs, height - 4),
    ),
  );
}

/** @param {number} from @param {number} nowMs @param {number} y */
function timeAxis(from, nowMs, y) {
  const label = (/** @type {number} */ atMs, /** @type {string} */ anchor, /** @type {string} */ text) =>
    el('text', { class: 'axis', x: scale(from, nowMs)(atMs), y, 'text-anchor': anchor }, text);
  return [label(from, 'start', time(new Date(from).toISOString())), label(nowMs, 'end', t('now'))];
}

/** Of a mark: so near to each other they would cover one another, and are one with a number. */
const markWidth = 18;
/** Snapshots that a mark tells of by name. */
const maxTold = 12;

/**
 * What stands together on a line, in its order. Pure.
 * @template T
 * @param {T[]} items
 * @param {(item: T) => number} x
 * @returns {{ at: number, items: T[] }[]}
 */
export function groupsOf(items, x) {
  /** @type {{ at: number, items: T[] }[]} */
  const groups = [];
  for (const item of items.toSorted((a, b) => x(a) - x(b))) {
    const last = groups.at(-1);
    if (last && x(item) - last.at < markWidth) last.items.push(item);
    else groups.push({ at: x(item), items: [item] });
  }
  return groups;
}

/** What needs looking at goes before what does not. */
function stateOf(/** @type {any[]} */ snapshots) {
  const states = snapshots.map(({ status }) => status.state);
  return ['Failed', 'Deleting', 'Creating'].find((state) => states.includes(state)) ?? 'Ready';
}

/**
 * @param {{ sourceTime: string }[]} points oldest first
 * @param {any[]} snapshots
 * @param {number} nowMs
 */
export function timeLine(points, snapshots, nowMs) {
  const height = 96;
  const taken = snapshots.filter(({ status }) => status.point !== null);
  const times = [...points.map(({ sourceTime }) => sourceTime), ...taken.map(({ status }) => status.point.sourceTime)];
  const from = times.reduce((least, one) => Math.min(least, Date.parse(one)), nowMs - 60_000);
  const x = scale(from, nowMs);
  // One mark for each pixel at most, however many points there are.
  const columns = new Set(points.map(({ sourceTime }) => Math.round(x(Date.parse(sourceTime)))));
  const marks = [...columns].map((at) => `M${at} 52v16`).join('');
  const isLocked = (/** @type {any} */ { spec }) => spec.lockedUntil !== null && Date.parse(spec.lockedUntil) > nowMs;
  const text = t('timelineText', {
    points: points.length,
    from: time(new Date(from).toISOString()),
    snapshots: taken.length,
    locked: taken.filter(isLocked).length,
  });
  return el(
    'figure',
    { class: 'plot' },
    el('figcaption', {}, el('strong', {}, t('timeline')), ' ', el('span', { class: 'quiet' }, text)),
    el(
      'svg',
      { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${t('timeline')}. ${text}` },
      el('line', { class: 'grid', x1: left, x2: width - right, y1: 60, y2: 60 }),
      el('path', { class: 'points', d: marks === '' ? 'M0 0' : marks }),
      ...groupsOf(taken, (snapshot) => x(Date.parse(snapshot.status.point.sourceTime))).map(({ at, items }) => {
        const locked = items.some(isLocked);
        const shown = items.slice(0, maxTold).map((snapshot) => {
          const about = [snapshot.metadata.name, time(snapshot.status.point.sourceTime), snapshot.status.state];
          if (snapshot.spec.pinned) about.push(t('pinned'));
          if (isLocked(snapshot)) about.push(t('locked', { time: time(snapshot.spec.lockedUntil) }));
          return about.join(', ');
        });
        if (items.length > maxTold) shown.push(t('andOthers', { count: items.length - maxTold }));
        return el(
          'g',
          {
            key: items[0].metadata.name,
            class: `snapshot ${stateOf(items)}`,
            transform: `translate(${at.toFixed(1)} 34)`,
          },
          el('svg:title', {}, shown.join('\n')),
          el('path', { d: 'M0 -9L9 0L0 9L-9 0Z' }),
          el('line', { class: 'grid', x1: 0, x2: 0, y1: 9, y2: 26 }),
          locked ? el('path', { class: 'mark', d: 'M-3.500 -1h7v5h-7zM-2 -1v-2a2 2 0 0 1 4 0v2' }) : null,
          !locked && items.some(({ spec }) => spec.pinned) ? el('circle', { class: 'mark', r: 2.5 }) : null,
          items.length > 1
            ? el('text', { class: 'axis count', y: -13, 'text-anchor': 'middle' }, String(items.length))
            : null,
        );
      }),
      ...timeAxis(from, nowMs, height - 6),
    ),
  );
}
