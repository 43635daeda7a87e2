/**
 * The command line of our programs: flags described once give parsing, defaults, `--help` and usage errors.
 *
 * Guarantees: what is wrong with an argument is said before anything is done, naming the flag and the cure, on standard
 * error with exit status 2; a failure while running is exit status 1. Never guesses: an unknown flag is refused, with
 * the nearest known one named. Reads no configuration file and no environment: the caller gives those as defaults.
 */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

/** What a person typed is wrong: exit status 2. `cure` says what to type instead. */
export class UsageError extends Error {
  readonly cure: string;
  constructor(message: string, cure: string) {
    super(message);
    this.name = 'UsageError';
    this.cure = cure;
  }
}

/** Reads one value; throws an Error whose message completes "--flag VALUE: ...". */
export type Parse<T> = ((text: string) => T) & { choices?: string[] };

export interface Flag<T> {
  /** What the value stands for in the help, e.g. HOST:PORT; null for a switch. */
  readonly value: string | null;
  readonly help: string;
  /** One letter, e.g. `o` for -o. */
  readonly short?: string;
  /** The words that it may be, where they are few. */
  readonly choices?: readonly string[];
  readonly read: (texts: string[], flag: string) => T;
}
export type Flags = Record<string, Flag<unknown>>;
export type Values<F extends Flags> = { [K in keyof F]: F[K] extends Flag<infer T> ? T : never };

export interface Program<F extends Flags = Flags> {
  /** As typed, e.g. `replctl get`. */
  readonly name: string;
  readonly summary: string;
  readonly flags: F;
  /** What follows the flags, e.g. `KIND [NAME]`; absent: nothing may. */
  readonly operands?: string;
  readonly minOperands?: number;
  readonly maxOperands?: number;
  /** Further text of the help: examples, environment. */
  readonly notes?: string;
}
export interface Arguments<F extends Flags> {
  options: Values<F>;
  operands: string[];
}

function one<T>(value: string, texts: string[], flag: string, parse: Parse<T>): T | undefined {
  if (texts.length > 1) throw new UsageError(`--${flag} is given ${texts.length} times.`, `Give --${flag} once.`);
  return texts[0] === undefined ? undefined : parsed(value, texts[0], flag, parse);
}
function parsed<T>(value: string, text: string, flag: string, parse: Parse<T>): T {
  try {
    return parse(text);
  } catch (error) {
    throw new UsageError(`--${flag} ${text}: ${(error as Error).message}`, `Give it as --${flag} ${value}.`);
  }
}

export function optional<T>(value: string, help: string, parse: Parse<T>): Flag<T | undefined> {
  return { value, help, ...wordsOf(parse), read: (texts, flag) => one(value, texts, flag, parse) };
}
/** `fallback` is written as a person would type it, goes through `parse`, and is shown in the help. */
export function withDefault<T>(value: string, fallback: string, help: string, parse: Parse<T>): Flag<T> {
  const read = (texts: string[], flag: string) => one(value, texts, flag, parse) ?? parse(fallback);
  return { value, help: `${help} (default ${fallback})`, ...wordsOf(parse), read };
}
export function required<T>(value: string, help: string, parse: Parse<T>): Flag<T> {
  return {
    value,
    help: `${help} (needed)`,
    ...wordsOf(parse),
    read: (texts, flag) => {
      const found = one(value, texts, flag, parse);
      if (found === undefined) throw new UsageError(`--${flag} is missing.`, `Add --${flag} ${value}: ${help}.`);
      return found;
    },
  };
}
/** May be given any number of times; none gives an empty list. */
export function repeated<T>(value: string, help: string, parse: Parse<T>): Flag<T[]> {
  return {
    value,
    help: `${help} (may be repeated)`,
    ...wordsOf(parse),
    read: (texts, flag) => texts.map((text) => parsed(value, text, flag, parse)),
  };
}
function wordsOf({ choices }: { choices?: string[] }): { choices?: string[] } {
  return choices === undefined ? {} : { choices };
}
export function toggle(help: string): Flag<boolean> {
  return { value: null, help, read: (texts) => texts.length > 0 };
}

const everyProgram = { help: toggle('Show this help'), version: toggle('Show the version') };

/**
 * Pure: no printing, no exit. `help` or `version` among the arguments is answered before anything is checked, so that
 * help is to be had for a line that is wrong.
 * @throws UsageError
 */
export function readArguments<F extends Flags>(
  program: Program<F>,
  argv: string[],
): Arguments<F> | { wants: 'help' | 'version' } {
  const flags: Flags = { ...everyProgram, ...program.flags };
  const options = Object.fromEntries(
    Object.entries(flags).map(([name, flag]) => [
      name,
      {
        type: flag.value === null ? ('boolean' as const) : ('string' as const),
        ...(flag.short && { short: flag.short }),
      },
    ]),
  );
  options['help'] = { type: 'boolean', short: 'h' };
  const { tokens } = parseArgs({ args: argv, options, strict: false, allowPositionals: true, tokens: true });
  for (const wants of ['help', 'version'] as const) {
    if (tokens.some((token) => token.kind === 'option' && token.name === wants)) return { wants };
  }
  const texts = new Map<string, string[]>();
  const operands: string[] = [];
  for (const token of tokens) {
    if (token.kind === 'positional') operands.push(token.value);
    if (token.kind !== 'option') continue;
    const flag = flags[token.name];
    if (flag === undefined) throw unknownFlag(program, token.rawName, Object.keys(flags));
    if (flag.value === null && token.value !== undefined)
      throw new UsageError(`${token.rawName} takes no value.`, `Give ${token.rawName} alone, or leave it out.`);
    const swallowed = token.value !== undefined && !token.inlineValue && /^--?[a-z]/i.test(token.value);
    if (flag.value !== null && (token.value === undefined || token.value === '' || swallowed))
      throw new UsageError(`${token.rawName} has no value.`, `Give it as ${token.rawName} ${flag.value}.`);
    texts.set(token.name, [...(texts.get(token.name) ?? []), token.value ?? '']);
  }
  checkOperands(program, operands);
  const values = Object.entries(program.flags).map(([name, flag]) => [name, flag.read(texts.get(name) ?? [], name)]);
  return { options: Object.fromEntries(values) as Values<F>, operands };
}

function unknownFlag(program: Program, typed: string, known: string[]): UsageError {
  const near = nearest(typed.replace(/^-+/, ''), known);
  const cure = near === undefined ? '' : `Did you mean --${near}? `;
  return new UsageError(`Unknown flag ${typed}.`, `${cure}\`${program.name} --help\` lists the flags.`);
}

function checkOperands(program: Program, operands: string[]): void {
  const form = program.operands === undefined ? program.name : `${program.name} ${program.operands}`;
  const most = program.maxOperands ?? (program.operands === undefined ? 0 : Infinity);
  const surplus = operands[most];
  if (surplus !== undefined) throw new UsageError(`Unexpected argument ${JSON.stringify(surplus)}.`, `Form: ${form}`);
  if (operands.length < (program.minOperands ?? 0)) {
    const missing = program.operands?.split(' ')[operands.length] ?? 'an argument';
    throw new UsageError(`${missing} is missing.`, `Form: ${form}`);
  }
}

/** The known word that a typing mistake most likely meant; undefined when none is near. */
export function nearest(typed: string, known: string[]): string | undefined {
  const ranked = known.map((word) => ({ word, distance: editDistance(typed, word) }));
  ranked.sort((a, b) => a.distance - b.distance);
  const best = ranked[0];
  return best !== undefined && best.distance <= Math.max(typed.length < 4 ? 1 : 2, Math.floor(typed.length / 3))
    ? best.word
    : undefined;
}
function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++)
      row.push(Math.min(row[j - 1]! + 1, previous[j]! + 1, previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    previous = row;
  }
  return previous[b.length]!;
}

export function helpText(program: Program): string {
  const flags = Object.entries({ ...program.flags, ...everyProgram }).map(([name, flag]) => {
    const short = name === 'help' ? '-h, ' : flag.short === undefined ? '' : `-${flag.short}, `;
    return [`  ${short}--${name}${flag.value === null ? '' : ` ${flag.value}`}`, flag.help] as const;
  });
  const width = Math.min(32, Math.max(...flags.map(([form]) => form.length)) + 2);
  const lines = flags.map(([form, help]) =>
    form.length < width ? form.padEnd(width) + help : `${form}\n${' '.repeat(width)}${help}`,
  );
  const form = `${program.name} [flags]${program.operands === undefined ? '' : ` ${program.operands}`}`;
  const notes = program.notes === undefined ? [] : ['', program.notes];
  return [`Usage: ${form}`, '', program.summary, '', 'Flags:', ...lines, ...notes, ''].join('\n');
}

/** Of package.json, the one place that holds it. */
export function programVersion(): string {
  const text = readFileSync(new URL('../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

export function printUsageError(program: string, error: UsageError): void {
  process.stderr.write(`${program}: ${error.message}\n${error.cure}\n`);
}

/** For a `main.ts`: answers the arguments, or prints help, version or the usage error and exits (0, 0, 2). */
export function parseArguments<F extends Flags>(program: Program<F>, argv: string[]): Arguments<F> {
  try {
    const result = readArguments(program, argv);
    if (!('wants' in result)) return result;
    process.stdout.write(result.wants === 'help' ? helpText(program) : `${program.name} ${programVersion()}\n`);
    process.exit(0);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    printUsageError(program.name, error);
    process.exit(2);
  }
}
