/**
 * The log of a program: one JSON line on standard output for each decision, with its level as a word and RFC 3339 time.
 *
 * Guarantees: fields named like secrets are written as [redacted], wherever they stand to a depth of two. Under systemd each
 * line begins with its priority (sd-daemon(3)), so that `journalctl -p warning` finds it; journald takes it off again.
 * Fields that join lines: `replication`, `agent`, `call` (one gRPC call, the same id on agent and master), `requestId` (of an
 * API request, also in its answer).
 */
import { pino, type DestinationStream, type Logger } from 'pino';

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error'] as const;
export type LogLevel = (typeof logLevels)[number];

const secrets = ['token', 'password', 'passphrase', 'privateKey', 'authorization', 'cookie', 'secret', 'keyPem'];
/** syslog(3) */
const priorities: Record<string, number> = { trace: 7, debug: 7, info: 6, warn: 4, error: 3, fatal: 2 };

/** @param journald standard output goes to journald; given by tests */
export function openLog(
  name: string,
  level: LogLevel,
  output: DestinationStream = pino.destination({ fd: 1, sync: true }),
  journald = process.env['JOURNAL_STREAM'] !== undefined,
): Logger {
  const prefixed: DestinationStream = {
    write: (line) => output.write(`<${priorities[/^\{"level":"(\w+)"/.exec(line)?.[1] ?? ''] ?? 6}>${line}`),
  };
  return pino(
    {
      level,
      base: { program: name, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      redact: { paths: secrets.flatMap((field) => [field, `*.${field}`, `*.*.${field}`]), censor: '[redacted]' },
    },
    journald ? prefixed : output,
  );
}
