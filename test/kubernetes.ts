/**
 * A real Kubernetes API for tests: etcd, kube-apiserver with RBAC and, when asked for, kube-controller-manager, on free ports
 * of the loopback, with their data in a folder that goes with them. test/parts/kubernetes builds them; `skipKubernetes`
 * is the reason why they are not there, or false.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import { accessSync, closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { definition } from '../master/kubernetes/crd.ts';
import { allKinds, group } from '../master/kubernetes/kinds.ts';

const folder = '/var/cache/cdm-replicator-tests/kubernetes/bin';
const tied = spawnSync('setpriv', ['--pdeathsig', 'KILL', 'true'], { stdio: 'ignore' }).status === 0;

const restartMs = 500;

const parts = ['etcd', 'kube-apiserver'];
// The long suites have the time to make what they need.
if (process.env['REPLICATOR_LONG'] === '1' && !parts.every(isThere))
  spawnSync(new URL('parts/kubernetes', import.meta.url).pathname, parts, { stdio: ['ignore', 2, 2] });

export const skipKubernetes: false | string = parts.every(isThere)
  ? false
  : 'etcd and kube-apiserver are not there: run test/parts/kubernetes once';

/** What serves volumes of CSI drivers, and their snapshots. */
const sidecars = ['kube-controller-manager', 'csi-provisioner', 'snapshot-controller', 'csi-snapshotter', 'csi-snapshot-metadata']; // prettier-ignore
export const skipSidecars: false | string =
  skipKubernetes || sidecars.every(isThere)
    ? skipKubernetes
    : `${sidecars.filter((name) => !isThere(name)).join(', ')}: run test/parts/kubernetes once`;
/** Their definitions. */
export const snapshotDefinitions = new URL('../crd', `file://${folder}/`).pathname;

function isThere(name: string): boolean {
  try {
    accessSync(`${folder}/${name}`);
    return true;
  } catch {
    return false;
  }
}

export interface TestCluster {
  /** Of a user in system:masters. */
  readonly kubeconfig: string;
  readonly url: string;
  readonly caFile: string;
  /** A kubeconfig of a service account, with a token as its pods would have. */
  kubeconfigOf(namespace: string, serviceAccount: string): Promise<string>;
  /** As the administrator. Answers standard output. @throws with standard error */
  kubectl(argv: string[], input?: string): string;
  /** As the administrator: status and parsed body, whatever the status. */
  request(method: string, path: string, body?: unknown): Promise<{ status: number; body: Record<string, unknown> }>;
  /** Our definitions; resolves when objects of them can be made. */
  install(): Promise<void>;
  /** SIGKILL of the API server; `start` after it brings it back on the same port with the same etcd. */
  kill(): Promise<void>;
  start(): Promise<void>;
  /** What a service account has been let do so far, as `verb group/resource`; watches count when they have ended. */
  rightsUsed(namespace: string, serviceAccount: string): string[];
  /** As `rightsUsed`, each request by itself with its name, from then on; in milliseconds since the epoch. */
  requestsSince(namespace: string, serviceAccount: string, sinceMs: number): string[];
  /**
   * Another part, as the administrator, until the cluster is closed; one that ends is started again, as a kubelet would: sidecars end when their
   * driver or the API server keeps them waiting. Its output is in a file of its name.
   */
  run(part: string, argv: string[]): void;
  /** Forgets all history before now: watches from before it answer 410. */
  compact(): Promise<void>;
  logEnd(): string;
  close(): Promise<void>;
}

interface AuditEvent {
  verb: string;
  user: { username: string };
  requestReceivedTimestamp: string;
  objectRef?: { apiGroup?: string; resource: string; subresource?: string; name?: string };
  annotations?: Record<string, string>;
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  const ports: number[] = [];
  for (const server of servers) {
    if (!server.listening) await once(server, 'listening');
    ports.push((server.address() as AddressInfo).port);
  }
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

export interface ClusterOptions {
  controllers?: boolean;
  /** Of kubectl; default is `default`. */
  namespace?: string;
}

export async function startKubernetes(options: ClusterOptions = {}): Promise<TestCluster> {
  const dir = mkdtempSync(join(tmpdir(), 'kubernetes-'));
  const [etcdPort = 0, peerPort = 0, apiPort = 0] = await freePorts(3);
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const file = (name: string, content?: string | Buffer): string => {
    if (content !== undefined) writeFileSync(join(dir, name), content, { mode: 0o600 });
    return join(dir, name);
  };
  const keyFile = file('accounts.key', privateKey.export({ type: 'pkcs8', format: 'pem' }));
  const publicFile = file('accounts.pub', publicKey.export({ type: 'spki', format: 'pem' }));
  const token = crypto.randomUUID();
  const tokens = file('tokens.csv', `${token},admin,admin,system:masters\n`);
  const url = `https://127.0.0.1:${apiPort}`;
  const etcdUrl = `http://127.0.0.1:${etcdPort}`;
  const caFile = join(dir, 'certs/apiserver.crt');
  const children: ChildProcess[] = [];

  function run(name: string, argv: string[]): ChildProcess {
    const log = openSync(file(`${name}.log`), 'a');
    const command = [...(tied ? ['setpriv', '--pdeathsig', 'KILL'] : []), `${folder}/${name}`, ...argv];
    const child = spawn(command[0] ?? '', command.slice(1), { stdio: ['ignore', log, log] });
    closeSync(log);
    children.push(child);
    return child;
  }
  async function end(child: ChildProcess): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }
  let closing = false;
  function keep(part: string, argv: string[]): void {
    run(part, [`--kubeconfig=${admin}`, ...argv]).once('exit', () =>
      setTimeout(() => closing || keep(part, argv), restartMs).unref(),
    );
  }
  const kubeconfig = (name: string, secret: string): string =>
    file(
      name,
      JSON.stringify({
        apiVersion: 'v1',
        kind: 'Config',
        clusters: [{ name: 'test', cluster: { server: url, 'certificate-authority': caFile } }],
        users: [{ name: 'user', user: { token: secret } }],
        contexts: [
          { name: 'test', context: { cluster: 'test', user: 'user', namespace: options.namespace ?? 'default' } },
        ],
        'current-context': 'test',
      }),
    );
  const audit = file(
    'audit.yaml',
    JSON.stringify({
      apiVersion: 'audit.k8s.io/v1',
      kind: 'Policy',
      omitStages: ['RequestReceived', 'ResponseStarted'],
      rules: [{ level: 'Metadata', userGroups: ['system:serviceaccounts'] }, { level: 'None' }],
    }),
  );
  const admin = kubeconfig('admin.kubeconfig', token);

  async function request(
    method: string,
    path: string,
    body?: unknown,
  ): Promise<{ status: number; body: Record<string, unknown> }> {
    const { request: send } = await import('node:https');
    const type = method === 'PATCH' ? 'application/merge-patch+json' : 'application/json';
    const text = body === undefined ? undefined : JSON.stringify(body);
    return new Promise((resolve, reject) => {
      const call = send(
        url + path,
        {
          method,
          ca: readFileSync(caFile),
          headers: {
            authorization: `Bearer ${token}`,
            accept: 'application/json',
            'content-type': type,
            // Node leaves it out of a DELETE, and the server then takes the body for the next request.
            ...(text === undefined ? {} : { 'content-length': Buffer.byteLength(text) }),
          },
        },
        (response) => {
          const chunks: Buffer[] = [];
          response.on('data', (chunk: Buffer) => chunks.push(chunk));
          response.on('error', reject);
          response.on('end', () => {
            const text = Buffer.concat(chunks).toString();
            const parsed = text.startsWith('{') ? (JSON.parse(text) as Record<string, unknown>) : { text };
            resolve({ status: response.statusCode ?? 0, body: parsed });
          });
        },
      );
      call.on('error', reject);
      call.end(text);
    });
  }

  let apiserver: ChildProcess | undefined;
  async function start(): Promise<void> {
    apiserver = run('kube-apiserver', [
      `--etcd-servers=${etcdUrl}`,
      '--bind-address=127.0.0.1',
      '--advertise-address=127.0.0.1',
      `--secure-port=${apiPort}`,
      `--cert-dir=${join(dir, 'certs')}`,
      `--token-auth-file=${tokens}`,
      '--authorization-mode=RBAC',
      '--anonymous-auth=false',
      '--service-cluster-ip-range=10.0.0.0/24',
      '--allow-privileged=true',
      '--service-account-issuer=https://kubernetes.default.svc',
      `--service-account-signing-key-file=${keyFile}`,
      `--service-account-key-file=${publicFile}`,
      '--disable-admission-plugins=ServiceAccount',
      `--audit-policy-file=${audit}`,
      `--audit-log-path=${join(dir, 'audit.log')}`,
      '--v=1',
    ]);
    await until(async () => {
      if (apiserver?.exitCode !== null) throw new Error(`kube-apiserver ended: ${logEnd()}`);
      return (await request('GET', '/readyz')).status === 200;
    });
    await until(async () => (await request('GET', '/api/v1/namespaces/default')).status === 200);
  }
  async function kill(): Promise<void> {
    if (apiserver) await end(apiserver);
  }
  const logEnd = (): string =>
    ['etcd', 'kube-apiserver'].map((name) => readFileSync(file(`${name}.log`), 'utf8').slice(-2000)).join('\n---\n');

  function requests(namespace: string, account: string): { right: string; atMs: number; of: string }[] {
    const user = `system:serviceaccount:${namespace}:${account}`;
    const lines = readFileSync(join(dir, 'audit.log'), 'utf8').split('\n').slice(0, -1);
    return lines.flatMap((line) => {
      const { verb, user: by, objectRef, annotations, requestReceivedTimestamp } = JSON.parse(line) as AuditEvent;
      if (by.username !== user || !objectRef || annotations?.['authorization.k8s.io/decision'] !== 'allow') return [];
      const { apiGroup = '', resource, subresource, name = '' } = objectRef;
      const right = `${verb} ${apiGroup}/${resource}${subresource === undefined ? '' : `/${subresource}`}`;
      return [{ right, atMs: Date.parse(requestReceivedTimestamp), of: name }];
    });
  }

  run('etcd', [
    `--data-dir=${join(dir, 'etcd')}`,
    `--listen-client-urls=${etcdUrl}`,
    `--advertise-client-urls=${etcdUrl}`,
    `--listen-peer-urls=http://127.0.0.1:${peerPort}`,
    `--initial-advertise-peer-urls=http://127.0.0.1:${peerPort}`,
    `--initial-cluster=default=http://127.0.0.1:${peerPort}`,
    '--unsafe-no-fsync',
    '--log-level=warn',
  ]);
  const cluster: TestCluster = {
    kubeconfig: admin,
    url,
    caFile,
    request,
    kill,
    start,
    logEnd,
    run: keep,
    async kubeconfigOf(namespace, name) {
      const path = `/api/v1/namespaces/${namespace}/serviceaccounts/${name}/token`;
      const answer = await request('POST', path, {
        apiVersion: 'authentication.k8s.io/v1',
        kind: 'TokenRequest',
        spec: { expirationSeconds: 3600 },
      });
      const { token: secret } = (answer.body['status'] ?? {}) as { token?: string };
      if (secret === undefined) throw new Error(`no token for ${namespace}/${name}: ${JSON.stringify(answer.body)}`);
      return kubeconfig(`${namespace}-${name}.kubeconfig`, secret);
    },
    kubectl(argv, input) {
      const done = spawnSync('kubectl', ['--kubeconfig', admin, ...argv], {
        encoding: 'utf8',
        ...(input === undefined ? {} : { input }),
      });
      if (done.status !== 0) throw new Error(`kubectl ${argv.join(' ')}: ${done.stderr || String(done.error)}`);
      return done.stdout;
    },
    rightsUsed: (namespace, name) => [...new Set(requests(namespace, name).map(({ right }) => right))].sort(),
    requestsSince: (namespace, name, sinceMs) =>
      requests(namespace, name).flatMap(({ right, atMs, of }) => (atMs >= sinceMs ? [`${right} ${of}`] : [])),
    async install() {
      const path = '/apis/apiextensions.k8s.io/v1/customresourcedefinitions';
      for (const kind of allKinds) {
        const { status, body } = await request('POST', path, definition(kind));
        if (status !== 201) throw new Error(`${kind}: ${JSON.stringify(body)}`);
      }
      await until(async () => {
        const { body } = await request('GET', `/apis/${group}/v1`);
        return (body['resources'] as unknown[] | undefined)?.length === allKinds.length * 2;
      });
    },
    async compact() {
      const post = async (path: string, body: unknown): Promise<{ header?: { revision?: string } }> => {
        const answer = await fetch(etcdUrl + path, { method: 'POST', body: JSON.stringify(body) });
        return (await answer.json()) as { header?: { revision?: string } };
      };
      const { header } = await post('/v3/kv/range', { key: Buffer.from('/').toString('base64') });
      await post('/v3/kv/compaction', { revision: header?.revision, physical: true });
    },
    async close() {
      closing = true;
      for (const child of children.reverse()) await end(child);
      rmSync(dir, { recursive: true, force: true });
    },
  };
  try {
    await start();
    if (options.controllers === true) {
      run('kube-controller-manager', [
        `--kubeconfig=${admin}`,
        `--service-account-private-key-file=${keyFile}`,
        '--use-service-account-credentials=false',
        '--leader-elect=false',
        '--secure-port=0',
        '--controllers=*',
      ]);
    }
  } catch (error) {
    await cluster.close();
    throw error;
  }
  return cluster;
}

/** Waits until `isSo`; an error of it counts as no, until the end. @throws after `limitMs` with that error */
export async function until(isSo: () => boolean | Promise<boolean>, limitMs = 120_000): Promise<void> {
  const end = Date.now() + limitMs;
  for (;;) {
    try {
      if (await isSo()) return;
      if (Date.now() > end) throw new Error(`not so within ${limitMs / 1000} s: ${isSo.toString()}`);
    } catch (error) {
      if (Date.now() > end) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
