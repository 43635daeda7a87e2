/**
 * Trades a one-time token and a signing request for a certificate, and makes the node's Agent object.
 *
 * Guarantees: token and name are taken in one step; a name that belongs to another node with a certificate still good is
 * refused; the same node may join again, its earlier certificates are then worthless.
 */
import type { Clock } from '../proto/effects.ts';
import { ReplicationError, messageOf } from '../proto/errors.ts';
import { parseName } from '../proto/value.ts';
import type { JoinReply, JoinRequest } from '../proto/wire.ts';
import type { Authority, Issued } from './authority.ts';
import { type Agent, apiVersion } from './resources.ts';
import type { Store } from './store.ts';

/** @throws ReplicationError JoinRefused, BadMessage */
export async function admit(
  request: JoinRequest,
  authority: Authority,
  store: Store,
  clock: Clock,
): Promise<{ issued: Issued; replaced: boolean }> {
  const { token, csrDer, name, machineId, agentVersion } = request;
  // Before anything that costs work.
  authority.checkToken(token);
  try {
    parseName(name);
  } catch (error) {
    throw new ReplicationError('BadMessage', `JoinRequest.name ${messageOf(error)}`);
  }
  if (!/^[\x21-\x7e]{8,128}$/.test(machineId))
    throw new ReplicationError('BadMessage', 'JoinRequest.machine_id is not 8 to 128 printable characters');
  const issued = await authority.sign(csrDer, name);

  // From here to the end without a pause: two joins at once must not both take the token or the name.
  const joiner = { name, machineId, keyHash: issued.keyHash };
  authority.checkToken(token, joiner);
  const known = store.get('Agent', name);
  const live = known?.identity.certificates.some(({ notAfter }) => Date.parse(notAfter) > clock.nowMs()) === true;
  if (live && known?.identity.machineId !== machineId)
    throw new ReplicationError(
      'JoinRefused',
      `the name ${name} belongs to another node that has joined; take another --name, or remove that agent first ` +
        `(replctl delete agent ${name})`,
    );
  authority.useToken(token, joiner);
  const identity: Agent['identity'] = { machineId, certificates: [registrationOf(issued)] };
  const status: Agent['status'] = {
    state: 'NO CONN INFO',
    message: 'joined, and not connected yet',
    version: agentVersion.slice(0, 64),
    kernel: null,
    bootId: null,
    lastSeenTime: null,
    clockOffsetSeconds: null,
    certificateExpiryTime: new Date(issued.notAfterMs).toISOString(),
  };
  if (known === undefined) {
    store.create('Agent', name, {
      apiVersion,
      kind: 'Agent',
      metadata: { name },
      spec: { role: 'source' },
      status,
      identity,
    });
  } else {
    store.update('Agent', name, (object) => {
      object.identity = identity;
      object.status = { ...status, bootstrap: object.status.bootstrap };
    });
  }
  return { issued, replaced: known !== undefined && known.identity.certificates.length > 0 };
}

export function registrationOf({ fingerprint, notAfterMs }: Issued): Agent['identity']['certificates'][number] {
  return { fingerprint, notAfter: new Date(notAfterMs).toISOString() };
}

export function replyOf({ certificateDer, notAfterMs }: Issued, { caDer }: Authority): JoinReply {
  return { certificateDer, caDer, notAfterUs: notAfterMs * 1000 };
}
