/** What is on storage and belongs to nothing any more, over REST: listed, and removed when asked. */
import type { FastifyInstance } from 'fastify';
import type { Engine } from '../engine.ts';
import { ApiProblem } from './problem.ts';
import { route, type Context } from './route.ts';
import { CleanupInput } from './schema/garbage.ts';

const url = '/api/v1/garbage';
const tag = 'garbage';

export function garbageRoutes(app: FastifyInstance, { engine, events, store }: Context): void {
  const need = (): NonNullable<Engine['garbage']> => {
    if (!engine.garbage) throw new ApiProblem('Unavailable', 'this master has no storage of its own');
    return engine.garbage;
  };
  route(app, {
    method: 'GET',
    url,
    tag,
    summary: 'What recoveries and deleted replications left on storage',
    answer: 'GarbageList',
    async handle() {
      const items = await need().list();
      return { items, metadata: { continue: null, resourceVersion: String(store.version()) } };
    },
  });
  route(app, {
    method: 'POST',
    url: `${url}/actions/cleanup`,
    tag,
    summary: 'Remove it: {"mode": "none" | "restored" | "all"}',
    body: CleanupInput,
    answer: 'Cleanup',
    async handle({ body }) {
      const outcome = await need().cleanUp(body.mode);
      for (const { kind, name, message } of outcome.removed)
        events.emit({ code: 'GarbageRemoved', level: 'INFO', message: `${kind} ${name}: ${message}`, object: null });
      return outcome;
    },
  });
}
