/** What can be done to replications, snapshots, recoveries and groups from the page: by the public API, as the role may. */
import { all, call, can, choices, currentSession } from './api.js';
import { act, openDialog, toast } from './dialog.js';
import { t } from './text.js';

/** @typedef {{ label: string, run: () => unknown, kind?: 'primary' | 'danger' }} Action */

/** @param {string} method @param {string} path @param {any} body @param {string} what */
async function done(method, path, body, what) {
  const answer = await call(method, path, body);
  toast(t('done', { what }));
  return answer;
}

/** @returns {Action[]} */
export function actionsOf(/** @type {any} */ replication, /** @type {any[]} */ snapshots) {
  const { name } = replication.metadata;
  const one = `/replications/${name}`;
  /** @type {Action[]} */
  const actions = [];
  /** @param {string} verb @param {Omit<Action, 'label'>} action */
  const add = (verb, action) => {
    if (can('POST', `/replications/{name}/actions/${verb}`)) actions.push({ label: t(verb), ...action });
  };
  /** @param {string} verb @param {string} about */
  const forced = (verb, about) => () =>
    openDialog({
      title: `${t(verb)}: ${name}`,
      about,
      fields: [{ name: 'force', label: t('force'), type: 'checkbox' }],
      typed: name,
      verb: t(verb),
      run: ({ force }) => done('POST', `${one}/actions/${verb}`, { force }, t(verb)),
    });
  /** @param {string} verb */
  const plain = (verb) => () => act(t(verb), () => call('POST', `${one}/actions/${verb}`, {}));

  if (mayRecover('drill'))
    actions.push({ label: t('drill'), kind: 'primary', run: () => recover(replication, snapshots, 'drill') });
  if (mayRecover('failover'))
    actions.push({ label: t('failover'), kind: 'danger', run: () => recover(replication, snapshots, 'failover') });
  if (can('POST', '/replications/{name}/snapshots'))
    actions.push({ label: t('snapshot'), run: () => act(t('snapshot'), () => call('POST', `${one}/snapshots`, {})) });
  add(replication.spec.paused ? 'resume' : 'pause', { run: plain(replication.spec.paused ? 'resume' : 'pause') });
  add('verify', { run: plain('verify') });
  add('resync', { run: forced('resync', t('aboutResync')) });
  add('promote', { kind: 'danger', run: forced('promote', t('aboutPromote')) });
  add('demote', { kind: 'danger', run: forced('demote', t('aboutDemote')) });
  if (can('DELETE', '/replications/{name}'))
    actions.push({ label: t('delete'), kind: 'danger', run: () => removeReplication(name) });
  return actions;
}

/** A failover is made by manager or admin. @param {string} type */
export function mayRecover(type) {
  const role = currentSession()?.role ?? '';
  if (!can('POST', '/recoveries') || !choices('POST', '/recoveries', 'type').includes(type)) return false;
  return type !== 'failover' || role === 'admin' || role === 'manager';
}

/** @param {string} name */
function removeReplication(name) {
  openDialog({
    title: `${t('delete')}: ${name}`,
    about: t('aboutDelete'),
    fields: [{ name: 'keepReplica', label: t('keepReplica'), type: 'checkbox' }],
    typed: name,
    verb: t('delete'),
    async run({ keepReplica }) {
      await done('DELETE', `/replications/${name}?keepReplica=${keepReplica}`, undefined, t('delete'));
      location.hash = '#/replications';
    },
  });
}

/**
 * Asks for point and place, and shows the recovery as it runs.
 * @param {any} object a replication or a group
 * @param {any[]} snapshots
 * @param {'drill' | 'failover'} type
 * @param {string} [snapshot] chosen already
 */
export function recover(object, snapshots, type, snapshot) {
  const { name } = object.metadata;
  const isGroup = object.kind === 'Group';
  const ready = snapshots.filter(({ status }) => status.state === 'Ready').map(({ metadata }) => metadata.name);
  const options = [
    { value: 'latest-data', label: t('latestData') },
    ...(ready.length === 0 && !isGroup ? [] : [{ value: 'latest-snapshot', label: t('latestSnapshot') }]),
    { value: 'time', label: t('aTime') },
    ...ready.map((one) => ({ value: `snapshot/${one}`, label: t('aSnapshot', { name: one }) })),
  ];
  openDialog({
    title: `${t(type)}: ${name}`,
    about: t(type === 'drill' ? 'aboutDrill' : 'aboutFailover'),
    fields: [
      { name: 'point', label: t('recoverTo'), type: 'select', options, value: snapshot === undefined ? 'latest-data' : `snapshot/${snapshot}` }, // prettier-ignore
      { name: 'time', label: t('atTime'), type: 'datetime-local', when: ({ point }) => point === 'time' },
      ...(isGroup ? [] : [{ name: 'path', label: t('toPath'), optional: true }]),
    ],
    ...(type === 'failover' ? { typed: name } : {}),
    verb: t(type),
    async run({ point, time, path }) {
      const chosen =
        point === 'time'
          ? { time: new Date(time).toISOString() }
          : point.startsWith('snapshot/')
            ? { snapshot: point.slice('snapshot/'.length) }
            : point;
      const body = {
        [isGroup ? 'group' : 'replication']: name,
        type,
        point: chosen,
        ...(path ? { target: { path } } : {}),
      };
      const made = await done('POST', '/recoveries', body, t(type));
      location.hash = `#/recoveries/${made.metadata.name}`;
    },
  });
}

/**
 * In which states a recovery takes an action, and in which it can only be told to let go of what does not work. The master
 * has the last word.
 * @type {Record<string, { from: string[], force?: string }>}
 */
const recoveryStates = {
  pause: { from: ['Running'] },
  resume: { from: ['Pausing', 'Paused'] },
  cancel: { from: ['Waiting', 'Running', 'Pausing', 'Paused'], force: 'Cancelling' },
  retry: { from: ['Failed', 'Completed'] },
  confirm: { from: ['Completed'], force: 'Confirming' },
  rollback: { from: ['Completed', 'Failed'], force: 'RollingBack' },
};
const abouts = { confirm: 'aboutConfirm', rollback: 'aboutRollback', cancel: 'aboutCancel' };

/** @returns {Action[]} */
export function recoveryActions(/** @type {any} */ recovery) {
  const { metadata, spec, status } = recovery;
  const { name } = metadata;
  const isFailover = spec.type === 'failover';
  const hasFailed = status.tasks.some((/** @type {any} */ { state }) => state === 'Failed');
  /** @type {Action[]} */
  const actions = [];
  for (const [verb, { from, force }] of Object.entries(recoveryStates)) {
    const isStuck = status.state === force;
    if (!(isStuck || from.includes(status.state)) || !can('POST', `/recoveries/{name}/actions/${verb}`)) continue;
    if ((verb === 'confirm' && !isFailover) || (verb === 'retry' && !hasFailed)) continue;
    const path = `/recoveries/${name}/actions/${verb}`;
    if (!isStuck && !(verb in abouts)) {
      actions.push({ label: t(verb), run: () => act(t(verb), () => call('POST', path, {})) });
      continue;
    }
    const label = isStuck ? `${t(verb)} (${t('force')})` : t(verb);
    const isDangerous = isFailover || isStuck;
    actions.push({
      label,
      kind: isDangerous ? 'danger' : undefined,
      run: () =>
        openDialog({
          title: `${label}: ${name}`,
          about: t(isStuck ? 'aboutForce' : (abouts[/** @type {'cancel'} */ (verb)] ?? '')),
          fields: isDangerous && !isStuck ? [{ name: 'force', label: t('force'), type: 'checkbox' }] : [],
          ...(isDangerous ? { typed: String(spec.group ?? spec.replication) } : {}),
          verb: label,
          run: (values) => done('POST', path, { force: isStuck || values['force'] === true }, label),
        }),
    });
  }
  if (status.outcome !== null && can('DELETE', '/recoveries/{name}'))
    actions.push({
      label: t('delete'),
      run: () =>
        act(t('delete'), async () => {
          await call('DELETE', `/recoveries/${name}`);
          location.hash = '#/recoveries';
        }),
    });
  return actions;
}

/** @returns {Action[]} */
export function snapshotActions(
  /** @type {any} */ replication,
  /** @type {any} */ snapshot,
  /** @type {any[]} */ snapshots,
) {
  const { name } = snapshot.metadata;
  const path = `/replications/${replication.metadata.name}/snapshots/${name}`;
  const { pinned, lockedUntil } = snapshot.spec;
  /** @type {Action[]} */
  const actions = [];
  if (snapshot.status.state === 'Ready' && mayRecover('drill'))
    actions.push({ label: t('drill'), run: () => recover(replication, snapshots, 'drill', name) });
  if (can('PATCH', '/replications/{name}/snapshots/{snapshot}')) {
    const what = t(pinned ? 'unpin' : 'pin');
    actions.push({ label: what, run: () => act(what, () => call('PATCH', path, { pinned: !pinned })) });
    actions.push({
      label: t('lock'),
      run: () =>
        openDialog({
          title: `${t('lock')}: ${name}`,
          about: t('lockNote'),
          fields: [{ name: 'until', label: t('lockUntil'), type: 'datetime-local' }],
          verb: t('lock'),
          run: ({ until }) => done('PATCH', path, { lockedUntil: new Date(until).toISOString() }, t('lock')),
        }),
    });
  }
  const isLocked = lockedUntil !== null && Date.parse(lockedUntil) > Date.now();
  if (can('DELETE', '/replications/{name}/snapshots/{snapshot}') && !pinned && !isLocked)
    actions.push({
      label: t('delete'),
      run: () =>
        openDialog({
          title: `${t('delete')}: ${name}`,
          about: t('aboutDelete'),
          verb: t('delete'),
          run: () => done('DELETE', path, undefined, t('delete')),
        }),
    });
  return actions;
}

/** Asks what to mirror and where to. @param {{ agent?: string, path?: string }} [given] */
export async function newReplication(given = {}) {
  /** @type {[any[], any[]]} */
  let [agents, classes] = [[], []];
  try {
    [agents, classes] = await Promise.all([all('/agents'), all('/storageclasses')]);
  } catch (error) {
    return act(t('newReplication'), () => Promise.reject(error));
  }
  /** @param {string} agent */
  const suggest = async (agent) => {
    const list = document.getElementById('field-path-list');
    const volumes = agent === '' ? [] : await all(`/agents/${agent}/volumes`).catch(() => []);
    const found = volumes.filter(({ eligible }) => eligible).map(({ path }) => new Option(path, path));
    list?.replaceChildren(...found);
  };
  const named = (/** @type {any[]} */ objects) =>
    objects.map(({ metadata }) => ({ value: metadata.name, label: metadata.displayName ?? metadata.name }));
  openDialog({
    title: t('newReplication'),
    fields: [
      { name: 'name', label: t('name') },
      { name: 'agent', label: t('agent'), type: 'select', options: named(agents), value: given.agent ?? '', changed: ({ agent }) => void suggest(agent) }, // prettier-ignore
      { name: 'path', label: t('path'), value: given.path ?? '', hint: t('pathHint'), options: [{ value: given.path ?? '/', label: '' }] }, // prettier-ignore
      { name: 'storageClass', label: t('storageClass'), type: 'select', options: named(classes) },
      { name: 'rpoSeconds', label: t('rpoSeconds'), type: 'number', value: 30 },
      { name: 'group', label: t('group'), optional: true, value: currentSession()?.groups?.[0] ?? '' },
    ],
    verb: t('create'),
    async run({ name, agent, path, storageClass, rpoSeconds, group }) {
      const spec = { source: { agent, path }, target: { storageClass }, rpoSeconds, ...(group ? { group } : {}) };
      await done('POST', '/replications', { metadata: { name }, spec }, t('newReplication'));
      location.hash = `#/replications/${name}`;
    },
  });
  await suggest(given.agent ?? agents[0]?.metadata.name ?? '');
}
