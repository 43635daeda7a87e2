/**
 * `replctl bootstrap`: installs an agent on a host over SSH from here, so that keys stay here: those of the SSH agent, or a
 * file. The host must be known to known_hosts, or its key be given. The same by the master itself: POST
 * /agents/NAME/actions/bootstrap.
 */
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { optional, repeated, required, UsageError, withDefault } from '../../proto/cli.ts';
import { messageOf } from '../../proto/errors.ts';
import { formatHostPort, parseChoice, parseDuration, parseHostPort, parseText } from '../../proto/value.ts';
import type { NewTokenView } from '../api/schema/token.ts';
import { knownHost, parseHostKey, type HostKeys } from '../bootstrap/hostkey.ts';
import { architectureOf } from '../bootstrap/packages.ts';
import { openShell, type SshHost } from '../bootstrap/ssh.ts';
import { bootstrap as install, BootstrapError, type MasterSide, type StepReport } from '../bootstrap/steps.ts';
import type { Agent } from '../resources.ts';
import { ApiProblem, type Client } from './client.ts';
import { printObject } from './get.ts';
import { kindOf } from './kinds.ts';
import { nameOperand } from './replication.ts';
import { verb } from './verb.ts';

const flags = {
  host: required('HOST[:PORT]', 'the host to install on', (text) =>
    parseHostPort(/:\d+$/.test(text) ? text : `${text}:22`),
  ),
  master: required('HOST:PORT', "the master's gRPC port, as the host dials it", (text) =>
    formatHostPort(parseHostPort(text)),
  ),
  package: required('FILE', 'the package that npm run rpm makes', parseText),
  user: withDefault('USER', 'root', 'another than root needs sudo without password', parseText),
  'identity-file': optional('FILE', 'private key; without: those of the SSH agent (SSH_AUTH_SOCK)', parseText),
  'host-key': optional('KEY', 'key that the host must show: SHA256:... or a public key', parseHostKey),
  'known-hosts': withDefault('FILE', '~/.ssh/known_hosts', 'where it is looked up else', parseText),
  jump: optional('[USER@]HOST[:PORT]', 'a host on the way, logged in to with the same keys', parseJump),
  'jump-host-key': optional('KEY', 'key that it must show; without: known_hosts', parseHostKey),
  role: withDefault('source|target', 'source', 'what the agent does by default', parseChoice('source', 'target')),
  allow: repeated('PATH', 'what of the host may be mirrored', parseText),
  kubelet: withDefault('DIR', '/var/lib/kubelet', "the kubelet's folder on the host", parseText),
  wait: withDefault('TIME', '60s', 'how long the master may take to see the agent', parseDuration),
  'agent-log-level': withDefault(
    'LEVEL',
    'info',
    'of the agent',
    parseChoice('trace', 'debug', 'info', 'warn', 'error'),
  ),
};

export const bootstrap = verb(
  {
    name: 'bootstrap',
    summary: 'Install an agent on a host over SSH. On a failure what was done is undone.',
    operands: 'AGENT',
    minOperands: 1,
    maxOperands: 1,
    flags,
    notes: `The host's key must be in known_hosts, or given with --host-key; it is never trusted at first sight.

Example:
  replctl bootstrap node-a --host 10.0.0.11 --master dr.example.com:8443 --allow /srv \\
    --package rpm/out/cdmr_agent-0.1.0-1.x86_64.rpm --jump ops@jump.example.com`,
  },
  async (session, { options, operands }) => {
    const name = nameOperand(operands, 'agent');
    const architecture = usable('package', 'FILE', () => architectureOf(options.package));
    const { host, port } = options.host;
    const target: SshHost = {
      host,
      port,
      user: options.user,
      hostKeys: options['host-key'] ?? lookUp(options['known-hosts'], host, port),
      login: loginOf(options['identity-file']),
    };
    if (options.jump !== undefined) {
      const { host, port, user = options.user } = options.jump;
      const hostKeys = options['jump-host-key'] ?? lookUp(options['known-hosts'], host, port, '--jump-host-key');
      target.jump = { host, port, user, hostKeys, login: target.login };
    }
    const { token, ca } = await session.client.send<NewTokenView>('POST', '/tokens', { kind: 'join' });
    if (ca === undefined) throw new Error('the master does not say its CA; it is older than replctl: upgrade it');
    let told = '';
    try {
      await install(
        {
          settings: {
            name,
            master: options.master,
            caPem: ca,
            role: options.role,
            allow: options.allow,
            kubelet: options.kubelet,
            logLevel: options['agent-log-level'],
          },
          master: masterSide(session.client, name, token),
          connect: (signal) => openShell(target, signal),
          async packageFor(found) {
            if (found === architecture) return options.package;
            throw new Error(`the host is ${found}, the package for ${architecture}; give that for ${found}`);
          },
          report(report: StepReport) {
            const line = `${report.step.padEnd(13)}${report.message}`;
            if (line !== told && report.state !== 'Failed') session.note(line);
            told = line;
          },
          waitSeconds: options.wait,
        },
        session.signal,
      );
    } catch (error) {
      if (!(error instanceof BootstrapError)) throw error;
      session.note(`replctl: ${error.step}: ${error.message}`);
      return 1;
    }
    const agent = await session.client.get<Agent>(`/agents/${name}`);
    printObject(session, kindOf('agents'), agent, '', 'is installed and connected');
    return 0;
  },
);

function masterSide(client: Client, name: string, token: string): MasterSide {
  const orNone = async <T>(work: Promise<T>): Promise<T | undefined> =>
    work.catch((error: unknown) => {
      if (error instanceof ApiProblem && error.problem.status === 404) return undefined;
      throw error;
    });
  return {
    newJoinToken: async () => token,
    agentState: async () => (await orNone(client.get<Agent>(`/agents/${name}`)))?.status,
    revoke: async () => void (await orNone(client.send('DELETE', `/agents/${name}`))),
  };
}

function parseJump(text: string): { user?: string; host: string; port: number } {
  const [, user, rest = ''] = /^(?:([a-z_][a-z0-9_.-]*)@)?(.*)$/.exec(text) ?? [];
  return { ...parseHostPort(/:\d+$/.test(rest) ? rest : `${rest}:22`), ...(user === undefined ? {} : { user }) };
}

function lookUp(path: string, host: string, port: number, flag = '--host-key'): HostKeys {
  const file = path.replace(/^~(?=\/)/, homedir());
  let text = '';
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
      throw new UsageError(`${file} cannot be read: ${messageOf(error)}.`, `Give --known-hosts FILE or ${flag} KEY.`);
  }
  const found = knownHost(text, host, port);
  if (found === undefined)
    throw new UsageError(
      `The key of ${host} is not in ${file}.`,
      `Give ${flag} KEY, as \`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\` says it on the host.`,
    );
  return found;
}

function loginOf(file: string | undefined): SshHost['login'] {
  if (file !== undefined) return { privateKey: usable('identity-file', 'FILE', () => readFileSync(file, 'utf8')) };
  const agentSocket = process.env['SSH_AUTH_SOCK'] || undefined;
  if (agentSocket === undefined)
    throw new UsageError('There is no SSH agent (SSH_AUTH_SOCK).', 'Give --identity-file FILE, or start one.');
  return { agentSocket };
}

function usable<T>(flag: string, value: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw new UsageError(`--${flag}: ${messageOf(error)}`, `Give it as --${flag} ${value}.`);
  }
}
