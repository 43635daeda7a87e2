/** Sinks of events over REST. Addresses and secrets come in and never go out. */
import type { FastifyInstance } from 'fastify';
import { maxSinks } from '../sinks.ts';
import { wrongUrl } from '../sinksend.ts';
import { page } from './list.ts';
import { ApiProblem, invalid, notFound } from './problem.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { PageQuery } from './schema.ts';
import { SinkCreate } from './schema/sink.ts';
import type { SinkView } from './schema/sink.ts';

const url = '/api/v1/sinks';
const tag = 'events';

export function sinkRoutes(app: FastifyInstance, { sinks, store }: Context): void {
  route(app, {
    method: 'GET',
    url,
    tag,
    summary: 'List where events are sent',
    query: PageQuery,
    answer: 'SinkList',
    handle: ({ query }) => page(sinks.list(), ({ metadata }) => metadata.name, query, store.version()),
  });
  route(app, {
    method: 'GET',
    url: `${url}/:name`,
    tag,
    summary: 'Read a sink',
    answer: 'Sink',
    handle: ({ params }) => find(params['name']),
  });
  route(app, {
    method: 'POST',
    url,
    tag,
    summary: 'Send events from now on to a webhook or a syslog server; tried again until they are taken',
    body: SinkCreate,
    answer: 'Sink',
    status: 201,
    secret: true,
    handle({ body }) {
      const wrong = wrongUrl(body.url);
      if (wrong !== undefined) throw invalid([{ path: 'url', message: wrong }]);
      if (body.secret !== undefined && !body.url.startsWith('http'))
        throw invalid([{ path: 'secret', message: 'is for webhooks; leave it out' }]);
      if (sinks.get(body.name) !== undefined)
        throw new ApiProblem('AlreadyExists', `there is a sink ${body.name} already; delete it first`);
      const { name, level, secret = null } = body;
      if (!sinks.create(name, { url: body.url, level, secret }))
        throw new ApiProblem('LimitReached', `there are ${maxSinks} sinks already; delete some`);
      return find(name);
    },
  });
  route(app, {
    method: 'DELETE',
    url: `${url}/:name`,
    tag,
    summary: 'Send nothing more to a sink',
    answer: 'Sink',
    handle({ params }) {
      const sink = find(params['name']);
      sinks.delete(sink.metadata.name);
      return sink;
    },
  });

  function find(name = ''): SinkView {
    const sink = sinks.get(name);
    if (sink === undefined) throw notFound('sink', name);
    return sink;
  }
}
