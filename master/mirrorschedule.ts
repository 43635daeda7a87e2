/** When a replication's schedules are due: syncs by `trigger.schedule`, and the time of the next snapshot. */
import { nextTime, parseCron } from './cron.ts';
import type { Mirror } from './mirrorstate.ts';
import type { Replication } from './resources.ts';
import { nextTime as nextDue } from './schedule.ts';
import type { Store } from './store.ts';

/** Asks for a sync when one is due. Answers whether it did. */
export function runSchedule(store: Store, mirror: Mirror, { spec }: Replication, nowMs: number): boolean {
  const { schedule } = spec.trigger;
  if (schedule === undefined) {
    mirror.nextCronMs = undefined;
    return false;
  }
  const isDue = mirror.nextCronMs !== undefined && nowMs >= mirror.nextCronMs && !spec.paused;
  if (isDue) {
    store.update('Replication', mirror.name, (object) => void object.requests.sync++);
    mirror.nextCronMs = undefined;
  }
  mirror.nextCronMs ??= nextTime(parseCron(schedule), nowMs);
  return isDue;
}

/** Looked up again only when it has passed: calendars cost more than a comparison. */
export function nextSnapshot(mirror: Mirror, { spec, metadata }: Replication, nowMs: number): number | undefined {
  const { generation } = metadata;
  if (mirror.nextSnapshot?.generation !== generation || mirror.nextSnapshot.ms <= nowMs) {
    const ms = Math.min(...spec.snapshotSchedules.map((schedule) => nextDue(schedule, nowMs)));
    mirror.nextSnapshot = { generation, ms };
  }
  return Number.isFinite(mirror.nextSnapshot.ms) ? mirror.nextSnapshot.ms : undefined;
}
