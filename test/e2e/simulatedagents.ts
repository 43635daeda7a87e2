/**
 * A process of its own with many simulated agents, so that what measures the master is not slowed down by them. It is told what they do
 * and tells what has become of them, once a second; it ends with its parent.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect } from '../../master/cli/client.ts';
import { simulatedAgent, type SimulatedAgent } from './simulatedagent.ts';

export interface Herd {
  count: number;
  url: string;
  token: string;
  /** HOST:PORT of the master's gRPC. */
  master: string;
  masterDir: string;
  dir: string;
  reportMs: number;
  /** One of so many replications gets a new point each `changeMs` while they change. */
  changeOneOf: number;
  changeMs: number;
}
/** What they do from now on. */
export interface Doing {
  reporting?: boolean;
  changing?: boolean;
}
interface Told {
  connected: number;
  mirrored: number;
  /** Milliseconds after which commits were acknowledged, since the last time. */
  changed: number[];
  failed?: string;
}

export interface SimulatedAgents {
  /** How many there are. */
  connected(): number;
  /** How many replications have a point. */
  mirrored(): number;
  /** Milliseconds after which commits of changes were acknowledged. */
  readonly changed: readonly number[];
  tell(doing: Doing): void;
  end(): Promise<void>;
}

export function simulatedAgents(herd: Herd): SimulatedAgents {
  const child = fork(import.meta.filename, [JSON.stringify(herd)], { execArgv: [] });
  let last: Told = { connected: 0, mirrored: 0, changed: [] };
  const changed: number[] = [];
  child.on('message', (told: Told) => {
    last = told;
    changed.push(...told.changed);
  });
  const present = (): Told => {
    if (last.failed !== undefined) throw new Error(`the simulated agents failed: ${last.failed}`);
    if (child.exitCode !== null) throw new Error(`the simulated agents ended with ${child.exitCode}`);
    return last;
  };
  return {
    connected: () => present().connected,
    mirrored: () => present().mirrored,
    changed,
    tell: (doing) => void child.send(doing),
    async end() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, 'exit');
      child.kill('SIGKILL');
      await exited;
    },
  };
}

async function run(herd: Herd): Promise<void> {
  const client = connect(herd.url, herd.token);
  const stop = new AbortController();
  const agents: SimulatedAgent[] = [];
  let doing: Required<Doing> = { reporting: true, changing: false };
  let changed: number[] = [];
  process.on('message', (more: Doing) => (doing = { ...doing, ...more }));
  process.on('disconnect', () => process.exit());
  const tell = (failed?: string): void => {
    const connected = agents.filter((agent) => agent.connected()).length;
    const mirrored = agents.reduce((sum, agent) => sum + agent.mirrored.size, 0);
    process.send?.({ connected, mirrored, changed, ...(failed === undefined ? {} : { failed }) } satisfies Told);
    changed = [];
  };
  setInterval(tell, 1000);

  /** Nobody knows of the others: each at its own moment of the time between two reports. */
  async function report(agent: SimulatedAgent, number: number): Promise<void> {
    await sleep((herd.reportMs * number) / herd.count);
    for (;;) {
      if (doing.reporting) agent.report();
      await sleep(herd.reportMs);
    }
  }
  async function change(agent: SimulatedAgent, uid: string): Promise<void> {
    await sleep(Math.random() * herd.changeMs);
    while (doing.changing) {
      changed.push(await agent.change(uid));
      await sleep(herd.changeMs);
    }
  }
  async function changeAll(): Promise<void> {
    for (;;) {
      await sleep(200);
      if (!doing.changing) continue;
      const all = agents.flatMap((agent) => [...agent.mirrored].map((uid) => ({ agent, uid })));
      const chosen = all.filter((_, index) => index % herd.changeOneOf === 0);
      await Promise.all(chosen.map(({ agent, uid }) => change(agent, uid)));
    }
  }

  let next = 0;
  const join = async (): Promise<void> => {
    while (next < herd.count) {
      const number = next++;
      const { master, masterDir, dir } = herd;
      const agent = await simulatedAgent({ client, name: `node-${number}`, master, masterDir, dir, signal: stop.signal }); // prettier-ignore
      agents.push(agent);
      void report(agent, number);
    }
  };
  void changeAll().catch((error: unknown) => tell(String(error)));
  await Promise.all(Array.from({ length: 8 }, join)).catch((error: unknown) => tell(String(error)));
}

if (process.argv[1] === import.meta.filename) await run(JSON.parse(process.argv[2] ?? '') as Herd);
