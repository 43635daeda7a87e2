/** Which point of a replication a recovery takes. Pure. */
import { ReplicationError } from '../../proto/errors.ts';
import { groupPoints } from '../groupcuts.ts';
import type { Point } from '../replica/horizon.ts';
import type { PointChoice } from '../resources.ts';

export interface Choosable {
  replication: string;
  /** In the journal, oldest first. */
  points: readonly Point[];
  /** Snapshots that can be chosen, by name. */
  snapshots: ReadonlyMap<string, Point>;
  /** Source time that the newest point is as good as, ms: later than its cut where nothing changed since. */
  goodAsOfMs: number;
  /** Its source was demoted after its last cut: the newest point is as good as any moment after it. */
  isFinal: boolean;
}

/**
 * The moment that members of a group are recovered to: the newest that all of them have. Undefined where the choice names
 * one by itself, or nobody has any.
 */
export function commonMoment(choice: PointChoice, all: readonly Choosable[]): number | undefined {
  const members = choice === 'latest-data' ? all.filter(({ isFinal }) => !isFinal) : all;
  if (members.length === 0 || (typeof choice === 'object' && 'snapshot' in choice)) return undefined;
  // Points that were made together, where there are any: at that moment all of them stood still.
  const notAfterMs = typeof choice === 'object' ? Date.parse(choice.time) : Infinity;
  const listed = members.map(({ replication, points, snapshots }) => ({
    uid: replication,
    points: [...snapshots.values(), ...(choice === 'latest-snapshot' ? [] : points)],
  }));
  const together = groupPoints(listed)
    .map(({ sourceUs }) => sourceUs / 1000)
    .filter((ms) => Math.floor(ms) <= notAfterMs);
  if (together.length > 0) return Math.max(...together);
  const newest = members.flatMap((member) => {
    if (choice === 'latest-data') return member.points.length > 0 ? [member.goodAsOfMs] : [];
    if (choice === 'latest-snapshot')
      return newestOf([...member.snapshots.values()]).map(({ sourceUs }) => sourceUs / 1000);
    return [];
  });
  if (newest.length === 0) return undefined;
  // Right after the first copies one may have nothing as old as another's newest: then what lies nearest to each other.
  const oldest = choice === 'latest-data' ? members.flatMap(({ points }) => points.slice(0, 1)) : [];
  return Math.max(Math.min(...newest), ...oldest.map(({ sourceUs }) => sourceUs / 1000));
}

/**
 * @param commonMs nothing newer than this
 * @throws PointGone
 */
export function choosePoint(choice: PointChoice, from: Choosable, commonMs?: number): Point {
  const found = find(choice, from, commonMs);
  if (typeof found !== 'string') return found;
  throw new ReplicationError('PointGone', `${found}; choose one of the points or snapshots that are listed`);
}

function find(choice: PointChoice, from: Choosable, commonMs = Infinity): Point | string {
  const { points, snapshots, replication } = from;
  // Times are shown in whole milliseconds: one names all that lies in it.
  const notAfter = (list: readonly Point[], ms: number): Point | undefined => {
    const fitting = list.filter(({ sourceUs }) => Math.floor(sourceUs / 1000) <= Math.floor(ms));
    // A time is never later than the truth, but may be earlier by more than that of the point before it.
    const latestUs = ms === Infinity ? 0 : fitting.reduce((most, { sourceUs }) => Math.max(most, sourceUs), 0);
    return newestOf(fitting.filter(({ sourceUs }) => sourceUs >= latestUs))[0];
  };
  if (choice === 'latest-data') return notAfter(points, commonMs) ?? `there is no recovery point of ${replication}`;
  if (choice === 'latest-snapshot')
    return notAfter([...snapshots.values()], commonMs) ?? `there is no snapshot of ${replication} that is Ready`;
  if ('snapshot' in choice)
    return snapshots.get(choice.snapshot) ?? `there is no snapshot ${choice.snapshot} of ${replication} that is Ready`;
  const all = [...snapshots.values(), ...points];
  return (
    notAfter(all, Math.min(commonMs, Date.parse(choice.time))) ??
    `no recovery point of ${replication} is as old as ${choice.time}`
  );
}

/** None or one. Of equals the last. */
function newestOf(points: readonly Point[]): Point[] {
  return points.reduce<Point[]>((best, point) => (best[0] && best[0].sequence > point.sequence ? best : [point]), []);
}
