/** An agent's loop as tests run it: with the real clock, work saved each MiB, and its events told. */
import type { Test } from 'tap';
import type { MirrorDependencies } from '../../../agent/mirror.ts';
import { systemClock, systemRandom } from '../../../proto/system.ts';
import { protocolVersion } from '../../../proto/wire.ts';
import { assignment } from '../../assignment.ts';

export function mirroring(t: Test, own: Pick<MirrorDependencies, 'openSource' | 'connect'>): MirrorDependencies {
  return {
    clock: systemClock,
    random: systemRandom,
    assignment: () => assignment,
    changed: (signal) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(new Error('over')))),
    protocol: () => protocolVersion,
    toMasterUs: async (agentUs) => agentUs,
    report: () => undefined,
    progressCommitBytes: 1 << 20,
    event: ({ message }) => t.comment(message),
    ...own,
  };
}
