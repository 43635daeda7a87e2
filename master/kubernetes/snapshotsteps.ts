/**
 * Cuts of one claim by VolumeSnapshots: taken, shown to the claim's agent on its node, and removed. Of a block claim one stays between cuts, to
 * be compared with by the driver's SnapshotMetadata service.
 */
import { isIP } from 'node:net';
import { formatHostPort, parseHostPort } from '../../proto/value.ts';
import { ApiFault } from './api.ts';
import { quantity } from './claimplace.ts';
import { atWork, clusterSteps, failed, hide, type Steps, type StepsOptions } from './clustersteps.ts';
import { absent } from './receivers.ts';
import {
  nameOf,
  ownerOf,
  shownClaimOf,
  showingPodOf,
  snapshotGroup,
  snapshotLabel,
  snapshotOf,
  type VolumeSnapshot,
} from './snapshotobjects.ts';

const reader = 'replication-snapshot-reader';
const tokenSeconds = 600;

export function snapshotPath(namespace: string, name = ''): string {
  return `/apis/${snapshotGroup}/v1/namespaces/${namespace}/volumesnapshots${name === '' ? '' : `/${name}`}`;
}

export function snapshotSteps(options: StepsOptions): Steps {
  const { api, clock, of, pvc, volumeMode, volumeSnapshotClassName, signal } = options;
  const { namespace } = pvc;
  const cluster = clusterSteps(options);
  const { core, get, waited, make } = cluster;

  async function rightsTold<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await cluster.rightsTold(work);
    } catch (error) {
      if (error instanceof ApiFault && error.status === 404)
        throw failed(`the cluster knows no VolumeSnapshots: ${error.message}; install the CSI snapshot controller`);
      throw error;
    }
  }

  /** @throws SnapshotFailed when it is not one of this replication */
  async function own(name: string): Promise<VolumeSnapshot | undefined> {
    const found = await get<VolumeSnapshot>(snapshotPath(namespace, name));
    if (found && found.metadata.labels?.[snapshotLabel] !== of.uid)
      throw failed(`${name} is none of ${of.replication}`);
    return found;
  }

  async function list(): Promise<VolumeSnapshot[]> {
    const selector = encodeURIComponent(`${snapshotLabel}=${of.uid}`);
    const path = `${snapshotPath(namespace)}?labelSelector=${selector}`;
    const { items } = (await rightsTold(() => api.request('GET', path, undefined, signal))) as {
      items: VolumeSnapshot[];
    };
    return items;
  }

  async function close(name: string): Promise<void> {
    await hide(api, namespace, name, of.uid);
  }

  async function remove(name: string): Promise<void> {
    if (!(await own(name))) return;
    await close(name);
    await absent(() => api.request('DELETE', snapshotPath(namespace, name)));
  }

  /** @throws SnapshotFailed when the class that is named cannot be used */
  async function checkClass(): Promise<void> {
    if (volumeSnapshotClassName === undefined) return;
    await cluster.classOf<{ driver: string }>(
      `VolumeSnapshotClass ${volumeSnapshotClassName}`,
      `/apis/${snapshotGroup}/v1/volumesnapshotclasses/${volumeSnapshotClassName}`,
      ({ driver }) => driver,
    );
  }

  /** Of a Service, which nodes do not know by its name. */
  async function addressOf(host: string): Promise<string | undefined> {
    const [, name, of] = /^([a-z0-9-]+)\.([a-z0-9-]+)(\.svc(\..*)?)?$/.exec(host) ?? [];
    if (name === undefined || of === undefined) return undefined;
    const path = `/api/v1/namespaces/${of}/services/${name}`;
    const found = await rightsTold(() => get<{ spec: { clusterIP?: string } }>(path));
    return isIP(found?.spec.clusterIP ?? '') ? found?.spec.clusterIP : undefined;
  }

  return {
    list: async () => (await list()).map(({ metadata }) => metadata.name),
    close,
    remove,

    async take(keep) {
      for (const { metadata } of await list()) if (!keep.includes(metadata.name)) await remove(metadata.name);
      await checkClass();
      const name = nameOf(of, clock.nowMs());
      const object = snapshotOf(name, of, pvc.name, volumeSnapshotClassName);
      await rightsTold(() => api.request('POST', snapshotPath(namespace), object, signal));
      try {
        return await waited(async () => {
          const snapshot = await own(name);
          if (!snapshot) throw failed(`VolumeSnapshot ${name} was removed by somebody else`);
          if (snapshot.status?.readyToUse === true) return { found: name };
          const error = snapshot.status?.error?.message;
          const text = `VolumeSnapshot ${name} is not ready: ${error ?? 'its driver works on it'}`;
          return error === undefined || atWork.test(error) ? text : { error: text };
        });
      } catch (error) {
        await remove(name).catch(() => undefined);
        throw error;
      }
    },

    async open(name) {
      const snapshot = await own(name);
      if (!snapshot) throw failed(`VolumeSnapshot ${name} is gone`);
      const bytes = Math.max(
        quantity(snapshot.status?.restoreSize ?? ''),
        quantity((await cluster.source()).status?.capacity?.storage ?? ''),
      );
      const storageClassName = await cluster.storageClass();
      await make(`${core}/persistentvolumeclaims`, shownClaimOf(snapshot, of, { volumeMode, storageClassName, bytes }));
      await make(`${core}/pods`, showingPodOf(ownerOf(snapshot), of, options));
      return cluster.shown(name);
    },

    async handle(name) {
      const content = (await rightsTold(() => own(name)))?.status?.boundVolumeSnapshotContentName;
      if (content === undefined) return '';
      const path = `/apis/${snapshotGroup}/v1/volumesnapshotcontents/${content}`;
      const found = await rightsTold(() => get<{ status?: { snapshotHandle?: string } }>(path));
      return found?.status?.snapshotHandle ?? '';
    },

    async service(ours) {
      const driver = await cluster.driver();
      await checkClass();
      const found = await rightsTold(() => get<SnapshotMetadataService>(`/apis/cbt.storage.k8s.io/v1beta1/snapshotmetadataservices/${driver}`)); // prettier-ignore
      if (!found) return {};
      const { address, audience, caCert } = found.spec;
      const path = `/api/v1/namespaces/${ours}/serviceaccounts/${reader}/token`;
      const asked = { spec: { audiences: [audience], expirationSeconds: tokenSeconds } };
      const { status } = (await rightsTold(() => api.request('POST', path, asked, signal))) as {
        status: { token: string };
      };
      const { host, port } = parseHostPort(address);
      return {
        address: formatHostPort({ host: (await addressOf(host)) ?? host, port }),
        serverName: host,
        caPem: Buffer.from(caCert, 'base64'),
        token: status.token,
      };
    },
  };
}

/** Of the project external-snapshot-metadata, named as the driver. */
interface SnapshotMetadataService {
  spec: { address: string; audience: string; caCert: string };
}
