/**
 * How replctl and the quickstart show things to people: aligned columns, ages, sizes, a progress bar, colours.
 *
 * Pure. What came from elsewhere (paths, messages) is stripped of control characters here, so that no file name can
 * drive a terminal. Unknown (null) is always `-`.
 */

export type Paint = (text: string, colour: Colour) => string;
export type Colour = 'green' | 'yellow' | 'red' | 'grey' | 'bold';
const codes: Record<Colour, string> = { green: '32', yellow: '33', red: '31', grey: '90', bold: '1' };

/** Colours only for a terminal, and not where NO_COLOR is set (https://no-color.org). */
export function painter(isTerminal: boolean, environment: NodeJS.ProcessEnv): Paint {
  const wanted = isTerminal && !environment['NO_COLOR'] && environment['TERM'] !== 'dumb';
  return wanted ? (text, colour) => `\x1b[${codes[colour]}m${text}\x1b[0m` : (text) => text;
}

export function plain(text: string): string {
  return text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, '?');
}

const good = new Set(['NORMAL', 'ACTIVE', 'Ready', 'Completed', 'success', 'True', 'INFO', 'Confirmed']);
const bad = new Set(['FAILED', 'ERROR', 'FATAL', 'CONN FAILED', 'Failed', 'failed', 'Disconnected']);
const between = new Set([
  'PREPARING',
  'WARNING',
  'UNKNOWN',
  'Creating',
  'Deleting',
  'Paused',
  'Cancelled',
  'cancelled',
]);
export function stateColour(word: string): Colour | undefined {
  return good.has(word) ? 'green' : bad.has(word) ? 'red' : between.has(word) ? 'yellow' : undefined;
}

/** Columns as wide as their widest cell, three spaces between, nothing after the last. */
export function table(headings: string[], rows: string[][], paint: Paint): string {
  const cells = [headings, ...rows.map((row) => row.map((cell) => plain(cell === '' ? '-' : cell)))];
  const widths = headings.map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)));
  const line = (row: string[]) =>
    row.map((cell, column) => {
      const colour = stateColour(cell);
      const padding = column === row.length - 1 ? '' : ' '.repeat((widths[column] ?? 0) - cell.length + 3);
      return (colour === undefined ? cell : paint(cell, colour)) + padding;
    });
  return `${cells.map((row) => line(row).join('').trimEnd()).join('\n')}\n`;
}

/** kubectl's ages: 45s, 12m, 3h40m, 2d5h, 410d. */
export function age(seconds: number | null): string {
  if (seconds === null || Number.isNaN(seconds)) return '-';
  const s = Math.max(0, Math.floor(seconds));
  if (s < 120) return `${s}s`;
  const m = Math.floor(s / 60);
  if (m < 120) return m < 10 && s % 60 > 0 ? `${m}m${s % 60}s` : `${m}m`;
  const h = Math.floor(m / 60);
  if (h < 48) return h < 10 && m % 60 > 0 ? `${h}h${m % 60}m` : `${h}h`;
  const d = Math.floor(h / 24);
  return d < 10 && h % 24 > 0 ? `${d}d${h % 24}h` : `${d}d`;
}
export function ageOf(time: string | null, nowMs: number): string {
  return time === null ? '-' : age((nowMs - Date.parse(time)) / 1000);
}

/** Short spans with a decimal: 0.8s, 12s, 3m20s. */
export function span(seconds: number | null): string {
  if (seconds === null || Number.isNaN(seconds)) return '-';
  return seconds < 9.95 ? `${Math.max(0, seconds).toFixed(1)}s` : age(seconds);
}

const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
/** Three digits at most: 0 B, 980 KiB, 1.5 GiB. */
export function size(bytes: number | null): string {
  if (bytes === null || Number.isNaN(bytes)) return '-';
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export interface Progress {
  bytesTotal: number;
  bytesDone: number;
  bytesPerSecond: number;
  secondsLeft: number | null;
}

/** 0 to 1; a volume of no bytes is done from the start, and "done" is never shown before it is. */
export function ratio({ bytesDone, bytesTotal }: Pick<Progress, 'bytesDone' | 'bytesTotal'>): number {
  return bytesTotal <= 0 ? 1 : Math.min(1, Math.max(0, bytesDone / bytesTotal));
}
export function percent(progress: Pick<Progress, 'bytesDone' | 'bytesTotal'>): string {
  return `${Math.floor(ratio(progress) * 100)}%`;
}

/** `[####----]  42%  1.2 GiB of 2.9 GiB  180 MiB/s  9s left`; the rate is left out where nobody measures it. */
export function progressBar(
  progress: Pick<Progress, 'bytesTotal' | 'bytesDone'> & Partial<Progress>,
  width = 24,
): string {
  const { bytesDone, bytesTotal, bytesPerSecond, secondsLeft = null } = progress;
  const filled = Math.floor(ratio(progress) * width);
  const rate = bytesPerSecond === undefined ? '' : `  ${size(bytesPerSecond)}/s`;
  const left = secondsLeft === null ? '' : `  ${age(secondsLeft)} left`;
  return (
    `[${'#'.repeat(filled)}${'-'.repeat(width - filled)}] ${percent(progress).padStart(4)}  ` +
    `${size(bytesDone)} of ${size(bytesTotal)}${rate}${left}`
  );
}

/** At most so many characters that are seen: colours take no room, and one that is begun is ended. */
export function cutTo(columns: number, text: string): string {
  let left = columns;
  return text
    .split(/(\x1b\[[0-9;]*m)/)
    .map((part, index) => {
      if (index % 2 === 1) return part;
      const kept = part.slice(0, Math.max(0, left));
      left -= kept.length;
      return kept;
    })
    .join('');
}

/**
 * One line that is rewritten on a terminal; elsewhere plain lines, and only those that say something new: of a bar that grows, each tenth.
 */
export function liveLine(output: NodeJS.WriteStream): { show(text: string): void; end(): void } {
  let shown = '';
  const withTenths = (text: string): string => text.replace(/\[#*-*\] +(\d*)\d%.*$/, '$1');
  return {
    show(text) {
      const news = output.isTTY ? text : withTenths(text);
      if (news === shown) return;
      shown = news;
      output.write(output.isTTY ? `\r\x1b[K${cutTo((output.columns || 80) - 1, text)}` : `${text}\n`);
    },
    end() {
      if (output.isTTY && shown !== '') output.write('\n');
      shown = '';
    },
  };
}
