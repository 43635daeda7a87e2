/**
 * Resources that people made, as the objects that a POST of the same would have made: the same checks, the same first status.
 * Throws with the reason when REST would refuse; what waits for something else (a first point, a storage class) is asked
 * for again by the operator.
 */
import { ApiProblem, invalid } from '../api/problem.ts';
import { groupNow, mayRecover, recoveryDraft } from '../api/recoveries.ts';
import { complete, draft as replicationDraft, forgetPlace, needPoint } from '../api/replications.ts';
import type { Context } from '../api/route.ts';
import { blankStatus } from '../groups.ts';
import { apiVersion } from '../resources.ts';
import type { Kind, ReplicationSpec } from '../resources.ts';
import type { Draft } from '../store.ts';
import { keyOf, specOf, type CustomResource } from './codec.ts';

export async function draftOf(context: Context, kind: Kind, raw: CustomResource): Promise<Draft<Kind>> {
  try {
    return await checked(context, kind, raw);
  } catch (error) {
    if (!(error instanceof ApiProblem)) throw error;
    const fields = error.errors?.map(({ path, message }) => `${path} ${message}`) ?? [];
    throw new Error(fields.length > 0 ? fields.join('; ') : error.message, { cause: error });
  }
}

function replicationOf(context: Context, name: string, spec: ReplicationSpec): Draft<Kind> {
  forgetPlace(spec);
  return replicationDraft({ metadata: { name } }, complete(context, spec));
}

async function checked(context: Context, kind: Kind, raw: CustomResource): Promise<Draft<Kind>> {
  const { store, engine } = context;
  const metadata = { name: raw.metadata.name };
  if (kind === 'Replication') return replicationOf(context, metadata.name, specOf(kind, raw));
  if (kind === 'Recovery') {
    const spec = specOf(kind, raw);
    const point = await mayRecover(context, spec);
    return recoveryDraft(metadata.name, { ...spec, point }, groupNow(store, spec));
  }
  if (kind === 'StorageClass') {
    const spec = specOf(kind, raw);
    const problems = engine.validateStorageClass?.(spec) ?? [];
    if (problems.length > 0) throw invalid(problems);
    return {
      apiVersion,
      kind,
      metadata,
      spec,
      status: { capacityBytes: null, usedBytes: null, reflink: null, conditions: [] },
    };
  }
  if (kind === 'Snapshot') {
    const spec = specOf(kind, raw);
    const replication = store.get('Replication', spec.replication);
    if (!replication) throw new Error(`there is no replication ${spec.replication}`);
    needPoint(context, replication);
    const key = keyOf(kind, metadata.name);
    return {
      apiVersion,
      kind,
      metadata: { name: key.slice(key.indexOf('/') + 1) },
      spec,
      status: { state: 'Creating', message: null, point: null, sizeBytes: null, readyTime: null, schedule: null },
    };
  }
  // Checked by a PATCH right after: see operator.ts.
  if (kind === 'Group') return { apiVersion, kind, metadata, spec: specOf(kind, raw), status: blankStatus };
  if (kind === 'RecoverySchedule') {
    const status = { state: 'PREPARING', message: null, nextTime: null, lastTime: null, lastRecovery: null } as const;
    return { apiVersion, kind, metadata, spec: specOf(kind, raw), status };
  }
  throw new Error(`a ${kind} cannot be made here`);
}
