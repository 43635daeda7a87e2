/** Two syncthings as their users run them, source and target: both keep a database of all files, the source watches by inotify. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { appears, type Follower } from './lsyncd.ts';
import { freePort, need } from './peers.ts';

const apiKey = 'bench';
const folderId = 'tree';
const pollMs = 100;

interface Side {
  start(folder: object): Promise<void>;
  get<T>(path: string): Promise<T>;
  kill(): Promise<void>;
  pid(): number[];
  id: string;
  address: string;
}

/** @throws Missing */
export async function startSyncthing(folder: string): Promise<Follower> {
  need('syncthing', 'syncthing');
  const target = join(folder, 'target');
  mkdirSync(target, { recursive: true });
  const sides = [await sideAt(join(folder, 'source-home')), await sideAt(join(folder, 'target-home'))] as const;
  const [from, to] = sides;
  let source = '';
  const kill = async (): Promise<void> => void (await Promise.all(sides.map((side) => side.kill())));
  return {
    name: 'syncthing',
    command: 'two syncthings, watcher delay 1 s, fsync on, TLS, no relays or discovery',
    target,
    roots: () => sides.flatMap((side) => side.pid()),
    halt: kill,
    async begin({ path }) {
      source = path;
      const devices = sides.map(({ id, address }) => ({ deviceID: id, addresses: [address] }));
      const shared = {
        ...{ id: folderId, devices, rescanIntervalS: 3600, fsWatcherEnabled: true, fsWatcherDelayS: 1 },
        // What is to be mirrored gets nothing put into it.
        markerName: '.',
      };
      await to.start({ devices, folders: [{ ...shared, path: target, type: 'receiveonly' }] });
      await from.start({ devices, folders: [{ ...shared, path, type: 'sendonly' }] });
      while (!(await isComplete(from, to))) await sleep(pollMs);
    },
    async follow(change, path) {
      change();
      await appears(path, join(target, path.slice(source.length)));
    },
    stop: kill,
  };
}

/** The source has looked at all that it has, and the target has all of that. */
async function isComplete(from: Side, to: Side): Promise<boolean> {
  const { connections } = await from.get<{ connections: Record<string, { connected: boolean }> }>('system/connections');
  if (connections[to.id]?.connected !== true) return false;
  const mine = await from.get<Status>(`db/status?folder=${folderId}`);
  const theirs = await to.get<Status>(`db/status?folder=${folderId}`);
  for (const { errors, error } of [mine, theirs])
    if (errors > 0 || error) throw new Error(`syncthing: ${error || errors}`);
  const isIdle = mine.state === 'idle' && theirs.state === 'idle';
  return isIdle && mine.localFiles > 0 && theirs.globalFiles === mine.localFiles && theirs.needTotalItems === 0;
}

interface Status {
  state: string;
  localFiles: number;
  globalFiles: number;
  needTotalItems: number;
  errors: number;
  error: string;
}

async function sideAt(home: string): Promise<Side> {
  const gui = `127.0.0.1:${await freePort()}`;
  const address = `tcp://127.0.0.1:${await freePort()}`;
  const made = spawnSync('syncthing', ['generate', `--home=${home}`, '--no-default-folder', '--skip-port-probing'], {
    encoding: 'utf8',
  });
  if (made.status !== 0) throw new Error(`syncthing generate: ${made.stderr}${made.stdout}`);
  const id = spawnSync('syncthing', ['serve', `--home=${home}`, '--device-id'], { encoding: 'utf8' }).stdout.trim();
  let child: ChildProcess | undefined;
  const ask = async (method: string, path: string, body?: object): Promise<Response> => {
    const answer = await fetch(`http://${gui}/rest/${path}`, {
      method,
      headers: { 'X-API-Key': apiKey, 'Content-Type': 'application/json' },
      ...(body && { body: JSON.stringify(body) }),
    });
    if (!answer.ok) throw new Error(`syncthing: ${method} ${path}: ${answer.status} ${await answer.text()}`);
    return answer;
  };
  return {
    id,
    address,
    pid: () => (child?.pid === undefined ? [] : [child.pid]),
    get: async <T>(path: string) => (await (await ask('GET', path)).json()) as T,
    async start(config) {
      child = spawn(
        'setpriv',
        [
          ...[
            '--pdeathsig',
            'KILL',
            'syncthing',
            'serve',
            `--home=${home}`,
            '--no-browser',
            '--no-restart',
            '--no-upgrade',
          ],
          ...[`--gui-address=${gui}`, `--gui-apikey=${apiKey}`, '--no-default-folder', '--logfile=-'],
        ],
        // Without the process of its own that watches over it: who is killed is the one that works.
        { stdio: 'ignore', env: { ...process.env, STMONITORED: 'yes' } },
      );
      for (;;) {
        if (child.exitCode !== null) throw new Error(`syncthing ended with ${child.exitCode}`);
        if (
          await ask('GET', 'system/ping').then(
            () => true,
            () => false,
          )
        )
          break;
        await sleep(pollMs);
      }
      const quiet = {
        globalAnnounceEnabled: false,
        localAnnounceEnabled: false,
        relaysEnabled: false,
        natEnabled: false,
      };
      const options = {
        ...quiet,
        listenAddresses: [address],
        urAccepted: -1,
        crashReportingEnabled: false,
        setLowPriority: false,
      };
      await ask('PATCH', 'config/options', options);
      const { devices, folders } = config as { devices: { deviceID: string }[]; folders: { id: string }[] };
      for (const device of devices) await ask('PUT', `config/devices/${device.deviceID}`, device);
      for (const one of folders) await ask('PUT', `config/folders/${one.id}`, one);
    },
    async kill() {
      if (!child || child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, 'exit');
      child.kill('SIGKILL');
      await exited;
    },
  };
}
