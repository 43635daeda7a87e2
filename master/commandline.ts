/** What replicator-master is started with. */
import { optional, parseArguments, repeated, required, toggle, UsageError } from '../proto/cli.ts';
import { logLevels } from '../proto/log.ts';
import { parseChoice, parseFolder, parseHostPort, parseText } from '../proto/value.ts';

export type CommandLine = ReturnType<typeof readCommandLine>;

/** Ends the process for --help, --version and what is wrong. */
export function readCommandLine(argv: string[]) {
  const { options } = parseArguments(
    {
      name: 'replicator-master',
      summary: 'Keeps replicas of volumes, takes snapshots, recovers, and serves the control API.',
      flags: {
        data: required('DIR', 'where everything is kept', parseFolder),
        config: optional('FILE', 'configuration, see replicator-config.yaml; flags come first', parseText),
        http: optional(
          'HOST:PORT',
          'of the control API (default 127.0.0.1:8080); TLS beyond the loopback',
          parseHostPort,
        ),
        grpc: optional('HOST:PORT', 'of the agents (default 127.0.0.1:8443)', parseHostPort),
        advertise: repeated('HOST', 'names and addresses that agents dial', parseText),
        'state-copy': optional('FILE', "kept a copy of this master's state, on other storage", parseFolder),
        'take-over': optional('FILE', 'first start of a new directory: go on from such a copy', parseFolder),
        'class-path': repeated(
          'NAME=PATH',
          'with --take-over: where the replicas of a storage class lie here',
          parseClassPath,
        ),
        'check-config': toggle('only look whether the configuration and this command line are right'),
        allow: repeated('PATH', 'where recoveries may write, with all below', parseText),
        kubernetes: optional(
          'NAMESPACE',
          'keep all objects as resources of this namespace; several masters may run',
          parseText,
        ),
        kubeconfig: optional('FILE', "of the cluster (default the pod's service account)", parseText),
        health: optional('HOST:PORT', 'of /healthz and /readyz alone, also while another master leads', parseHostPort),
        'log-level': optional('LEVEL', `${logLevels.join(', ')} (default info)`, parseChoice(...logLevels)),
      },
    },
    argv,
  );
  return options;
}

/** @throws UsageError */
export function mustSuit(typed: CommandLine, stateCopy: string | undefined): void {
  const own = typed.kubernetes !== undefined && (stateCopy ?? typed['take-over']) !== undefined;
  if (own)
    throw new UsageError(
      'With --kubernetes the state is in the cluster.',
      'Leave --state-copy and --take-over out, and back up the cluster.',
    );
  if (stateCopy?.startsWith(`${typed.data}/`) === true)
    throw new UsageError(
      `--state-copy ${stateCopy} is in the master's own data.`,
      'Name a file on other storage: it is for when this one is lost.',
    );
  if (typed['class-path'].length > 0 && typed['take-over'] === undefined)
    throw new UsageError('--class-path is for a start with --take-over.', 'Give both, or none.');
}

function parseClassPath(text: string): [name: string, path: string] {
  const [, name, path] = /^([^=]+)=(\/.*)$/.exec(text) ?? [];
  if (name === undefined || path === undefined) throw new Error('is not NAME=/PATH');
  return [name, parseFolder(path)];
}
