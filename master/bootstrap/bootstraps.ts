/**
 * Bootstraps that the API asked for: each runs beside the others, and its Agent object says how it goes.
 *
 * Guarantees: the object is there from the start, as NOT INSTALLED until the node joins; each step is a change of its
 * status.bootstrap, so that a watch sees it. One at a time for an agent, at most `maxRunning` in all. Stopping the master,
 * or revoking the agent, stops and undoes. Keys and passphrases are held in memory while it runs, and nowhere else.
 * After a crash the next start says of those that ran that nobody knows how far they came.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf, ReplicationError } from '../../proto/errors.ts';
import { ApiProblem } from '../api/problem.ts';
import type { BootstrapRequest, Events } from '../engine.ts';
import { type Agent, type AgentBootstrap, apiVersion } from '../resources.ts';
import type { Store } from '../store.ts';
import { parseHostKey, type HostKeys } from './hostkey.ts';
import { findPackage } from './packages.ts';
import { openShell, type SshHost } from './ssh.ts';
import { bootstrap, type MasterSide, type StepReport } from './steps.ts';

const maxRunning = 8;

export interface BootstrapsOptions {
  store: Store;
  clock: Pick<Clock, 'nowMs'>;
  events: Events;
  newJoinToken: () => Promise<string>;
  disconnect: (agent: string) => void;
  caPem: string;
  /** Folder of packages. */
  packages: string;
  version: string;
  /** HOST:PORT that hosts dial unless the request names another; undefined: nobody said. */
  dialed: string | undefined;
  /** Socket of the master's own SSH agent. */
  agentSocket: string | undefined;
  onStep?: (agent: string, report: StepReport) => void;
}

export interface Bootstraps {
  /** @throws ApiProblem WrongState, LimitReached, Invalid */
  start(name: string, request: BootstrapRequest): Agent;
  /** Stops and undoes one; nothing when none runs. */
  stop(name: string, why: string): void;
  /** Stops and undoes all; resolves when that is done. */
  close(): Promise<void>;
}

export function bootstraps(options: BootstrapsOptions): Bootstraps {
  const { store, clock, events } = options;
  const running = new Map<string, { stop: AbortController; done: Promise<void> }>();
  const nowText = (): string => new Date(clock.nowMs()).toISOString();

  for (const { metadata, status } of store.list('Agent'))
    if (status.bootstrap?.state === 'Running')
      finish(metadata.name, 'Failed', 'the master ended meanwhile; run it again, it goes on from what is there');

  function change(name: string, to: (bootstrap: AgentBootstrap, agent: Agent) => void): void {
    if (store.get('Agent', name) === undefined) return;
    store.update('Agent', name, (agent) => {
      if (agent.status.bootstrap !== undefined) to(agent.status.bootstrap, agent);
    });
  }
  function finish(name: string, state: 'Completed' | 'Failed', message: string): void {
    change(name, (one, agent) => {
      Object.assign(one, { state, message, endTime: nowText() });
      if (agent.status.state === 'NOT INSTALLED') agent.status.message = `the bootstrap failed: ${message}`;
    });
  }
  function follow(name: string, report: StepReport): void {
    options.onStep?.(name, report);
    change(name, (one) => {
      one.message = `${report.step}: ${report.message}`;
      const last = one.steps.at(-1);
      if (last?.step === report.step) Object.assign(last, report);
      else one.steps.push(report);
    });
  }

  function masterSide(name: string): MasterSide {
    return {
      newJoinToken: options.newJoinToken,
      agentState: async () => store.get('Agent', name)?.status,
      async revoke() {
        if (store.get('Agent', name) === undefined) return;
        store.update('Agent', name, (agent) => {
          agent.identity.certificates = [];
          agent.status = { ...blank('not installed'), bootstrap: agent.status.bootstrap };
        });
        options.disconnect(name);
      },
    };
  }

  function begin(name: string): Agent {
    const started: AgentBootstrap = {
      state: 'Running',
      message: 'begins',
      startTime: nowText(),
      endTime: null,
      steps: [],
    };
    if (store.get('Agent', name) !== undefined)
      return store.update('Agent', name, (agent) => void (agent.status.bootstrap = started));
    return store.create('Agent', name, {
      apiVersion,
      kind: 'Agent',
      metadata: { name },
      spec: { role: 'source' },
      status: { ...blank('is being installed'), bootstrap: started },
      identity: { machineId: '', certificates: [] },
    });
  }

  async function run(name: string, host: SshHost, request: BootstrapRequest, signal: AbortSignal): Promise<void> {
    const { role, allow, kubelet, logLevel, waitSeconds } = request;
    const object = `Agent/${name}`;
    events.emit({ code: 'BootstrapStarted', level: 'INFO', message: `${host.user}@${host.host}:${host.port}`, object });
    try {
      await bootstrap(
        {
          settings: { name, master: dialedBy(request), caPem: options.caPem, role, allow, kubelet, logLevel },
          master: masterSide(name),
          connect: (until) => openShell(host, until),
          packageFor: (architecture) => findPackage(options.packages, options.version, architecture),
          report: (report) => follow(name, report),
          waitSeconds,
        },
        signal,
      );
      finish(name, 'Completed', 'the agent is installed and connected');
      events.emit({ code: 'BootstrapCompleted', level: 'INFO', message: `${host.host} runs the agent`, object });
    } catch (error) {
      finish(name, 'Failed', messageOf(error));
      events.emit({ code: 'BootstrapFailed', level: 'ERROR', message: messageOf(error), object });
    }
  }

  function dialedBy({ master }: BootstrapRequest): string {
    const dialed = master ?? options.dialed;
    if (dialed === undefined)
      throw wrong('master', 'is required, HOST:PORT as the host dials it: this master was started without --advertise');
    return dialed;
  }

  return {
    start(name, request) {
      if (running.has(name)) throw new ApiProblem('WrongState', `a bootstrap of ${name} runs already; watch the agent`);
      if (running.size >= maxRunning)
        throw new ApiProblem('LimitReached', `${maxRunning} bootstraps run already; wait until one has ended`);
      dialedBy(request);
      const host = hostOf(request, options.agentSocket);
      const agent = begin(name);
      const stop = new AbortController();
      const done = run(name, host, request, stop.signal).finally(() => running.delete(name));
      running.set(name, { stop, done });
      return agent;
    },
    stop(name, why) {
      running.get(name)?.stop.abort(new ReplicationError('Stopped', why));
    },
    async close() {
      const all = [...running];
      for (const [, { stop }] of all) stop.abort(new ReplicationError('Stopped', 'the master is being stopped'));
      await Promise.all(all.map(([, { done }]) => done));
    },
  };
}

function blank(message: string): Agent['status'] {
  return {
    state: 'NOT INSTALLED',
    message,
    version: null,
    kernel: null,
    bootId: null,
    lastSeenTime: null,
    clockOffsetSeconds: null,
    certificateExpiryTime: null,
  };
}

function hostOf(request: BootstrapRequest, agentSocket: string | undefined): SshHost {
  const { host, port, user, hostKey, privateKey, passphrase, sshAgent, jump } = request;
  if ((privateKey !== undefined) === (sshAgent === true))
    throw wrong('privateKey', "or sshAgent: true (the master's own SSH agent) is required, and not both");
  if (sshAgent === true && agentSocket === undefined)
    throw wrong('sshAgent', 'cannot be used: this master was started without SSH_AUTH_SOCK; send privateKey');
  const login = privateKey === undefined ? { agentSocket: agentSocket ?? '' } : loginBy({ privateKey, passphrase });
  const target = { host, port, user, hostKeys: keysOf('hostKey', hostKey), login };
  if (jump === undefined) return target;
  const { host: by, port: at, user: as } = jump;
  const own = jump.privateKey === undefined ? login : loginBy({ ...jump, privateKey: jump.privateKey });
  return {
    ...target,
    jump: { host: by, port: at, user: as, hostKeys: keysOf('jump.hostKey', jump.hostKey), login: own },
  };
}

function loginBy({
  privateKey,
  passphrase,
}: {
  privateKey: string;
  passphrase?: string | undefined;
}): SshHost['login'] {
  return { privateKey, ...(passphrase === undefined ? {} : { passphrase }) };
}

function keysOf(field: string, text: string): HostKeys {
  try {
    return parseHostKey(text);
  } catch (error) {
    throw wrong(field, messageOf(error));
  }
}

function wrong(path: string, message: string): ApiProblem {
  return new ApiProblem('Invalid', `${path} ${message}`, [{ path, message }]);
}
