/** Agents and the volumes that they report. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import { input, nullable, path, resource, time, VolumeMode, words } from '../schema.ts';

export const AgentVolume = Type.Object({
  path: Type.String(),
  kind: Type.String(),
  volumeMode: VolumeMode,
  sizeBytes: nullable(Type.Number({ description: 'null: not known, as of a tree that is not looked through' })),
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
    bootstrap: Type.Optional(
      Type.Object({
        state: words('Running', 'Completed', 'Failed'),
        message: Type.String(),
        startTime: time(),
        endTime: nullable(time()),
        steps: Type.Array(
          Type.Object({ step: Type.String(), state: words('Running', 'Completed', 'Failed'), message: Type.String() }),
        ),
      }),
    ),
  }),
);

export const Log = Type.Object({
  text: Type.String({ description: 'newest lines, one JSON object each, oldest first' }),
});

const sshHost = (userIs: string) => ({
  host: Type.String({ pattern: '^[^\\s@/-][^\\s@/]{0,254}$', description: 'name or address of the host' }),
  port: Type.Integer({ minimum: 1, maximum: 65535, default: 22 }),
  user: Type.String({ pattern: '^[a-z_][a-z0-9_.-]{0,31}$', default: 'root', description: userIs }),
  hostKey: Type.String({
    maxLength: 16_384,
    description: 'the key that the host must show: SHA256:..., or a public key such as ssh-ed25519 AAAA...',
  }),
  privateKey: Type.Optional(Type.String({ maxLength: 65_536, description: 'in OpenSSH or PEM form; kept nowhere' })),
  passphrase: Type.Optional(Type.String({ maxLength: 1024, description: 'of privateKey' })),
});

export const BootstrapInput = input(
  Type.Object({
    ...sshHost('another than root needs sudo without password'),
    sshAgent: Type.Optional(Type.Literal(true, { description: "use the keys of the master's own SSH agent" })),
    jump: Type.Optional(
      Type.Object(sshHost('any that may forward'), {
        description: "a host on the way; without a privateKey of its own it is logged in to with the host's",
      }),
    ),
    master: Type.Optional(
      Type.String({
        pattern: '^\\S+:\\d{1,5}$',
        description: 'HOST:PORT that the host dials; else the first --advertise',
      }),
    ),
    role: Type.Unsafe<'source' | 'target'>({ ...words('source', 'target'), default: 'source' }),
    allow: Type.Array(path(), { maxItems: 256, default: [], description: 'what of the host may be mirrored' }),
    kubelet: Type.String({ pattern: '^/[^\\s"\'\\\\]*$', maxLength: 1024, default: '/var/lib/kubelet' }),
    logLevel: Type.Unsafe<string>({ ...words('trace', 'debug', 'info', 'warn', 'error'), default: 'info' }),
    waitSeconds: Type.Integer({
      minimum: 1,
      maximum: 600,
      default: 60,
      description: 'how long the master may take to see the agent',
    }),
  }),
);
