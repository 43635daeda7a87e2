/**
 * Who may do what: one entry for every route, by area and verb. The server does not start with a route that has none.
 * The rows are those of the product's rights table; `open` needs no token, `local` none from this very machine.
 */
import type { Role } from './schema/token.ts';

const everyone: readonly Role[] = ['admin', 'manager', 'operator', 'user'];
const managers: readonly Role[] = ['admin', 'manager'];
const operators: readonly Role[] = ['admin', 'manager', 'operator'];

/** A manager neither makes nor deletes tokens of the role admin, nor changes the user admin: see tokens.ts and users.ts. */
const areas = {
  tokens: { read: everyone, write: managers },
  users: { read: everyone, write: managers },
  /** One's own. */
  session: { read: everyone, write: everyone },
  events: { read: everyone, write: managers },
  agents: { read: everyone, write: managers },
  replications: { read: everyone, write: managers },
  snapshots: { read: everyone, write: operators },
  recoveries: { read: everyone, write: operators },
  metrics: { read: everyone, write: [] },
  logs: { read: managers, write: [] },
} as const satisfies Record<string, { read: readonly Role[]; write: readonly Role[] }>;
type Area = keyof typeof areas;
export type Right = `${Area}:${'read' | 'write'}` | 'open' | `local-${Area}`;

const v1 = '/api/v1';
export const rights: Readonly<Record<string, Right>> = {
  'GET /healthz': 'open',
  'GET /readyz': 'open',
  'GET /metrics': 'local-metrics',
  'GET /openapi.json': 'local-metrics',
  'GET /docs': 'local-metrics',
  'GET /': 'open',
  [`GET ${v1}/agents`]: 'agents:read',
  [`GET ${v1}/agents/:name`]: 'agents:read',
  [`DELETE ${v1}/agents/:name`]: 'agents:write',
  [`POST ${v1}/agents/:name/actions/bootstrap`]: 'agents:write',
  [`GET ${v1}/agents/:name/volumes`]: 'agents:read',
  [`GET ${v1}/agents/:name/log`]: 'logs:read',
  [`GET ${v1}/log`]: 'logs:read',
  [`GET ${v1}/storageclasses`]: 'agents:read',
  [`POST ${v1}/storageclasses`]: 'agents:write',
  [`GET ${v1}/storageclasses/:name`]: 'agents:read',
  [`PATCH ${v1}/storageclasses/:name`]: 'agents:write',
  [`DELETE ${v1}/storageclasses/:name`]: 'agents:write',
  [`GET ${v1}/replications`]: 'replications:read',
  [`POST ${v1}/replications`]: 'replications:write',
  [`GET ${v1}/replications/:name`]: 'replications:read',
  [`PUT ${v1}/replications/:name`]: 'replications:write',
  [`PATCH ${v1}/replications/:name`]: 'replications:write',
  [`DELETE ${v1}/replications/:name`]: 'replications:write',
  [`POST ${v1}/replications/:name/actions/pause`]: 'replications:write',
  [`POST ${v1}/replications/:name/actions/resume`]: 'replications:write',
  [`POST ${v1}/replications/:name/actions/resync`]: 'replications:write',
  [`POST ${v1}/replications/:name/actions/promote`]: 'replications:write',
  [`POST ${v1}/replications/:name/actions/demote`]: 'replications:write',
  [`POST ${v1}/replications/:name/actions/verify`]: 'replications:write',
  [`GET ${v1}/watch`]: 'replications:read',
  [`GET ${v1}/replications/:name/history`]: 'replications:read',
  [`GET ${v1}/replications/:name/points`]: 'replications:read',
  [`GET ${v1}/replications/:name/snapshots`]: 'snapshots:read',
  [`POST ${v1}/replications/:name/snapshots`]: 'snapshots:write',
  [`GET ${v1}/replications/:name/snapshots/:snapshot`]: 'snapshots:read',
  [`PATCH ${v1}/replications/:name/snapshots/:snapshot`]: 'snapshots:write',
  [`DELETE ${v1}/replications/:name/snapshots/:snapshot`]: 'snapshots:write',
  [`GET ${v1}/recoveries`]: 'recoveries:read',
  [`POST ${v1}/recoveries`]: 'recoveries:write',
  [`GET ${v1}/recoveries/:name`]: 'recoveries:read',
  [`DELETE ${v1}/recoveries/:name`]: 'recoveries:write',
  [`POST ${v1}/recoveries/:name/actions/pause`]: 'recoveries:write',
  [`POST ${v1}/recoveries/:name/actions/resume`]: 'recoveries:write',
  [`POST ${v1}/recoveries/:name/actions/cancel`]: 'recoveries:write',
  [`POST ${v1}/recoveries/:name/actions/retry`]: 'recoveries:write',
  [`POST ${v1}/recoveries/:name/actions/rollback`]: 'recoveries:write',
  [`POST ${v1}/recoveries/:name/actions/confirm`]: 'recoveries:write',
  [`GET ${v1}/groups/:name/points`]: 'replications:read',
  [`GET ${v1}/groups`]: 'replications:read',
  [`POST ${v1}/groups`]: 'replications:write',
  [`GET ${v1}/groups/:name`]: 'replications:read',
  [`PATCH ${v1}/groups/:name`]: 'replications:write',
  [`DELETE ${v1}/groups/:name`]: 'replications:write',
  [`GET ${v1}/recoveryschedules`]: 'recoveries:read',
  [`POST ${v1}/recoveryschedules`]: 'recoveries:write',
  [`GET ${v1}/recoveryschedules/:name`]: 'recoveries:read',
  [`PATCH ${v1}/recoveryschedules/:name`]: 'recoveries:write',
  [`DELETE ${v1}/recoveryschedules/:name`]: 'recoveries:write',
  [`GET ${v1}/garbage`]: 'replications:read',
  [`POST ${v1}/garbage/actions/cleanup`]: 'replications:write',
  [`GET ${v1}/events`]: 'events:read',
  [`GET ${v1}/sinks`]: 'events:read',
  [`POST ${v1}/sinks`]: 'events:write',
  [`GET ${v1}/sinks/:name`]: 'events:read',
  [`DELETE ${v1}/sinks/:name`]: 'events:write',
  [`GET ${v1}/tokens`]: 'tokens:read',
  [`POST ${v1}/tokens`]: 'tokens:write',
  [`DELETE ${v1}/tokens/:name`]: 'tokens:write',
  [`GET ${v1}/users`]: 'users:read',
  [`POST ${v1}/users`]: 'users:write',
  [`GET ${v1}/users/:name`]: 'users:read',
  [`PATCH ${v1}/users/:name`]: 'users:write',
  [`DELETE ${v1}/users/:name`]: 'users:write',
  [`POST ${v1}/users/:name/actions/endsessions`]: 'users:write',
  [`POST ${v1}/session`]: 'open',
  [`GET ${v1}/session`]: 'session:read',
  [`DELETE ${v1}/session`]: 'session:write',
  [`POST ${v1}/session/actions/password`]: 'session:write',
};

/** Where the web page's files are. */
export const pageFolder = '/page/';

/** Undefined: the route has no entry. */
export function rightOf(method: string, url: string): Right | undefined {
  // Its files say nothing of what is kept here; all of that comes by the routes below, with their rights.
  if (method === 'GET' && url.startsWith(pageFolder)) return 'open';
  const verb = method === 'HEAD' ? 'GET' : method;
  return rights[`${verb} ${url.startsWith('/docs/') ? '/docs' : url}`];
}

export function allows(right: Right, role: Role): boolean {
  if (right === 'open') return true;
  const [area, verb] = right.replace(/^local-(.*)$/, '$1:read').split(':') as [Area, 'read' | 'write'];
  return (areas[area][verb] as readonly Role[]).includes(role);
}

export function rolesOf(right: Right): readonly Role[] {
  return everyone.filter((role) => allows(right, role));
}
