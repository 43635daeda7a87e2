/**
 * Whether a node answers: the agent as a witness of whether another one is alive.
 *
 * One TCP connection that is closed at once. A refusal is an answer: the kernel there lives, whatever runs on it. Never throws:
 * where this node itself cannot ask (no route, no free port) the outcome is `failed`, which says nothing of the other.
 */
import { connect } from 'node:net';
import { messageOf, systemErrorCode } from '../proto/errors.ts';
import type { Probed } from '../proto/wire.ts';

const answerMs = 3000;
const refusals: ReadonlySet<string | undefined> = new Set(['ECONNREFUSED', 'ECONNRESET']);
const silences: ReadonlySet<string | undefined> = new Set(['ETIMEDOUT', 'EHOSTUNREACH', 'EHOSTDOWN']);

export async function probe(address: string, port: number): Promise<Omit<Probed, 'number'>> {
  return new Promise((resolve) => {
    const socket = connect({ host: address, port });
    const end = (outcome: Probed['outcome'], message: string): void => {
      clearTimeout(patience);
      socket.destroy();
      resolve({ outcome, message });
    };
    const patience = setTimeout(() => end('unreachable', `no answer within ${answerMs / 1000} s`), answerMs);
    socket.once('connect', () => end('reached', 'accepted'));
    socket.once('error', (error) => {
      const code = systemErrorCode(error);
      end(refusals.has(code) ? 'reached' : silences.has(code) ? 'unreachable' : 'failed', messageOf(error));
    });
  });
}
