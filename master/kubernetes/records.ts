/**
 * The store's small facts as Secrets, as some are hashes of tokens and passwords: one for each, with its table as a label.
 * Its name comes from table and key, so two masters that write the same fact meet in one Secret. Pure.
 */
import { createHash } from 'node:crypto';
import { group } from './kinds.ts';

export const recordLabel = `${group}/record`;
export const recordType = `${group}/record`;

export interface Secret {
  apiVersion: 'v1';
  kind: 'Secret';
  metadata: { name: string; labels?: Record<string, string>; resourceVersion?: string };
  type: string;
  data?: Record<string, string>;
}

export function secretName(table: string, key: string): string {
  const digest = createHash('sha256').update(`${table}\0${key}`).digest('hex').slice(0, 32);
  return `cdm-replicator-${table}-${digest}`;
}

export function secretOf(table: string, key: string, value: string, resourceVersion?: string): Secret {
  const base64 = (text: string): string => Buffer.from(text).toString('base64');
  return {
    apiVersion: 'v1',
    kind: 'Secret',
    metadata: {
      name: secretName(table, key),
      labels: { [recordLabel]: table, 'app.kubernetes.io/part-of': 'cdm-replicator' },
      ...(resourceVersion === undefined ? {} : { resourceVersion }),
    },
    type: recordType,
    data: { key: base64(key), value: base64(value) },
  };
}

/** undefined: not one of ours, or damaged by hand. */
export function recordOf({ metadata, data }: Secret): { table: string; key: string; value: string } | undefined {
  const table = metadata.labels?.[recordLabel];
  if (table === undefined || data?.['key'] === undefined || data['value'] === undefined) return undefined;
  const text = (base64: string): string => Buffer.from(base64, 'base64').toString();
  return { table, key: text(data['key']), value: text(data['value']) };
}
