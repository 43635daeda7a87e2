/**
 * From a host with SSH to a connected agent: what agent_install.yml does, for those without Ansible.
 *
 * Guarantees: on a failure at any step what was done is undone in reverse, over a new connection if the line broke: what was
 * installed is erased, what was there before is as it was. What cannot be undone is said. Done again it changes nothing but
 * the configuration. The join token is good for this node alone and is removed after use.
 * Not here: upgrades (an installed package stays), and hosts without rpm (use the DaemonSet).
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from '../../proto/errors.ts';
import type { Shell } from './ssh.ts';

export const stepNames = ['Connect', 'Look', 'Install', 'Configure', 'Join', 'Start', 'SeeConnected'] as const;
export type StepName = (typeof stepNames)[number];
export interface StepReport {
  step: StepName | 'Undo';
  state: 'Running' | 'Completed' | 'Failed';
  message: string;
}

export interface Settings {
  /** Name of the agent at the master. */
  name: string;
  /** HOST:PORT of the master's gRPC port, as the host dials it. */
  master: string;
  caPem: string;
  role: 'source' | 'target';
  /** What of the host may be mirrored. */
  allow: string[];
  kubelet: string;
  logLevel: string;
}

/** What is asked of the master. */
export interface MasterSide {
  newJoinToken(): Promise<string>;
  /** Undefined: the master does not know the agent. */
  agentState(): Promise<{ state: string; message: string } | undefined>;
  revoke(): Promise<void>;
}

export interface BootstrapOptions {
  settings: Settings;
  master: MasterSide;
  connect: (signal: AbortSignal) => Promise<Shell>;
  /** Path here of the package for an architecture as `uname -m` names it. @throws Error with the cure */
  packageFor: (architecture: string) => Promise<string>;
  report: (report: StepReport) => void;
  /** How long the master may take to see the agent. */
  waitSeconds: number;
}

export class BootstrapError extends Error {
  readonly step: StepName;
  /** Nothing of it is left on the host. */
  readonly undone: boolean;
  constructor(step: StepName, message: string, undone: boolean) {
    super(message);
    this.name = 'BootstrapError';
    this.step = step;
    this.undone = undone;
  }
}

const etc = '/etc/cdmr_agent';
const undoMs = 120_000;

/** What would break the lines of a configuration file. @throws Error naming the field */
export function checkSettings({ allow, kubelet }: Pick<Settings, 'allow' | 'kubelet'>): void {
  for (const path of allow)
    if (!/^\/[^\u0000-\u001f]*$/.test(path)) throw new Error(`allow: ${JSON.stringify(path)} is not an absolute path`);
  if (!/^\/[^\s"'\\\u0000-\u001f]*$/.test(kubelet))
    throw new Error(`kubelet: ${JSON.stringify(kubelet)} is not an absolute path without spaces and quotes`);
}

/** @throws BootstrapError; Error for settings that cannot be */
export async function bootstrap(options: BootstrapOptions, signal: AbortSignal): Promise<void> {
  const { settings, master, report } = options;
  checkSettings(settings);
  const undo: { what: string; script?: string; at?: () => Promise<void> }[] = [];
  let step: StepName = 'Connect';
  let shell: Shell | undefined;
  const begin = (next: StepName, message: string): void => {
    step = next;
    signal.throwIfAborted();
    report({ step, state: 'Running', message });
  };
  const end = (message: string): void => report({ step, state: 'Completed', message });

  try {
    begin('Connect', 'connecting');
    shell = await options.connect(signal);
    end('the host has the key that was given, and lets us in');

    begin('Look', 'looking at the host');
    const found = parseFacts(await shell.must('looking at the host', look));
    refuseUnfit(found);
    const unit = `cdmr_agent_${settings.role === 'source' ? 1 : 0}.service`;
    const work = (await shell.must('making a folder', 'umask 077; mktemp -d /var/tmp/cdmr.XXXXXXXX')).trim();
    undo.push({ what: `removing ${work}`, script: `rm -rf '${work}'` });
    end(`${found.arch}, ${found.package === '' ? 'no agent yet' : `the agent ${found.package} is installed`}`);

    begin('Install', found.package === '' ? 'copying the package' : 'is installed already');
    if (found.package === '') {
      undo.push({
        what: 'erasing the package',
        script: `if rpm -q cdmr_agent >/dev/null 2>&1; then rpm --erase cdmr_agent; fi
          ${found.etc ? '' : `rm -rf ${etc}`}
          ${found.state ? '' : 'rm -rf /var/lib/cdmr_agent'}`,
      });
      await install(shell, await options.packageFor(found.arch), work, found.dnf, (message) =>
        report({ step: 'Install', state: 'Running', message }),
      );
      end('the package is installed');
    } else end(`${found.package} is installed already; agent_upgrade.yml, or dnf, changes the version`);

    begin('Configure', `writing ${etc}`);
    if (found.etc) {
      await shell.must('keeping the old configuration', `cp -a ${etc} '${work}/etc'`);
      const running = found.active.map((unit) => `systemctl restart ${unit}`).join('\n');
      undo.push({
        what: 'restoring the configuration',
        script: `rm -rf ${etc}; cp -a '${work}/etc' ${etc}\n${running}`,
      });
    }
    await write(shell, `${etc}/agent.conf`, '0640', configuration(settings));
    await write(shell, `${etc}/allow`, '0640', ['# Written by replctl bootstrap.', ...settings.allow, ''].join('\n'));
    await write(shell, `${etc}/ca.pem`, '0644', settings.caPem);
    end('configured');

    const known = await master.agentState();
    begin('Join', 'handing the node a join token');
    if (found.joined && known !== undefined) end('has joined already');
    else {
      if (known === undefined || known.state === 'NOT INSTALLED')
        undo.push({ what: 'revoking the agent at the master', at: () => master.revoke() });
      await write(shell, `${etc}/join.token`, '0600', `${await master.newJoinToken()}\n`);
      end('the node has a join token');
    }

    begin('Start', `starting ${unit}`);
    undo.push({ what: 'stopping the agent', script: asBefore(found) });
    const other = unit === 'cdmr_agent_1.service' ? 'cdmr_agent_0.service' : 'cdmr_agent_1.service';
    await shell.must(
      'stopping the agent',
      `systemctl daemon-reload; systemctl disable --now ${other} >/dev/null 2>&1 || :
      systemctl stop ${unit}`,
    );
    await until(async () => (await master.agentState())?.state !== 'ACTIVE', 45, signal);
    await shell.must(`starting ${unit}`, `systemctl enable ${unit} >/dev/null 2>&1; systemctl start ${unit}`);
    end('started');

    begin('SeeConnected', 'waiting until the master sees the agent');
    if (!(await until(async () => (await master.agentState())?.state === 'ACTIVE', options.waitSeconds, signal))) {
      const seen = await master.agentState();
      const log = await shell.run(`journalctl -u ${unit} -n 8 -o cat --no-pager 2>/dev/null || :`);
      throw new Error(
        `the master has not seen the agent for ${options.waitSeconds} s (${seen?.message ?? 'it has not joined'}); can the host ` +
          `dial ${settings.master}? Its log: ${log.stdout.trim().slice(-1500)}`,
      );
    }
    await shell.must('removing the used token', `rm -rf ${etc}/join.token '${work}'`);
    end('connected');
  } catch (error) {
    const why = signal.aborted ? `stopped: ${messageOf(signal.reason)}` : messageOf(error);
    report({ step, state: 'Failed', message: why });
    const left = undo.length === 0 ? [] : await undoAll(undo.reverse(), shell, options);
    const outcome =
      left.length === 0 ? 'nothing of it is left on the host' : `not undone on the host: ${left.join('; ')}`;
    throw new BootstrapError(step, `${why} (${outcome})`, left.length === 0);
  } finally {
    await shell?.[Symbol.asyncDispose]();
  }
}

/** Answers what could not be undone, each with its reason. Goes on after a failure. */
async function undoAll(
  undo: { what: string; script?: string; at?: () => Promise<void> }[],
  shell: Shell | undefined,
  { connect, report }: BootstrapOptions,
): Promise<string[]> {
  const say = (state: StepReport['state'], message: string): void => report({ step: 'Undo', state, message });
  const left: string[] = [];
  // Not by the signal of the whole: what was stopped must be undone too. A connection of its own, as the first may be broken.
  const signal = AbortSignal.timeout(undoMs);
  await shell?.[Symbol.asyncDispose]();
  const again = await connect(signal).catch((error: unknown) => messageOf(error));
  for (const { what, script, at } of undo) {
    say('Running', what);
    try {
      await at?.();
      if (script !== undefined && typeof again === 'string') throw new Error(again);
      if (script !== undefined && typeof again !== 'string') await again.must(what, script);
    } catch (error) {
      left.push(`${what}: ${messageOf(error)}`);
    }
  }
  if (typeof again !== 'string') await again[Symbol.asyncDispose]();
  say(left.length === 0 ? 'Completed' : 'Failed', left.length === 0 ? 'what was done is undone' : left.join('; '));
  return left;
}

interface Facts {
  arch: string;
  /** VERSION-RELEASE of the agent; empty: none. */
  package: string;
  rpm: boolean;
  dnf: boolean;
  systemd: boolean;
  etc: boolean;
  state: boolean;
  joined: boolean;
  /** Units that run, and that start at boot. */
  active: string[];
  enabled: string[];
}

const look = `
echo arch=$(uname -m)
echo rpm=$(command -v rpm || :)
echo dnf=$(command -v dnf || :)
if command -v rpm >/dev/null; then echo package=$(rpm -q --qf '%{VERSION}-%{RELEASE}' cdmr_agent 2>/dev/null | grep -v 'not installed' || :); fi
if test -d /run/systemd/system; then echo systemd=yes; fi
if test -d ${etc}; then echo etc=yes; fi
if test -d /var/lib/cdmr_agent; then echo state=yes; fi
if test -e /var/lib/cdmr_agent/identity.json; then echo joined=yes; fi
for unit in cdmr_agent_1 cdmr_agent_0; do
  if systemctl is-active --quiet $unit 2>/dev/null; then echo active=$unit; fi
  if systemctl is-enabled --quiet $unit 2>/dev/null; then echo enabled=$unit; fi
done
`;

function parseFacts(text: string): Facts {
  const all = (name: string): string[] =>
    [...text.matchAll(new RegExp(`^${name}=(.+)$`, 'gm'))].map((match) => match[1]?.trim() ?? '');
  const has = (name: string): boolean => all(name).length > 0;
  return {
    arch: all('arch')[0] ?? '',
    package: all('package')[0] ?? '',
    rpm: has('rpm'),
    dnf: has('dnf'),
    systemd: has('systemd'),
    etc: has('etc'),
    state: has('state'),
    joined: has('joined'),
    active: all('active'),
    enabled: all('enabled'),
  };
}

function refuseUnfit({ rpm, systemd }: Facts): void {
  if (!rpm) throw new Error('the host has no rpm; use the DaemonSet (rpm/cdmr-agent-daemonset.yaml)');
  if (!systemd) throw new Error('the host does not run systemd; use the DaemonSet (rpm/cdmr-agent-daemonset.yaml)');
}

async function install(
  shell: Shell,
  path: string,
  work: string,
  dnf: boolean,
  say: (message: string) => void,
): Promise<void> {
  const there = `${work}/${basename(path)}`;
  const { size } = await stat(path);
  const hash = createHash('sha256');
  async function* content(): AsyncGenerator<Buffer> {
    let done = 0;
    let told = 0;
    for await (const part of createReadStream(path, { highWaterMark: 256 << 10 }) as AsyncIterable<Buffer>) {
      hash.update(part);
      yield part;
      done += part.length;
      if (done - told < 4 << 20 && done < size) continue;
      told = done;
      say(`copying the package: ${Math.floor((100 * done) / size)} % of ${(size / 2 ** 20).toFixed(0)} MiB`);
    }
  }
  await shell.must('copying the package', `cat >'${there}'`, content());
  await shell.must('checking the copy', `echo '${hash.digest('hex')}  ${there}' | sha256sum --check --quiet`);
  say('installing the package');
  const command = dnf ? `dnf --assumeyes --nogpgcheck --quiet install '${there}'` : `rpm --install '${there}'`;
  await shell.must('installing the package', `${command} </dev/null`);
}

/** Whole or not at all: a unit that starts meanwhile reads the old file or the new one. */
async function write(shell: Shell, path: string, mode: string, content: string): Promise<void> {
  await shell.must(
    `writing ${path}`,
    `umask 077; cat >${path}.new; chmod ${mode} ${path}.new; mv -f ${path}.new ${path}`,
    content,
  );
}

function configuration({ master, name, logLevel, kubelet }: Settings): string {
  return `# Written by replctl bootstrap.
CDMR_MASTER=${master}
CDMR_NAME=${name}
CDMR_LOG_LEVEL=${logLevel}
CDMR_KUBELET=${kubelet}
`;
}

/** Units stopped and not started at boot, but those that were. The configuration's undoing starts these again. */
function asBefore({ active, enabled }: Facts): string {
  return ['cdmr_agent_1', 'cdmr_agent_0']
    .flatMap((unit) => [
      `systemctl ${enabled.includes(unit) ? 'enable' : 'disable'} ${unit} >/dev/null 2>&1 || :`,
      ...(active.includes(unit) ? [] : [`systemctl stop ${unit} >/dev/null 2>&1 || :`]),
    ])
    .join('\n');
}

async function until(probe: () => Promise<boolean>, seconds: number, signal: AbortSignal): Promise<boolean> {
  const endMs = performance.now() + seconds * 1000;
  for (;;) {
    if (await probe()) return true;
    if (performance.now() > endMs) return false;
    await sleep(250, undefined, { signal });
  }
}
