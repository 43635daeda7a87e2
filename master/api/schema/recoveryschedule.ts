/** Recoveries that are made by themselves. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import type * as R from '../../resources.ts';
import { inputObject, nullable, resource, time, words } from '../schema.ts';
import { RecoverySpec } from './recovery.ts';

const weekdays = ['monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday'] as const;

const RecoveryScheduleSpec = Type.Object({
  ...RecoverySpec.properties,
  repeat: words('once', 'hourly', 'daily', 'weekly', 'monthly'),
  startTime: time('of the first one; a later one keeps its minute or time of day'),
  endTime: Type.Unsafe<string | null>({ ...nullable(time('none is made after it')), default: null }),
  timeZone: Type.String({ maxLength: 64, default: 'UTC', description: 'such as Asia/Seoul' }),
  weekday: Type.Unsafe<R.Weekday | null>({ ...nullable(words(...weekdays)), default: null }),
  week: Type.Unsafe<R.RecoveryTiming['week']>({
    ...nullable(words('first', 'second', 'third', 'fourth', 'last')),
    default: null,
    description: 'of monthly: which of the weekdays of the month; null: by day',
  }),
  day: Type.Unsafe<number | null>({
    ...nullable(Type.Integer({ minimum: 1, maximum: 31, description: 'of monthly: day of the month' })),
    default: null,
  }),
  rollback: Type.Boolean({ default: true, description: 'of drills: the copies go once they were found good' }),
  retain: Type.Integer({ minimum: 1, maximum: 1000, default: 30, description: 'how many results stay' }),
  paused: Type.Boolean({ default: false }),
});

export const RecoverySchedule = resource(
  'RecoverySchedule',
  RecoveryScheduleSpec,
  Type.Object({
    state: words('PREPARING', 'NORMAL', 'FAILED'),
    message: nullable(Type.String()),
    nextTime: nullable(time()),
    lastTime: nullable(time()),
    lastRecovery: nullable(Type.String()),
  }),
);

export const RecoveryScheduleInput = inputObject('RecoverySchedule', RecoveryScheduleSpec);
