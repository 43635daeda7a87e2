/** Agents and the volumes that they report. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import { words, nullable, time, resource, VolumeMode } from '../schema.ts';

export const AgentVolume = Type.Object({
  path: Type.String(),
  kind: Type.String(),
  volumeMode: VolumeMode,
  sizeBytes: Type.Number(),
  filesystem: nullable(Type.String()),
  filesystemId: nullable(Type.String()),
  mountPoint: nullable(Type.String()),
  csi: nullable(
    Type.Object({
      driver: Type.String(),
      volumeHandle: Type.String(),
      persistentVolume: Type.String(),
      podUid: Type.String(),
      claim: nullable(Type.String()),
    }),
  ),
  eligible: Type.Boolean(),
  reason: nullable(Type.String()),
});

export const Agent = resource(
  'Agent',
  Type.Object({ role: words('source', 'target') }),
  Type.Object({
    state: words('ACTIVE', 'CONN FAILED', 'WARNING', 'NO CONN INFO', 'NOT INSTALLED', 'UNKNOWN'),
    message: Type.String(),
    version: nullable(Type.String()),
    kernel: nullable(Type.String()),
    bootId: nullable(Type.String()),
    lastSeenTime: nullable(time()),
    clockOffsetSeconds: nullable(Type.Number()),
    certificateExpiryTime: nullable(time()),
  }),
);
