/**
 * replctl: the control API from a shell. Exit status 0: done; 1: refused or failed; 2: wrong usage; 130: interrupted.
 *
 * Results go to standard output, everything about them (progress, questions, errors) to standard error. Holds no state
 * and no right of its own: it can do what the token can.
 */
import { helpText, nearest, printUsageError, programVersion, toggle, UsageError, type Program } from '../proto/cli.ts';
import { parseArgs } from 'node:util';
import { apply } from './cli/apply.ts';
import { bootstrap } from './cli/bootstrap.ts';
import { ApiProblem, explainProblem, Unreachable } from './cli/client.ts';
import { cleanup } from './cli/cleanup.ts';
import { completion } from './cli/completion.ts';
import { describe, get } from './cli/get.ts';
import { cancel, confirmRecovery, recover, remove, retry, rollback } from './cli/recovery.ts';
import { demote, pause, promote, replicate, resume, resync, snapshot, verify, watch } from './cli/replication.ts';
import { supportBundle } from './cli/supportbundle.ts';
import { explain as explaining } from './cli/explain.ts';
import { login, logout } from './cli/login.ts';
import { token } from './cli/token.ts';
import { exporting, importing } from './cli/transfer.ts';
import { sink, user } from './cli/user.ts';
import { commonFlags, verb, type Verb } from './cli/verb.ts';

const version = verb(
  {
    name: 'version',
    summary: "Show replctl's version and the master's.",
    flags: { client: toggle('only of replctl') },
  },
  async (session, { options }) => {
    session.print(`replctl ${programVersion()}`);
    if (options.client) return 0;
    session.print(`master ${await session.client.version()} at ${session.client.url}`);
    return 0;
  },
);
const verbs: Record<string, Verb> = {
  get, describe, apply, replicate, snapshot, pause, resume, resync, verify, promote, demote, recover, rollback,
  confirm: confirmRecovery, cancel, retry, delete: remove,
  watch, login, logout, user, token, sink, bootstrap, cleanup, export: exporting, import: importing, explain: explaining,
  'support-bundle': supportBundle, completion: completion(() => verbs), version,
}; // prettier-ignore

const overview: Program = {
  name: 'replctl',
  summary: 'Controls a replicator master: what is mirrored, snapshots, recoveries.',
  operands: 'VERB ...',
  flags: commonFlags,
  notes: `Verbs (\`replctl VERB --help\` says more):
${Object.entries(verbs)
  .map(([name, { program }]) => `  ${name.padEnd(15)}${program.summary.split('. ')[0]}`)
  .join('\n')}

The master is found by --url, --data, REPLICATOR_URL, login, ./cdm-data/master (the quickstart's) or
/var/lib/replicator-master, in this order; else http://127.0.0.1:8080.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.`,
};

/** The verb may come after flags that all verbs have: `replctl --url U get agents`. */
function split(argv: string[]): { name: string | undefined; rest: string[] } {
  const options = Object.fromEntries(
    Object.entries(commonFlags).map(([name, flag]) => [
      name,
      { type: 'string' as const, ...('short' in flag && { short: flag.short }) },
    ]),
  );
  const { tokens } = parseArgs({ args: argv, options, strict: false, allowPositionals: true, tokens: true });
  const found = tokens.find((token) => token.kind === 'positional');
  if (found?.kind !== 'positional') return { name: undefined, rest: argv };
  return { name: found.value, rest: argv.toSpliced(found.index, 1) };
}

async function run(argv: string[], signal: AbortSignal): Promise<number> {
  const { name, rest } = split(argv);
  if (name === undefined || name === 'help') {
    const asked = verbs[rest[0] ?? ''];
    if (asked !== undefined) process.stdout.write(helpText(asked.program));
    else if (argv.includes('--version')) process.stdout.write(`replctl ${programVersion()}\n`);
    else if (name === 'help' || argv.includes('--help') || argv.includes('-h'))
      process.stdout.write(helpText(overview));
    else throw new UsageError('VERB is missing.', `Verbs: ${Object.keys(verbs).join(', ')}; \`replctl --help\``);
    return 0;
  }
  const chosen = Object.hasOwn(verbs, name) ? verbs[name] : undefined;
  if (chosen === undefined) {
    const near = nearest(name, Object.keys(verbs));
    const cure = near === undefined ? '' : `Did you mean ${near}? `;
    throw new UsageError(`There is no verb ${name}.`, `${cure}Verbs: ${Object.keys(verbs).join(', ')}`);
  }
  const outcome = await chosen.run(rest, signal);
  if (typeof outcome === 'number') return outcome;
  process.stdout.write('help' in outcome ? helpText(outcome.help) : `replctl ${programVersion()}\n`);
  return 0;
}

function explain(error: unknown): string {
  if (error instanceof ApiProblem) {
    const hint =
      'Log in (`replctl login`), or give --token-file FILE, such as admin.token of the master, or --data DIR.';
    return explainProblem(error.problem) + (error.problem.status === 401 ? `\n${hint}` : '');
  }
  if (error instanceof Unreachable)
    return `${error.message}\nIs replicator-master running? Give its address with --url, or its data directory with --data.`;
  return error instanceof Error ? error.message : String(error);
}

const interrupt = new AbortController();
process.once('SIGINT', () => interrupt.abort());
process.once('SIGTERM', () => interrupt.abort());
// A reader that has seen enough (`replctl get events | head`) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));

const argv = process.argv.slice(2);
try {
  process.exitCode = await run(argv, interrupt.signal);
} catch (error) {
  if (interrupt.signal.aborted) process.exitCode = split(argv).name === 'watch' ? 0 : 130;
  else if (error instanceof UsageError) {
    printUsageError('replctl', error);
    process.exitCode = 2;
  } else {
    process.stderr.write(`replctl: ${explain(error)}\n`);
    process.exitCode = 1;
  }
}
