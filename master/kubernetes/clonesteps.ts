/**
 * Cuts of one claim by clones: a claim that is made from it by the storage, shown to the claim's agent on its node, and removed when
 * it was read. It is of one instant, and consistent, as far as the storage's clones are.
 *
 * A clone whose class waits for its first consumer is made when the pod that shows it has a node, so that pod is made with it.
 */
import { quantity } from './claimplace.ts';
import { clusterSteps, failed, hide, type Steps, type StepsOptions } from './clustersteps.ts';
import type { Claim } from './receiverobjects.ts';
import { cloneLabel, cloneOf, nameOf, showingPodOf, snapshotLabel } from './snapshotobjects.ts';

type Clone = Claim & { metadata: { uid: string; namespace: string } };

export function cloneSteps(options: StepsOptions): Steps {
  const { api, clock, of, pvc, volumeMode, signal } = options;
  const cluster = clusterSteps(options);
  const { core, claimPath, get, rightsTold, waited, make } = cluster;

  /** @throws SnapshotFailed when it is not one of this replication */
  async function own(name: string): Promise<Clone | undefined> {
    const found = await get<Clone>(claimPath(name));
    const { labels = {} } = found?.metadata ?? {};
    if (found && (labels[snapshotLabel] !== of.uid || !(cloneLabel in labels)))
      throw failed(`${name} is none of ${of.replication}`);
    return found;
  }

  async function list(): Promise<string[]> {
    const selector = encodeURIComponent(`${snapshotLabel}=${of.uid},${cloneLabel}`);
    const path = `${core}/persistentvolumeclaims?labelSelector=${selector}`;
    const { items } = (await rightsTold(() => api.request('GET', path, undefined, signal))) as { items: Claim[] };
    // One that is going stays until its pod has gone.
    return items.flatMap(({ metadata }) => (metadata.deletionTimestamp === undefined ? [metadata.name] : []));
  }

  async function remove(name: string): Promise<void> {
    if (await own(name)) await hide(api, pvc.namespace, name, of.uid);
  }

  return {
    list,
    remove,
    /** With the clone: it is no good to anybody when it is not shown. */
    close: remove,

    async take(keep) {
      for (const name of await list()) if (!keep.includes(name)) await remove(name);
      const source = await cluster.source();
      const storageClassName = await cluster.storageClass();
      const name = nameOf(of, clock.nowMs());
      const bytes = quantity(source.status?.capacity?.storage ?? '');
      const object = cloneOf(name, of, pvc.name, { volumeMode, storageClassName, bytes });
      try {
        const clone = (await rightsTold(() =>
          api.request('POST', `${core}/persistentvolumeclaims`, object, signal),
        )) as Clone;
        const owner = { apiVersion: 'v1', kind: 'PersistentVolumeClaim', metadata: clone.metadata };
        await make(`${core}/pods`, showingPodOf(owner, of, options));
        const waits = cluster.unbound();
        return await waited<string>(async () => {
          const made = await own(name);
          if (!made) throw failed(`the clone ${name} was removed by somebody else`);
          return made.status?.phase === 'Bound' ? { found: name } : waits(made);
        });
      } catch (error) {
        await remove(name).catch(() => undefined);
        throw error;
      }
    },

    async open(name) {
      if (!(await own(name))) throw failed(`the clone ${name} is gone`);
      return cluster.shown(name);
    },

    /** Nothing compares clones. */
    handle: async () => '',
    async service() {
      await cluster.storageClass();
      return {};
    },
  };
}
