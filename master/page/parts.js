/** Pieces that several views use. */
import { el } from './dom.js';
import { ageOf, size, span } from './format.js';
import { t } from './text.js';

/** How a word is to be coloured; the word itself is always there. @type {Record<string, string>} */
const moods = {
  NORMAL: 'good', Mirroring: 'good', ACTIVE: 'good', Ready: 'good', Completed: 'good', Confirmed: 'good', success: 'good',
  PREPARING: 'busy', InitialSync: 'busy', Resyncing: 'busy', Verifying: 'busy', Creating: 'busy', Running: 'busy', Promoting: 'busy',
  RollingBack: 'busy', Confirming: 'busy', Cancelling: 'busy', Waiting: 'busy', Deleting: 'busy',
  WARNING: 'warn', Paused: 'warn', Disconnected: 'warn', 'CONN FAILED': 'warn', 'NO CONN INFO': 'warn', Degraded: 'warn',
  ERROR: 'bad', FAILED: 'bad', FATAL: 'bad', Failed: 'bad', failed: 'bad',
}; // prettier-ignore

/** @param {string | null} word */
export function badge(word) {
  return word === null ? '–' : el('span', { class: `badge ${moods[word] ?? ''}` }, word);
}

/** @param {import('./actions.js').Action[]} actions @param {string} [label] of the group */
export function buttons(actions, label) {
  if (actions.length === 0) return null;
  return el(
    'div',
    { class: 'buttons', role: 'group', 'aria-label': label },
    ...actions.map(({ label: text, run, kind }) =>
      el('button', { key: text, type: 'button', class: kind ?? '', onclick: () => void run() }, text),
    ),
  );
}

/**
 * @param {string} caption for screen readers
 * @param {string[]} columns
 * @param {{ key: string, cells: (import('./dom.js').Child | import('./dom.js').Child[])[] }[]} rows
 */
export function table(caption, columns, rows) {
  if (rows.length === 0) return el('p', { class: 'quiet' }, t('none'));
  return el(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption },
    el(
      'table',
      {},
      el('thead', {}, el('tr', {}, ...columns.map((text) => el('th', { scope: 'col' }, text)))),
      el(
        'tbody',
        {},
        ...rows.map(({ key, cells: [first, ...rest] }) =>
          el('tr', { key }, el('th', { scope: 'row' }, first), ...rest.map((cell) => el('td', {}, cell))),
        ),
      ),
    ),
  );
}

/** @param {[term: string, value: import('./dom.js').Child | import('./dom.js').Child[]][]} pairs */
export function facts(pairs) {
  return el(
    'dl',
    { class: 'facts' },
    ...pairs.map(([term, value]) => el('div', {}, el('dt', {}, term), el('dd', {}, value))),
  );
}

/** Age of a copy beside what it may be. @param {any} replication */
export function ageMeter({ spec, status }) {
  const age = ageOf(status);
  if (age === null) return '–';
  const text = t('ageOfTarget', { age: span(age), target: span(spec.rpoSeconds) });
  const mood = age > spec.rpoSeconds ? 'bad' : 'good';
  const share = Math.min(1, age / spec.rpoSeconds);
  return el(
    'span',
    { class: 'age' },
    el('span', { class: `meter ${mood}` }, bar(share, true)),
    el('span', { class: mood === 'bad' ? 'beyond' : '' }, text),
  );
}

/** A bar that says nothing to screen readers, as its text stands beside it. @param {number} share @param {boolean} isHidden */
function bar(share, isHidden) {
  return el(
    'svg',
    { class: 'bar', viewBox: '0 0 100 8', preserveAspectRatio: 'none', 'aria-hidden': isHidden ? 'true' : null },
    el('rect', { class: 'rail', width: 100, height: 8 }),
    el('rect', { class: 'fill', width: Math.round(share * 1000) / 10, height: 8 }),
  );
}

/** @param {{ bytesTotal: number, bytesDone: number, bytesPerSecond?: number, secondsLeft?: number | null, step?: string } | null} progress */
export function progressBar(progress) {
  if (progress === null || progress.bytesTotal === 0) return null;
  const { bytesTotal, bytesDone, bytesPerSecond = 0, secondsLeft, step } = progress;
  const percent = Math.min(100, Math.floor((bytesDone / bytesTotal) * 100));
  const text = [`${percent} %`, `${size(bytesDone)} / ${size(bytesTotal)}`];
  if (step) text.unshift(step);
  if (bytesPerSecond > 0) text.push(t('perSecond', { size: size(bytesPerSecond) }));
  if (secondsLeft !== null && secondsLeft !== undefined) text.push(t('left', { time: span(secondsLeft) }));
  return el(
    'span',
    { class: 'progress' },
    el('progress', { max: 100, value: percent, 'aria-label': t('progress') }),
    el('span', {}, text.join(' · ')),
  );
}

/** What is wrong with an object, and what to do. @param {any[]} conditions @param {string} [of] where there are several */
export function troubles(conditions, of) {
  return conditions
    .filter(({ type, status }) =>
      type === 'Degraded' ? status === 'True' : type === 'Available' && status === 'False',
    )
    .map(({ type, reason, message }) =>
      el(
        'p',
        { key: `${type}-${reason}-${of ?? ''}`, class: 'notice bad' },
        el('strong', {}, of === undefined ? reason : `${of}: ${reason}`),
        ' ',
        message,
      ),
    );
}

/** @param {string} object such as Replication/orders @returns {import('./dom.js').Child} */
export function linkOf(object) {
  const [kind = '', ...rest] = (object ?? '').split('/');
  const place = { Replication: 'replications', Recovery: 'recoveries', Agent: 'agents', Group: 'groups' }[kind];
  return place === undefined ? (object ?? '–') : el('a', { href: `#/${place}/${rest[0]}` }, object);
}
