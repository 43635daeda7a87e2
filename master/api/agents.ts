/** Agents over REST: they come by joining, and go by being revoked here, even while replications name them. */
import type { FastifyInstance } from 'fastify';
import type { Agent } from '../resources.ts';
import { listOrWatch, page } from './list.ts';
import { ApiProblem, invalid, notFound } from './problem.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { ListQuery, namePattern, nameRule, PageQuery } from './schema.ts';
import { BootstrapInput } from './schema/agent.ts';

const url = '/api/v1/agents';
const tag = 'agents';

export function agentRoutes(app: FastifyInstance, context: Context): void {
  const { store, engine, events } = context;
  function find(name = ''): Agent {
    const agent = store.get('Agent', name);
    if (agent === undefined) throw notFound('agent', name);
    return agent;
  }
  route(app, {
    method: 'GET',
    url,
    tag,
    summary: 'List or watch agents',
    query: ListQuery,
    answer: 'AgentList',
    handle: ({ query, reply }) => listOrWatch(context, 'Agent', query, reply, (agent) => agent),
  });
  route(app, {
    method: 'GET',
    url: `${url}/:name`,
    tag,
    summary: 'Read an agent',
    answer: 'Agent',
    handle: ({ params }) => find(params['name']),
  });
  route(app, {
    method: 'DELETE',
    url: `${url}/:name`,
    tag,
    summary: 'Revoke an agent: its connections end, its certificates are worthless, it must join anew',
    answer: 'Agent',
    handle({ params, ifVersion }) {
      const agent = find(params['name']);
      const { name } = agent.metadata;
      // The object goes first: without it no certificate is good, so a new connection in between is not let in.
      const deleted = store.delete('Agent', name, ifVersion) ?? agent;
      engine.revokeAgent(name);
      const message = 'revoked; it must join anew with a new token';
      events.emit({ code: 'AgentRevoked', level: 'WARNING', message, object: `Agent/${name}` });
      return deleted;
    },
  });
  route(app, {
    method: 'POST',
    url: `${url}/:name/actions/bootstrap`,
    tag,
    summary: 'Install an agent on a host over SSH; watch status.bootstrap of the agent that is answered',
    body: BootstrapInput,
    answer: 'Agent',
    status: 202,
    // The body holds a key.
    secret: true,
    handle({ params, body }) {
      const name = params['name'] ?? '';
      if (!new RegExp(namePattern).test(name)) throw invalid([{ path: 'name', message: `must be ${nameRule}` }]);
      if (engine.bootstrap === undefined) throw new ApiProblem('Unavailable', 'this master has no way to hosts');
      return engine.bootstrap(name, body);
    },
  });
  route(app, {
    method: 'GET',
    url: `${url}/:name/log`,
    tag,
    summary: 'Read the newest lines of the log of a connected agent',
    answer: 'Log',
    async handle({ params }) {
      const { name } = find(params['name']).metadata;
      const text = await engine.agentLog?.(name);
      if (text !== undefined) return { text };
      throw new ApiProblem('Unavailable', `${name} is not connected, or too old to tell its log; look on its node`);
    },
  });
  route(app, {
    method: 'GET',
    url: '/api/v1/log',
    tag: 'service',
    summary: "Read the newest lines of the master's own log",
    answer: 'Log',
    handle: () => ({ text: engine.log?.() ?? '' }),
  });
  route(app, {
    method: 'GET',
    url: `${url}/:name/volumes`,
    tag,
    summary: 'List what an agent has found on its node',
    query: PageQuery,
    answer: 'AgentVolumeList',
    handle({ params, query }) {
      const volumes = engine.volumes(find(params['name']).metadata.name);
      const sorted = [...volumes].sort((a, b) => (a.path < b.path ? -1 : 1));
      return page(sorted, ({ path }) => path, query, store.version());
    },
  });
}
