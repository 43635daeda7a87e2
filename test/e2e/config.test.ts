/** The master's configuration: looked at before it is used, taken over while it runs; certificates renewed without a restart. */
import t from 'tap';
import { createHash, X509Certificate } from 'node:crypto';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { connect } from 'node:tls';
import Value from 'typebox/value';
import { parse } from 'yaml';
import { Configuration } from '../../master/configuration.ts';
import { program, runProgram } from './program.ts';

const example = resolve(import.meta.dirname, '../../master/replicator-config.yaml');
const hasOpenssl = (() => {
  try {
    return execFileSync('openssl', ['version']).length > 0;
  } catch {
    return false;
  }
})();

t.test('--check-config looks and starts nothing; the example has every key', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'config-'));
  t.teardown(() => rmSync(dir, { recursive: true }));
  const check = (text: string) => {
    writeFileSync(join(dir, 'c.yaml'), text);
    return runProgram('replicator-master', [
      '--data',
      join(dir, 'd'),
      '--config',
      join(dir, 'c.yaml'),
      '--check-config',
    ]);
  };
  const text = readFileSync(example, 'utf8');
  t.match(check(text), { status: 0, stdout: /c\.yaml is right/ });
  t.match(check('nope: 1'), { status: 2, stderr: /nope is not known/ });
  t.match(check('tls: {certificateFile: /none, keyFile: /none}'), { status: 2, stderr: /tls/ });
  t.match(check('requestsPerSecond: 0'), { status: 2, stderr: /requestsPerSecond/ });
  t.match(check('http: nowhere'), { status: 2, stderr: /http/ });
  const shown = parse(text.replace(/^# (tls:|stateCopy:|  \w+File:)/gm, '$1')) as object;
  t.ok(Value.Check(Configuration, shown));
  t.same(Object.keys(shown).sort(), Object.keys(Configuration.properties).sort(), 'no key without an example');
  const schema = runProgram('replicator-master', ['--config-schema']);
  t.same(
    Object.keys((JSON.parse(schema.stdout) as { properties: object }).properties),
    Object.keys(Configuration.properties),
  );
});

t.test(
  'SIGHUP takes over a new certificate and refuses a wrong file',
  { skip: !hasOpenssl && 'no openssl' },
  async (t) => {
    const dir = mkdtempSync(join(tmpdir(), 'config-'));
    const file = join(dir, 'c.yaml');
    const [cert, key] = [join(dir, 'tls.crt'), join(dir, 'tls.key')];
    const renew = (name: string): string => {
      const days = ['-days', '2', '-subj', `/CN=${name}`, '-addext', 'subjectAltName=IP:127.0.0.1'];
      const kind = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
      execFileSync('openssl', ['req', ...kind, ...days, '-keyout', `${key}.new`, '-out', `${cert}.new`], {
        stdio: 'ignore',
      });
      renameSync(`${key}.new`, key);
      renameSync(`${cert}.new`, cert);
      return fingerprint(new X509Certificate(readFileSync(cert)).raw);
    };
    const write = (more = ''): void => {
      writeFileSync(
        file,
        `http: 127.0.0.1:0\ngrpc: 127.0.0.1:0\ntls: {certificateFile: ${cert}, keyFile: ${key}}\n${more}`,
      );
    };
    const first = renew('first');
    write();
    const master = program('replicator-master', () => ['--data', join(dir, 'd'), '--config', file], join(dir, 'log'));
    t.teardown(async () => {
      await master.kill();
      rmSync(dir, { recursive: true });
    });
    master.start();
    const until = async <T>(
      what: string,
      probe: () => Promise<T | undefined | false> | T | undefined | false,
    ): Promise<T> => {
      for (const endMs = Date.now() + 60_000; Date.now() < endMs; await new Promise((r) => setTimeout(r, 50))) {
        const found = await Promise.resolve()
          .then(probe)
          .catch(() => undefined);
        if (found !== undefined && found !== false) return found;
      }
      throw new Error(`not reached: ${what}\n${master.logEnd()}`);
    };
    const { http } = await until(
      'ready',
      () => JSON.parse(readFileSync(join(dir, 'd', 'endpoints.json'), 'utf8')) as { http: string },
    );
    const { port } = new URL(http);
    t.match(http, /^https:/);
    t.equal(await served(Number(port)), first);
    const token = readFileSync(join(dir, 'd', 'admin.token'), 'utf8').trim();
    const events = (): { code: string; message: string }[] => {
      const auth = ['-H', `Authorization: Bearer ${token}`];
      const text = execFileSync('curl', ['-fsS', '--cacert', cert, ...auth, `${http}/api/v1/events?limit=20`]);
      return (JSON.parse(text.toString()) as { items: { code: string; message: string }[] }).items;
    };

    const open = connect({ host: '127.0.0.1', port: Number(port), rejectUnauthorized: false });
    await new Promise((done) => open.once('secureConnect', done));
    const second = renew('second');
    master.signal('SIGHUP');
    await until('the new certificate', async () => (await served(Number(port))) === second);
    t.equal(open.destroyed, false, 'what was connected stays so');
    open.destroy();
    t.ok(events().some(({ code, message }) => code === 'ConfigReloaded' && message.includes('tls')));

    write('nope: 1\n');
    master.signal('SIGHUP');
    await until('the refusal', () =>
      events().some(({ code, message }) => code === 'ConfigRefused' && message.includes('nope')),
    );
    t.equal(await served(Number(port)), second);
    write('advertise: [elsewhere]\nlogLevel: debug\nrequestsPerSecond: 1\n');
    master.signal('SIGHUP');
    await until('the rest', () =>
      events().some(
        ({ code, message }) => code === 'ConfigReloaded' && /logLevel.*advertise.*next start/.test(message),
      ),
    );
    await until('one caller is slowed down', () => {
      const argv = [
        '-sS',
        '-o',
        '/dev/null',
        '-w',
        '%{http_code}',
        '--cacert',
        cert,
        '-H',
        `Authorization: Bearer ${token}`,
      ];
      return execFileSync('curl', [...argv, `${http}/api/v1/agents`]).toString() === '429';
    });
  },
);

function fingerprint(der: Buffer): string {
  return createHash('sha256').update(der).digest('hex');
}
async function served(port: number): Promise<string> {
  const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false });
  try {
    await new Promise((done, failed) => socket.once('secureConnect', done).once('error', failed));
    return fingerprint(socket.getPeerCertificate().raw);
  } finally {
    socket.destroy();
  }
}
