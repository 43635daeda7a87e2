/**
 * The log of a program: one JSON line on standard output for each decision, with its level as a word and RFC 3339 time.
 *
 * Guarantees: fields named like secrets are written as [redacted], wherever they stand to a depth of two. Under systemd each
 * line begins with its priority (sd-daemon(3)), so that `journalctl -p warning` finds it; journald takes it off again.
 * The newest lines can be kept in memory too (`keepLines`), for a support bundle.
 * Fields that join lines: `replication`, `agent`, `call` (one gRPC call, the same id on agent and master), `requestId` (of an
 * API request, also in its answer).
 */
import { pino, type DestinationStream, type Logger } from 'pino';

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error'] as const;
export type LogLevel = (typeof logLevels)[number];

const secrets = ['token', 'password', 'passphrase', 'privateKey', 'authorization', 'cookie', 'secret', 'keyPem'];
/** syslog(3) */
const priorities: Record<string, number> = { trace: 7, debug: 7, info: 6, warn: 4, error: 3, fatal: 2 };

/** The newest lines of a log, for who asks; older ones give way. */
export interface KeptLines extends DestinationStream {
  text(): string;
}

/** @param maxBytes of UTF-8 that are kept at most */
export function keepLines(maxBytes: number): KeptLines {
  const lines: string[] = [];
  let bytes = 0;
  return {
    write(line) {
      lines.push(line);
      bytes += Buffer.byteLength(line);
      while (bytes > maxBytes) bytes -= Buffer.byteLength(lines.shift() ?? '');
    },
    text: () => lines.join(''),
  };
}

/** @param journald standard output goes to journald; given by tests */
export function openLog(
  name: string,
  level: LogLevel,
  output: DestinationStream = pino.destination({ fd: 1, sync: true }),
  journald = process.env['JOURNAL_STREAM'] !== undefined,
  kept?: KeptLines,
): Logger {
  const priorityOf = (line: string): string =>
    journald ? `<${priorities[/^\{"level":"(\w+)"/.exec(line)?.[1] ?? ''] ?? 6}>` : '';
  const both: DestinationStream = {
    write(line) {
      kept?.write(line);
      output.write(`${priorityOf(line)}${line}`);
    },
  };
  return pino(
    {
      level,
      base: { program: name, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      redact: { paths: secrets.flatMap((field) => [field, `*.${field}`, `*.*.${field}`]), censor: '[redacted]' },
    },
    journald || kept ? both : output,
  );
}
