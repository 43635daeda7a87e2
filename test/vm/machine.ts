/**
 * A virtual machine with another kernel than this one: Debian's, without acceleration, all of its files in memory. It runs
 * one script of this repository and what that writes comes back by the serial console.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  globSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';

const root = new URL('../..', import.meta.url).pathname;
const kernelPackage = 'linux-image-cloud-amd64';
/** What the captures and their tests load, with what that needs in turn. */
const packages = ['koffi', '@napi-rs/blake-hash', 'lz4-napi', 'protobufjs', '@grpc/grpc-js'];
const programs =
  'sh mount umount losetup dmsetup mkfs.ext4 mkfs.xfs xfs_io fsfreeze sync blkdiscard blockdev fallocate'.split(' ');

/** Why there is no such machine here, or false. */
export function missingMachine(): string | false {
  for (const program of ['qemu-system-x86_64', 'busybox', 'cpio', 'depmod', 'dpkg-deb', 'apt-get', ...programs])
    if (spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0) return `needs ${program}`;
  return false;
}

/** Debian's kernel and the modules it needs, from the package. Answers its folder; @throws when it cannot be had */
function kernel(folder: string): { image: string; modules: string } {
  const depends = execFileSync('apt-cache', ['depends', kernelPackage], { encoding: 'utf8' });
  const name = /Depends: (linux-image-\S+)/.exec(depends)?.[1] ?? kernelPackage;
  if (globSync(`${folder}/${name}_*.deb`).length === 0)
    execFileSync('apt-get', ['-qq', 'download', name], { cwd: folder, stdio: 'ignore' });
  const [archive = ''] = globSync(`${folder}/${name}_*.deb`);
  execFileSync('dpkg-deb', ['-x', archive, `${folder}/kernel`]);
  const [image = ''] = globSync(`${folder}/kernel/boot/vmlinuz-*`);
  const [modules = ''] = globSync(`${folder}/kernel/lib/modules/*`);
  execFileSync('depmod', ['--basedir', `${folder}/kernel`, basename(modules)]);
  return { image, modules };
}

function addProgram(tree: string, path: string): void {
  add(tree, path);
  addLibraries(tree, realpathSync(path));
}

function addLibraries(tree: string, path: string): void {
  const { stdout } = spawnSync('ldd', [path], { encoding: 'utf8' });
  for (const [, library = ''] of stdout.matchAll(/(\/\S+) \(0x/g)) add(tree, library);
}

/** Those of other platforms are not installed, and not needed. */
function withDependencies(names: string[]): Set<string> {
  const all = new Set<string>();
  const visit = (name: string): void => {
    const file = join(root, 'node_modules', name, 'package.json');
    if (all.has(name) || !existsSync(file)) return;
    all.add(name);
    type Manifest = { dependencies?: object; optionalDependencies?: object };
    const { dependencies, optionalDependencies } = JSON.parse(readFileSync(file, 'utf8')) as Manifest;
    for (const other of Object.keys({ ...dependencies, ...optionalDependencies })) visit(other);
  };
  names.forEach(visit);
  return all;
}

function add(tree: string, file: string): void {
  if (existsSync(join(tree, file))) return;
  mkdirSync(dirname(join(tree, file)), { recursive: true });
  cpSync(realpathSync(file), join(tree, file));
}

/** Everything that the guest has, as an initial RAM disk. */
function ramdisk(folder: string, modules: string, wanted: string[], script: string, argv: string[]): string {
  const tree = join(folder, 'tree');
  for (const path of ['proc', 'sys', 'dev', 'tmp', 'run', 'bin', 'sbin', 'usr/bin', 'usr/sbin', 'modules'])
    mkdirSync(join(tree, path), { recursive: true });
  const which = (program: string): string =>
    execFileSync('sh', ['-c', `PATH=$PATH:/usr/sbin:/sbin command -v ${program}`], { encoding: 'utf8' }).trim();
  for (const program of [...programs, process.execPath]) addProgram(tree, which(program));
  addProgram(tree, which('busybox'));
  for (const applet of ['insmod', 'poweroff', 'dd', 'mkdir', 'cat', 'ls', 'printf', 'sleep'])
    if (!existsSync(join(tree, 'bin', applet))) symlinkSync(which('busybox'), join(tree, 'bin', applet));
  const order: string[] = [];
  for (const name of wanted) {
    const needed = readFileSync(join(modules, 'modules.dep'), 'utf8');
    const line = needed.split('\n').find((one) => basename(one.split(':')[0] ?? '').startsWith(`${name}.ko`)) ?? '';
    for (const path of line.replace(':', '').trim().split(' ').reverse()) {
      if (path === '' || order.includes(path)) continue;
      order.push(path);
      cpSync(join(modules, path), join(tree, 'modules', basename(path)));
    }
  }
  mkdirSync(join(tree, 'repo/node_modules'), { recursive: true });
  for (const path of ['agent', 'proto', 'test', 'package.json', 'master']) cpSync(join(root, path), join(tree, 'repo', path), { recursive: true }); // prettier-ignore
  for (const name of withDependencies(packages))
    cpSync(join(root, 'node_modules', name), join(tree, 'repo/node_modules', name), { recursive: true });
  for (const path of globSync(join(tree, 'repo/node_modules/**/*.node')))
    if (path.includes('linux')) addLibraries(tree, path);
  const insert = order.map((path) => `insmod /modules/${basename(path)}`).join('\n');
  writeFileSync(
    join(tree, 'init'),
    `#!${which('busybox')} sh
# Nobody makes device nodes here: dmsetup does it itself.
export DM_DISABLE_UDEV=1 NODE_OPTIONS='--require /repo/test/vm/nocompile.cjs' PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp; mkdir /dev/shm; mount -t tmpfs shm /dev/shm; mount -t tracefs trace /sys/kernel/tracing
${insert}
cd /repo && ${process.execPath} --disable-warning=ExperimentalWarning ${script} ${argv.map((one) => `'${one}'`).join(' ')}
echo "STATUS $?"
poweroff -f
`,
    { mode: 0o755 },
  );
  const image = join(folder, 'ramdisk');
  execFileSync('sh', ['-c', `cd '${tree}' && find . | cpio --quiet -o -H newc > '${image}'`]);
  return image;
}

/** Boots, runs the script of this repository, answers all that came by the console. */
export async function runInMachine(options: {
  folder: string;
  modules: string[];
  script: string;
  argv: string[];
  seconds: number;
}): Promise<string> {
  const { folder, script, argv, seconds } = options;
  const { image, modules } = kernel(folder);
  const initrd = ramdisk(folder, modules, options.modules, script, argv);
  const guest = spawn(
    'qemu-system-x86_64',
    [
      ...['-accel', 'tcg,thread=multi', '-smp', '2', '-m', '3072', '-nographic', '-no-reboot', '-nic', 'none'],
      // On a busy host the kernel would find the timer too late and give up.
      ...['-kernel', image, '-initrd', initrd, '-append', 'console=ttyS0 quiet panic=-1 no_timer_check'],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const timer = setTimeout(() => guest.kill('SIGKILL'), seconds * 1000);
  let text = '';
  for await (const data of guest.stdout) text += String(data);
  clearTimeout(timer);
  return text;
}
