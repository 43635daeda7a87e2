/**
 * Protection groups over REST. Listing a replication as a member writes its spec.group, which is what makes it one; taking
 * it off the list, or deleting the group, takes that away again.
 */
import type { FastifyInstance } from 'fastify';
import { blankStatus, groupStatus } from '../groups.ts';
import { hasEnded } from '../recovery/machine.ts';
import type { Group } from '../resources.ts';
import { objectRoutes } from './objects.ts';
import { ApiProblem, invalid, type FieldError } from './problem.ts';
import type { Context } from './route.ts';
import { mustHaveGroup, scopeOf } from './scope.ts';
import { GroupInput } from './schema/group.ts';

export function groupRoutes(app: FastifyInstance, context: Context): void {
  const { store, engine, clock } = context;

  function view(group: Group): Group {
    const common = engine.groupPoints?.(group.metadata.name).at(-1)?.sourceTime;
    const status = groupStatus(group, {
      replications: store.list('Replication'),
      recoveries: store.list('Recovery'),
      classes: store.list('StorageClass'),
      commonMs: common === undefined ? undefined : Date.parse(common),
      nowMs: clock.nowMs(),
    });
    return { ...group, status };
  }

  objectRoutes(app, context, {
    kind: 'Group',
    plural: 'groups',
    singular: 'group',
    input: GroupInput,
    status: blankStatus,
    view,
    async complete(spec, name, caller) {
      mustHaveGroup(caller, name);
      const scope = scopeOf(store, caller);
      const errors: FieldError[] = [];
      const listed = spec.members.map(({ replication }) => replication);
      listed.forEach((replication, index) => {
        const path = `spec.members[${index}].replication`;
        const found = store.get('Replication', replication);
        const other = found?.spec.group;
        if (found === undefined || !scope.sees(found))
          errors.push({ path, message: 'must name a replication that exists' });
        else if (other !== undefined && other !== name)
          errors.push({ path, message: `is a member of group ${other}; take it out of that first` });
        else if (listed.indexOf(replication) !== index) errors.push({ path, message: 'is there twice' });
      });
      if (errors.length > 0) throw invalid(errors);
      return spec;
    },
    after(group, old, isDeleted) {
      const { name } = group.metadata;
      const listed = isDeleted ? [] : group.spec.members.map(({ replication }) => replication);
      const before = old?.spec.members.map(({ replication }) => replication) ?? [];
      for (const { metadata, spec } of store.list('Replication')) {
        const isOut =
          spec.group === name && (isDeleted || (before.includes(metadata.name) && !listed.includes(metadata.name)));
        if (isOut) store.update('Replication', metadata.name, (one) => void delete one.spec.group);
        else if (listed.includes(metadata.name))
          store.update('Replication', metadata.name, (one) => void (one.spec.group = name));
      }
    },
    mayDelete({ metadata: { name } }) {
      const errors = [
        ...store
          .list('Recovery')
          .filter((one) => one.spec.group === name && !hasEnded(one))
          .map(({ metadata, status }) => ({
            path: `Recovery/${metadata.name}`,
            message: `is ${status.state}; end it first`,
          })),
        ...store
          .list('RecoverySchedule')
          .filter(({ spec }) => spec.group === name)
          .map(({ metadata }) => ({
            path: `RecoverySchedule/${metadata.name}`,
            message: 'recovers it; delete it first',
          })),
      ];
      const why = errors.map(({ path, message }) => `${path} ${message}`).join('; ');
      if (errors.length > 0) throw new ApiProblem('Referenced', `group ${name} cannot be deleted yet: ${why}`, errors);
    },
  });
}
