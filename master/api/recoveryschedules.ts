/** Planned recoveries over REST; recovery/schedules.ts makes them. */
import type { FastifyInstance } from 'fastify';
import { isTimeZone } from '../calendar.ts';
import { nextDue } from '../recovery/due.ts';
import { hasEnded } from '../recovery/machine.ts';
import { madeBy } from '../recovery/schedules.ts';
import type { RecoveryScheduleSpec } from '../resources.ts';
import { objectRoutes } from './objects.ts';
import { ApiProblem, invalid, type FieldError } from './problem.ts';
import { mayCreate, mayRecover, mayTouch } from './recoveries.ts';
import type { Context } from './route.ts';
import { RecoveryScheduleInput } from './schema/recoveryschedule.ts';

export function recoveryScheduleRoutes(app: FastifyInstance, context: Context): void {
  const { store, clock } = context;
  objectRoutes(app, context, {
    kind: 'RecoverySchedule',
    plural: 'recoveryschedules',
    singular: 'recovery schedule',
    input: RecoveryScheduleInput,
    status: { state: 'PREPARING', message: null, nextTime: null, lastTime: null, lastRecovery: null },
    view: (schedule) => schedule,
    async complete(spec, _name, caller, old) {
      mayCreate(caller, spec.type);
      mayTouch(store, caller, spec);
      const errors = timingErrors(spec);
      const isNew = old === undefined || old.spec.startTime !== spec.startTime;
      if (errors.length === 0 && isNew && nextDue(spec, clock.nowMs()) === undefined)
        errors.push({
          path: 'spec.startTime',
          message: 'must lie ahead, and before endTime; to recover now make a recovery',
        });
      if (errors.length > 0) throw invalid(errors);
      // It may be planned before there is anything to recover.
      await mayRecover(context, spec).catch((error: unknown) => {
        if (!(error instanceof ApiProblem) || error.code !== 'NoRecoveryPoint') throw error;
      });
      return spec;
    },
    mayDelete(schedule) {
      const running = madeBy(store, schedule).filter((one) => !hasEnded(one));
      const errors = running.map(({ metadata, status }) => {
        return { path: `Recovery/${metadata.name}`, message: `is ${status.state}; end it first` };
      });
      const why = errors.map(({ path, message }) => `${path} ${message}`).join('; ');
      if (errors.length > 0)
        throw new ApiProblem('Referenced', `schedule ${schedule.metadata.name} cannot be deleted yet: ${why}`, errors);
    },
  });
}

function timingErrors({
  type,
  repeat,
  weekday,
  week,
  day,
  timeZone,
  startTime,
  endTime,
}: RecoveryScheduleSpec): FieldError[] {
  const wrong: [boolean, string, string][] = [
    [type === 'failover' && repeat !== 'once', 'repeat', 'must be once for a failover'],
    [!isTimeZone(timeZone), 'timeZone', 'must be a time zone of the IANA data base, such as Asia/Seoul'],
    [endTime !== null && Date.parse(endTime) < Date.parse(startTime), 'endTime', 'must not be before startTime'],
    [
      weekday !== null && repeat !== 'weekly' && !(repeat === 'monthly' && week !== null),
      'weekday',
      'is for weekly, and for monthly with week',
    ],
    [week !== null && repeat !== 'monthly', 'week', 'is for monthly'],
    [day !== null && (repeat !== 'monthly' || week !== null), 'day', 'is for monthly without week'],
  ];
  return wrong.filter(([isWrong]) => isWrong).map(([, path, message]) => ({ path: `spec.${path}`, message }));
}
