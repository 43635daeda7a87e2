/**
 * A host by SSH: one connection, shell scripts run on it as root.
 *
 * Guarantees: nothing is sent, no key offered, before the host has shown the key that was asked for; the same holds for a
 * jump host on the way, which sees nothing of the talk with the host behind it. Scripts run by `sh -e`
 * whatever the user's shell is, through `sudo -n` when the user is not root. What a script needs to be kept secret comes by
 * its standard input, never as an argument. A connection that has gone silent ends within 40 s.
 * Failure: SshError, whose message says what to do.
 */
import { once } from 'node:events';
import type ssh2 from 'ssh2';
import { messageOf } from '../../proto/errors.ts';
import { fingerprintOf, type HostKeys, kindOf } from './hostkey.ts';

export interface SshHost {
  host: string;
  port: number;
  user: string;
  hostKeys: HostKeys;
  /** A private key in OpenSSH or PEM form, or the socket of an SSH agent. */
  login: { privateKey: string; passphrase?: string } | { agentSocket: string };
  /** The way there is through this one. */
  jump?: SshHost;
}

export interface Outcome {
  status: number;
  stdout: string;
  stderr: string;
}
export interface Shell extends AsyncDisposable {
  /** Runs a script as root. Its status is answered, not judged. @throws SshError when the line breaks */
  run(script: string, input?: string | AsyncIterable<Buffer>): Promise<Outcome>;
  /** Its standard output. @throws SshError unless its status is 0 */
  must(what: string, script: string, input?: string | AsyncIterable<Buffer>): Promise<string>;
}

export class SshError extends Error {}

const readyMs = 20_000;
/** Of what a script says; the rest is dropped. */
const maxOutput = 64 << 10;

interface Line {
  client: ssh2.Client;
  /** For messages: USER@HOST:PORT. */
  at: string;
  /** What has broken it. */
  broken(): Error | undefined;
  close(): Promise<void>;
}

/** @throws SshError */
async function connect(target: SshHost, signal: AbortSignal): Promise<Line> {
  signal.throwIfAborted();
  const { host, port, user, login, hostKeys } = target;
  const jump = target.jump && (await connect(target.jump, signal));
  const at = `${user}@${host}:${port}${jump === undefined ? '' : ` by way of ${jump.at}`}`;
  // Loaded by those who use it: 20 MiB.
  const { Client } = (await import('ssh2')).default;
  const client = new Client();
  let shown: Buffer | undefined;
  let broken: Error | undefined;
  const stop = (): void => void client.destroy();
  const ready = new Promise<void>((resolve, reject) => {
    client.once('ready', resolve);
    client.on('error', (error) => reject((broken = error)));
    client.once('close', () => reject(new Error('the host closed the connection')));
  });
  const gone = new Promise<void>((resolve) => client.once('close', () => resolve()));
  // Also when it breaks later on, with nobody waiting.
  ready.catch(() => undefined);
  signal.addEventListener('abort', stop, { once: true });
  try {
    const sock = jump && (await forward(jump, host, port));
    client.connect({
      ...(sock === undefined ? { host, port } : { sock }),
      username: user,
      readyTimeout: readyMs,
      keepaliveInterval: 10_000,
      keepaliveCountMax: 3,
      ...('agentSocket' in login
        ? { agent: login.agentSocket }
        : {
            privateKey: login.privateKey,
            ...(login.passphrase === undefined ? {} : { passphrase: login.passphrase }),
          }),
      ...(hostKeys.kinds.length === 0 ? {} : { algorithms: { serverHostKey: algorithmsOf(hostKeys.kinds) } }),
      hostVerifier: (key: Buffer) => hostKeys.accepts((shown = key)),
    });
    await ready;
  } catch (error) {
    client.destroy();
    await jump?.close();
    signal.removeEventListener('abort', stop);
    signal.throwIfAborted();
    if (error instanceof SshError) throw error;
    throw new SshError(explain(error as Error & { level?: string }, at, shown, hostKeys), { cause: error });
  }
  return {
    client,
    at,
    broken: () => broken,
    async close() {
      signal.removeEventListener('abort', stop);
      client.end();
      const patience = setTimeout(() => client.destroy(), 2000);
      await gone;
      clearTimeout(patience);
      await jump?.close();
    },
  };
}

/** @throws SshError */
async function forward({ client, at }: Line, host: string, port: number): Promise<ssh2.ClientChannel> {
  return new Promise((resolve, reject) => {
    client.forwardOut('127.0.0.1', 0, host, port, (error, channel) => {
      if (error === undefined) return resolve(channel);
      const cure =
        'is sshd running there, the port open, and forwarding allowed on the jump host (AllowTcpForwarding)?';
      reject(new SshError(`${at} does not get through to ${host}:${port}: ${messageOf(error)}; ${cure}`));
    });
  });
}

/** @throws SshError */
export async function openShell(target: SshHost, signal: AbortSignal): Promise<Shell> {
  const line = await connect(target, signal);
  const { client, at } = line;
  const { user } = target;
  const command = (script: string): string => {
    const quoted = `'${script.replaceAll("'", "'\\''")}'`;
    return user === 'root' ? `exec sh -euc ${quoted}` : `exec sudo -n sh -euc ${quoted}`;
  };
  async function run(script: string, input: string | AsyncIterable<Buffer> = ''): Promise<Outcome> {
    signal.throwIfAborted();
    const said = { stdout: '', stderr: '' };
    const hear = (name: keyof typeof said) => (data: Buffer) => {
      if (said[name].length < maxOutput) said[name] += data.toString();
    };
    let status: number | null = null;
    let killedBy: string | undefined;
    const { channel, closed } = await new Promise<{ channel: ssh2.ClientChannel; closed: Promise<unknown> }>(
      (resolve, reject) => {
        const broken = line.broken();
        if (broken !== undefined) return reject(new SshError(`${at}: ${broken.message}`));
        client.exec(command(script), (error, channel) => {
          if (error !== undefined) return reject(new SshError(`${at}: ${error.message}`));
          // Heard from here on, not after the promise: all of a short script's answer, its status and end too, can come in
          // one packet with the opening.
          channel.on('exit', (code: number | null, signal?: string) => {
            status = code;
            killedBy = signal;
          });
          channel.on('data', hear('stdout'));
          channel.stderr.on('data', hear('stderr'));
          // A script that ends early does not read the rest; its status says why.
          channel.on('error', () => undefined);
          resolve({ channel, closed: new Promise((resolve) => channel.once('close', resolve)) });
        });
      },
    );
    for await (const part of typeof input === 'string' ? [Buffer.from(input)] : input) {
      if (channel.destroyed || !channel.writable) break;
      if (!channel.write(part)) await Promise.race([once(channel, 'drain'), closed]);
    }
    channel.end();
    await closed;
    signal.throwIfAborted();
    if (killedBy !== undefined) throw new SshError(`${at}: a command was killed there by ${killedBy}`);
    if (status === null) throw new SshError(`${at}: ${line.broken()?.message ?? 'the line broke while a command ran'}`);
    return { status, ...said };
  }
  return {
    run,
    async must(what, script, input) {
      const { status, stdout, stderr } = await run(script, input);
      if (status === 0) return stdout;
      const why = stderr.trim() || stdout.trim();
      if (user !== 'root' && /^sudo: /m.test(why))
        throw new SshError(
          `${at} may not become root (${lastLines(why)}); use root, or let it use sudo without password`,
        );
      throw new SshError(`${what}: ${why === '' ? `status ${status}` : lastLines(why)}`);
    },
    [Symbol.asyncDispose]: () => line.close(),
  };
}

function lastLines(text: string): string {
  return text.split('\n').slice(-6).join('\n').slice(-1500);
}

function algorithmsOf(kinds: string[]): ssh2.ServerHostKeyAlgorithm[] {
  return kinds.flatMap((kind) =>
    kind === 'ssh-rsa' ? ['rsa-sha2-512', 'rsa-sha2-256'] : [kind],
  ) as ssh2.ServerHostKeyAlgorithm[];
}

function explain(error: Error & { level?: string }, at: string, shown: Buffer | undefined, hostKeys: HostKeys): string {
  if (shown !== undefined && !hostKeys.accepts(shown))
    return (
      `${at} shows the host key ${fingerprintOf(shown)} (${kindOf(shown)}), which is not the one that was given; nothing was ` +
      'sent. Compare it on the host (ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub) and give that one if it is right'
    );
  if (error.level === 'client-authentication')
    return `${at} lets none of the keys in; put the public key into its authorized_keys, or name another user or key`;
  if (error.level === 'agent') return `${at}: the SSH agent does not answer (${error.message}); start it, add the key`;
  if (/parse|passphrase|decrypt|privateKey/i.test(error.message))
    return `the private key cannot be used: ${messageOf(error)}; give one in OpenSSH or PEM form, and its passphrase if it has one`;
  return `${at} cannot be reached: ${messageOf(error)}; is sshd running there, and the port open?`;
}
