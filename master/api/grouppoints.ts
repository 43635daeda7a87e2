/** The moments that all members of a consistency group have in common, over REST. */
import type { FastifyInstance } from 'fastify';
import { page } from './list.ts';
import { ApiProblem, notFound } from './problem.ts';
import { route, type Context } from './route.ts';
import { PointsQuery } from './schema/replication.ts';

export function groupPointRoutes(app: FastifyInstance, { engine, store }: Context): void {
  route(app, {
    method: 'GET',
    url: '/api/v1/groups/:name/points',
    tag: 'groups',
    summary: 'List the moments to which all members of a group can be recovered, oldest first',
    query: PointsQuery,
    answer: 'GroupPointList',
    handle({ params, query }) {
      const { name = '' } = params;
      if (store.replicationsIn(name).length === 0) throw notFound('group', name);
      if (!engine.groupPoints) throw new ApiProblem('Unavailable', 'this master cuts no groups');
      const { from, to } = query;
      const points = engine
        .groupPoints(name)
        .filter(({ sourceTime }) => (from === undefined || Date.parse(sourceTime) >= Date.parse(from)) && (to === undefined || Date.parse(sourceTime) <= Date.parse(to))); // prettier-ignore
      return page(points, ({ sourceTime, cut }) => `${sourceTime} ${cut}`, query, store.version());
    },
  });
}
