/** Numbers and times as people read them. */
import { language } from './text.js';

const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** @param {number | null | undefined} bytes */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return '–';
  let [value, unit] = [bytes, 0];
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** @param {number | null | undefined} seconds such as 0.8 s, 42 s, 5 min 10 s, 3 h 5 min, 2 d 4 h */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const [d, h, min, s] = [
    Math.floor(whole / 86_400),
    Math.floor(whole / 3600) % 24,
    Math.floor(whole / 60) % 60,
    whole % 60,
  ];
  const parts = d > 0 ? [[d, 'd'], [h, 'h']] : h > 0 ? [[h, 'h'], [min, 'min']] : [[min, 'min'], [s, 's']]; // prettier-ignore
  return parts
    .filter(([value], index) => index === 0 || value !== 0)
    .map(([value, unit]) => `${value} ${unit}`)
    .join(' ');
}

/** @param {string | null | undefined} text of RFC 3339 */
export function time(text) {
  if (text === null || text === undefined) return '–';
  return new Date(text).toLocaleString(language(), { dateStyle: 'medium', timeStyle: 'medium' });
}

const collator = new Intl.Collator('en', { numeric: true });
/** As people count: vol2 before vol10. @param {string} a @param {string} b */
export function byName(a, b) {
  return collator.compare(a, b) || (a < b ? -1 : Number(a > b));
}

/** Milliseconds that the master's clock is ahead of this browser's, learned from what it sends. */
let aheadMs = 0;
let learnedMs = -Infinity;

/**
 * A replication says its age as of the instant of sending. What was held up on its way makes the master's clock look
 * behind, so the largest of a minute counts.
 * @param {{ lastSyncTime: string | null, lagSeconds: number | null }} status
 */
export function learnClock({ lastSyncTime, lagSeconds }) {
  if (lastSyncTime === null || lagSeconds === null || lagSeconds === 0) return;
  const found = Date.parse(lastSyncTime) + lagSeconds * 1000 - Date.now();
  if (found < aheadMs && performance.now() - learnedMs < 60_000) return;
  aheadMs = found;
  learnedMs = performance.now();
}
export function nowMs() {
  return Date.now() + aheadMs;
}

/** @param {{ lastSyncTime: string | null }} status @returns {number | null} seconds, now */
export function ageOf({ lastSyncTime }) {
  return lastSyncTime === null ? null : Math.max(0, (nowMs() - Date.parse(lastSyncTime)) / 1000);
}
