/**
 * `npm test`: types, lint and format, then every test file under tap. One line per file while it runs, each failure in
 * full, each skipped test by name with its reason, and as the last line exactly `N passed, N failed, N skipped`
 * (assertions; a check counts as one). Exit status 0 only when nothing failed.
 *
 * Arguments are handed to tap, e.g. a test file: then the checks are left out. `e2e [NAME..]` runs the suites of
 * test/e2e and test/fault at full length (REPLICATOR_LONG=1 in their environment), all or by name, with what they measure.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { globSync, mkdirSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { Parser, type Result } from 'tap-parser';
import { stringify } from 'yaml';

const root = new URL('..', import.meta.url).pathname;
const program = (name: string) => `${root}node_modules/.bin/${name}`;
const checks: Record<string, string[]> = {
  types: [program('tsc'), '-p', '.'],
  'types of the page': [program('tsc'), '-p', 'master/page'],
  lint: [program('eslint'), '-c', '.eslintrc.mjs', '.'],
  format: [program('prettier'), '--check', '--log-level', 'warn', '**/*.{ts,mjs,js,css,html,json}'],
};
const count = { passed: 0, failed: 0, skipped: 0 };
const skips: string[] = [];
const isLong = process.argv[2] === 'e2e';

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function check(): void {
  for (const [name, argv] of Object.entries(checks)) {
    const { status, stdout, stderr } = spawnSync(process.execPath, argv, { cwd: root, encoding: 'utf8' });
    say(`${status === 0 ? 'ok  ' : 'FAIL'}  ${name}`);
    if (status === 0) count.passed++;
    else count.failed++;
    if (status !== 0) say(`${stdout}${stderr}`.trimEnd().replaceAll(/^/gm, '      '));
  }
}

/** What a test says of its measurements (`t.comment`); the rest is tap's own. */
function remark(comment: string): void {
  const text = comment.replace(/^# */, '').trim();
  if (!/^(Subtest: |time=|\{ |No coverage|$)/.test(text)) say(`      ${text}`);
}

/** Counts leaves; a closing test point counts only when it failed or was skipped with nothing below it that says so. */
function follow(parser: Parser, report: (result: Result) => void): void {
  let before = count.failed + count.skipped;
  if (isLong) parser.on('comment', remark);
  parser.on('child', (child: Parser) => {
    before = count.failed + count.skipped;
    follow(child, report);
  });
  parser.on('assert', (result: Result) => {
    const told = count.failed + count.skipped > before;
    const bad = !result.ok && !result.todo;
    if (!result.closingTestPoint || (!told && (bad || result.skip))) report(result);
    before = count.failed + count.skipped;
  });
}

function report(result: Result): void {
  const name = result.fullname === '' ? result.name : result.fullname;
  if (result.skip || result.todo) {
    count.skipped++;
    const reason = result.skip || result.todo;
    skips.push(`${name}: ${typeof reason === 'string' ? reason : 'no reason given'}`);
  } else if (result.ok) count.passed++;
  else {
    count.failed++;
    say(`FAIL  ${name}`);
    if (result.diag) say(stringify(useful(result.diag), { lineWidth: 0 }).trimEnd().replaceAll(/^/gm, '      '));
  }
}
/** Without what a reader of a failure never needs. */
function useful(diag: unknown): unknown {
  if (typeof diag !== 'object' || diag === null) return diag;
  return Object.fromEntries(
    Object.entries(diag).filter(([key]) => !['at', 'stdio', 'cwd', 'args', 'jobId'].includes(key)),
  );
}

async function tap(argv: string[]): Promise<void> {
  const args = [program('tap'), 'run', '--reporter=tap', ...argv];
  const child = spawn(process.execPath, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
  const raw: Buffer[] = [];
  const parser = new Parser();
  follow(parser, report);
  let start = { ...count };
  parser.on('assert', (file: Result) => {
    const skipped = count.skipped - start.skipped;
    const numbers = `${count.passed - start.passed} passed${skipped > 0 ? `, ${skipped} skipped` : ''}`;
    say(`${file.ok ? 'ok  ' : 'FAIL'}  ${file.name}  (${numbers}, ${((file.time ?? 0) / 1000).toFixed(1)} s)`);
    start = { ...count };
  });
  parser.on('bailout', (reason) => {
    count.failed++;
    say(`FAIL  given up: ${reason}`);
  });
  child.stdout.on('data', (data: Buffer) => {
    raw.push(data);
    parser.write(data);
  });
  const [status] = (await once(child, 'close')) as [number | null];
  parser.end();
  mkdirSync(`${root}.tap`, { recursive: true });
  writeFileSync(`${root}.tap/results.tap`, Buffer.concat(raw));
  if (status !== 0 && count.failed === 0) {
    count.failed++;
    say(`FAIL  tap ended with status ${status} although no test failed`);
  }
}

/** The suites asked for as tap's arguments; a name that is none ends with exit status 2 and the list. */
function longSuites(names: string[]): string[] {
  const paths = globSync('test/{e2e,fault}/*.test.ts', { cwd: root });
  const known = paths.map((path) => basename(path, '.test.ts'));
  // A name stands for all suites that begin with it: `kubernetes` for kubernetesmaster too.
  const meant = names.flatMap((name) => known.filter((suite) => suite.startsWith(name)));
  const wrong = names.find((name) => !known.some((suite) => suite.startsWith(name)));
  if (wrong !== undefined) {
    process.stderr.write(`There is no e2e suite ${JSON.stringify(wrong)}.\nThere are: ${known.sort().join(', ')}\n`);
    process.exit(2);
  }
  process.env['REPLICATOR_LONG'] = '1';
  return [
    '--timeout=3600',
    ...[...new Set(names.length > 0 ? meant : known)].map(
      (name) => paths.find((path) => basename(path, '.test.ts') === name) ?? '',
    ),
  ];
}

const argv = process.argv.slice(2);
if (argv.length === 0) check();
await tap(isLong ? longSuites(argv.slice(1)) : argv);
if (skips.length > 0) say(`\nSkipped:\n${skips.map((skip) => `  ${skip}`).join('\n')}`);
say(`\n${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
process.exitCode = count.failed === 0 ? 0 : 1;
