/**
 * Every view by its place in the address. A view says what it needs of the API and draws what it is given, anew after each change; what a
 * person has chosen in it is in `ui`.
 */
import { agent, agents, events, storage } from './placeviews.js';
import { group, groups, recoveries, recovery } from './recoveryviews.js';
import { replication, replications } from './replicationviews.js';

/** @typedef {import('./viewparts.js').View} View */
/** @typedef {import('./viewparts.js').State} State */

/** By the place in the address; with a name the second one. `needs`: the route without which there is no such thing here.
 * @type {Record<string, { many: View, one?: View, needs: string }>} */
export const views = {
  replications: { many: replications, one: replication, needs: '/replications' },
  groups: { many: groups, one: group, needs: '/groups' },
  recoveries: { many: recoveries, one: recovery, needs: '/recoveries' },
  agents: { many: agents, one: agent, needs: '/agents' },
  storage: { many: storage, needs: '/storageclasses' },
  events: { many: events, one: events, needs: '/events' },
};
/** The list that a kind has: kinds that this master does not know are not asked for. @type {Record<string, string>} */
export const collections = {
  Replication: '/replications',
  Snapshot: '/replications/{name}/snapshots',
  Recovery: '/recoveries',
  RecoverySchedule: '/recoveryschedules',
  Agent: '/agents',
  StorageClass: '/storageclasses',
};
