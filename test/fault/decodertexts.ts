/** What people type and write, as Targets of the fuzzer: refused by an error that says why, or taken. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { join } from 'node:path';
import { ApiProblem } from '../../master/api/problem.ts';
import { readToken } from '../../master/api/list.ts';
import { parseSelector } from '../../master/api/selector.ts';
import { knownHost, parseHostKey } from '../../master/bootstrap/hostkey.ts';
import { readDocuments } from '../../master/cli/apply.ts';
import { parsePoint } from '../../master/cli/recovery.ts';
import { readConfiguration } from '../../master/configuration.ts';
import { nextTime, parseCron } from '../../master/cron.ts';
import { UsageError } from '../../proto/cli.ts';
import { formatHostPort, parseDuration, parseHostPort, parseName, parseSize } from '../../proto/value.ts';
import { refusal, type Target } from './fuzzing.ts';

/** @param folder for those that read files */
export function texts(folder: string): Target[] {
  /** Of what is typed: refused by an Error with a message, or answered. */
  const typed = (
    name: string,
    seeds: string[],
    read: (text: string) => unknown,
    expected: abstract new (...args: never[]) => Error = Error,
    words: string[] = [],
  ) => ({
    name,
    seeds: seeds.map((seed) => Buffer.from(seed)),
    words,
    decode(bytes: Buffer) {
      try {
        read(bytes.toString());
      } catch (error) {
        refusal(error, expected);
      }
    },
  });
  const file = join(folder, 'config.yaml');
  const yaml = [
    '&a',
    '*a',
    '<<: *a',
    '!!binary',
    '? ',
    '---\n',
    '{',
    '[',
    '"',
    '|',
    '\t',
    '__proto__: 1',
    '!!js/function',
  ];
  return [
    typed('address', ['127.0.0.1:8443', '[::1]:80', 'master:1'], (text) => {
      const address = parseHostPort(text);
      assert.deepEqual(parseHostPort(formatHostPort(address)), address);
    }),
    typed('duration', ['500ms', '1.5h', '7d'], (text) =>
      assert.ok(Number.isFinite(parseDuration(text)) || text.length > 300),
    ),
    typed('size', ['64MiB', '10Gi', '1.5 kB'], (text) => assert.ok(parseSize(text) >= 0)),
    typed('name', ['a', 'shop-db-1'], (text) => assert.equal(parseName(text), text)),
    typed('selector', ['app=shop,tier!=test,zone in (a,b),owner,!old'], (text) => {
      try {
        parseSelector(text)({ app: 'shop', zone: 'a' });
      } catch (error) {
        refusal(error, ApiProblem);
      }
    }),
    typed('page token', [Buffer.from('name').toString('base64url')], (text) => {
      try {
        readToken(text);
      } catch (error) {
        refusal(error, ApiProblem);
      }
    }),
    typed(
      'cron',
      ['*/5 * * * *', '0 12 1,15 jan-mar mon', '@daily'],
      (text) => {
        const next = nextTime(parseCron(text), 1_700_000_000_000);
        assert.ok(next === undefined || next > 1_700_000_000_000);
      },
      Error,
      ['*/', '@', 'mon', '-', ',', '59'],
    ),
    typed('point', ['latest-data', '2026-11-20T09:00:00Z', 'snap-1'], parsePoint),
    typed('host key', ['SHA256:' + 'A'.repeat(43), 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA=='], (text) =>
      parseHostKey(text),
    ),
    typed(
      'known hosts',
      ['|1|c2FsdA==|aGFzaA== ssh-rsa AAAA\n[host]:22 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==\n'],
      (text) => knownHost(text.slice(0, 400), 'host', 22),
    ),
    typed(
      'documents',
      ['kind: Replication\nmetadata:\n  name: a\nspec: {x: 1}\n---\nkind: List\nitems: []\n'],
      (text) => readDocuments(text, 'file'),
      UsageError,
      ['kind: ', 'metadata:', 'items:', ...yaml],
    ),
    {
      name: 'configuration file',
      seeds: [Buffer.from('http: 127.0.0.1:8080\nallow: [/srv]\nlogLevel: info\nrequestsPerSecond: 5\n')],
      words: ['tls: ', 'http: ', 'allow:', ...yaml],
      async decode(bytes) {
        fs.writeFileSync(file, bytes);
        try {
          await readConfiguration(file);
        } catch (error) {
          refusal(error, UsageError);
        }
      },
    },
  ];
}
