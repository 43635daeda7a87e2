/**
 * Claims that ask for protection: by the label or annotation `<group>/protect` on the claim, or on its namespace for all of its
 * claims; the claim's own word goes first. Its value is `true` (class `local`), the name of a storage class, or `false`. An
 * annotation `<group>/rpo-seconds` beside it says how old the copy may be. Pure.
 */
import { createHash } from 'node:crypto';
import { refusal, type Claim } from './claimplace.ts';
import type { ClusterView } from './clusterview.ts';
import { ownCluster } from './clusters.ts';
import { group } from './kinds.ts';
import { snapshotLabel } from './snapshotobjects.ts';

export const protectKey = `${group}/protect`;
export const rpoKey = `${group}/rpo-seconds`;
/** On the replications that were made so. */
export const protectedLabel = `${group}/protected`;

interface Marked {
  labels: Record<string, string>;
  annotations: Record<string, string>;
}

export interface Protection {
  claim: { namespace: string; name: string };
  /** Why there is none. */
  problem: string | undefined;
  /** What POST takes. */
  replication: object;
}

export function protectedClaims(cluster: string, view: Pick<ClusterView, 'claims' | 'namespace'>): Protection[] {
  const found: Protection[] = [];
  for (const claim of view.claims()) {
    // What shows a snapshot of a claim is no claim of anybody's.
    if (claim.ending || snapshotLabel in claim.labels) continue;
    const above = view.namespace(claim.namespace) ?? { labels: {}, annotations: {} };
    const wanted = wordOf(claim, protectKey) ?? wordOf(above, protectKey);
    if (wanted === undefined || wanted === 'false') continue;
    const rpo = wordOf(claim, rpoKey) ?? wordOf(above, rpoKey);
    const problem =
      refusal(claim) ??
      (rpo === undefined || Number(rpo) >= 1 ? undefined : `${rpoKey} ${rpo} is no number of seconds from 1`);
    found.push({
      claim: { namespace: claim.namespace, name: claim.name },
      problem,
      replication: {
        metadata: { name: nameFor(cluster, claim), labels: { [protectedLabel]: 'true' } },
        spec: {
          source: {
            pvc: { ...(cluster === ownCluster ? {} : { cluster }), namespace: claim.namespace, name: claim.name },
          },
          target: { storageClass: wanted === 'true' ? 'local' : wanted },
          ...(rpo === undefined ? {} : { rpoSeconds: Number(rpo) }),
        },
      },
    });
  }
  return found;
}

function wordOf({ labels, annotations }: Marked, key: string): string | undefined {
  return annotations[key] ?? labels[key];
}

/** The same for the same claim; two claims never have one. */
export function nameFor(cluster: string, { namespace, name }: Pick<Claim, 'namespace' | 'name'>): string {
  const parts = [...(cluster === ownCluster ? [] : [cluster]), namespace, name];
  const digest = createHash('sha256').update(parts.join('/')).digest('hex').slice(0, 8);
  const text = parts.join('-').replaceAll('.', '-').slice(0, 54).replace(/-+$/, '');
  return `${text}-${digest}`;
}
