/** Where events are sent. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import type { Static } from 'typebox';
import { apiVersion } from '../../resources.ts';
import { input, name, nullable, time, words } from '../schema.ts';
import { levels } from './event.ts';

export const Sink = Type.Object({
  apiVersion: Type.Literal(apiVersion),
  kind: Type.Literal('Sink'),
  metadata: Type.Object({ name: Type.String(), creationTimestamp: time() }),
  spec: Type.Object({
    to: Type.String({ description: 'where to, without what may be secret of the address' }),
    level: words(...levels),
    signed: Type.Boolean({ description: 'X-Replicator-Signature: sha256=HMAC of the body' }),
  }),
  status: Type.Object({
    state: words('Ready', 'Failing'),
    message: nullable(Type.String()),
    lastSentTime: nullable(time('since the master was started')),
  }),
});

export const SinkCreate = input(
  Type.Object({
    name: name(),
    url: Type.String({
      maxLength: 2048,
      description: 'https://HOST/PATH (a webhook) or syslog+udp://HOST:PORT, syslog+tcp://, syslog+tls://',
    }),
    level: Type.Unsafe<(typeof levels)[number]>({
      ...words(...levels),
      default: 'WARNING',
      description: 'this one and worse',
    }),
    secret: Type.Optional(Type.String({ minLength: 8, maxLength: 512, description: 'of webhooks: signs the body' })),
  }),
);

export type SinkView = Static<typeof Sink>;
