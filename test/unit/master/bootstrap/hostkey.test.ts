import t from 'tap';
import { spawnSync } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fingerprintOf, kindOf, knownHost, parseHostKey } from '../../../../master/bootstrap/hostkey.ts';
import { architectureOf, findPackage } from '../../../../master/bootstrap/packages.ts';

/** A public key's bytes: the kind, then what tells keys apart. */
function key(kind: string, content: string): Buffer {
  const parts = [kind, content].map((text) => {
    const head = Buffer.alloc(4);
    head.writeUInt32BE(text.length);
    return Buffer.concat([head, Buffer.from(text)]);
  });
  return Buffer.concat(parts);
}
const line = (bytes: Buffer): string => `${kindOf(bytes)} ${bytes.toString('base64')}`;
const good = key('ssh-ed25519', 'good');
const other = key('ssh-ed25519', 'other');
const rsa = key('ssh-rsa', 'rsa');

t.test('a fingerprint or a public key is what the host must show', async (t) => {
  for (const text of [fingerprintOf(good), `${fingerprintOf(good)}=`, line(good), `${line(good)} root@node-a\n`]) {
    t.equal(parseHostKey(text).accepts(good), true, text);
    t.equal(parseHostKey(text).accepts(other), false, text);
  }
  t.strictSame(parseHostKey(line(rsa)).kinds, ['ssh-rsa']);
  for (const text of [
    '',
    'SHA256:short',
    'MD5:00:11',
    'ssh-ed25519',
    'ssh-ed25519 !',
    `ssh-rsa ${good.toString('base64')}`,
  ])
    t.throws(() => parseHostKey(text), /neither a fingerprint/, text);
  const printed = spawnSync('ssh-keygen', ['-lf', '-'], { input: line(good), encoding: 'utf8' });
  if (printed.status === 0) t.match(printed.stdout, fingerprintOf(good), 'as ssh-keygen prints it');
});

t.test('known_hosts: names, patterns, ports, hashes, revoked keys', async (t) => {
  const salt = Buffer.from('01234567890123456789');
  const hash = createHmac('sha1', salt).update('hashed.example').digest('base64');
  const text = `# a comment
node-a,10.0.0.11 ${line(good)}
node-a ${line(rsa)}
[node-a]:2222 ${line(other)}
*.example,!bad.example ${line(good)} a comment
|1|${salt.toString('base64')}|${hash} ${line(other)}
@revoked node-r ${line(good)}
node-r ${line(good)}
@cert-authority * ${line(rsa)}
node-x garbage
`;
  const accepted = (host: string, port = 22): string[] | undefined => {
    const known = knownHost(text, host, port);
    return known && ['good', 'other', 'rsa'].filter((_, index) => known.accepts([good, other, rsa][index] ?? good));
  };
  t.strictSame(accepted('node-a'), ['good', 'rsa']);
  t.strictSame(knownHost(text, 'node-a', 22)?.kinds, ['ssh-ed25519', 'ssh-rsa']);
  t.strictSame(accepted('NODE-A'), ['good', 'rsa'], 'names have no case');
  t.strictSame(accepted('10.0.0.11'), ['good']);
  t.equal(accepted('10.0.0.111'), undefined);
  t.strictSame(accepted('node-a', 2222), ['other']);
  t.strictSame(accepted('x.example'), ['good']);
  t.equal(accepted('bad.example'), undefined);
  t.strictSame(accepted('hashed.example'), ['good', 'other']);
  t.equal(accepted('node-r'), undefined, 'revoked');
  t.equal(accepted('node-x'), undefined);
  t.equal(accepted('nodeXa'), undefined, 'a dot is a dot');
});

t.test('the newest release of the version for the architecture is taken', async (t) => {
  const dir = join(t.testdir({}), 'packages');
  mkdirSync(dir);
  const names = ['0.1.0-2.x86_64', '0.1.0-10.x86_64', '0.1.0-11.aarch64', '0.2.0-1.x86_64'];
  for (const name of names) writeFileSync(join(dir, `cdmr_agent-${name}.rpm`), '');
  writeFileSync(join(dir, 'other-0.1.0-99.x86_64.rpm'), '');
  t.equal(await findPackage(dir, '0.1.0', 'x86_64'), join(dir, 'cdmr_agent-0.1.0-10.x86_64.rpm'));
  t.equal(await findPackage(dir, '0.1.0', 'aarch64'), join(dir, 'cdmr_agent-0.1.0-11.aarch64.rpm'));
  await t.rejects(findPackage(dir, '0.3.0', 'x86_64'), /put cdmr_agent-0.3.0-RELEASE.x86_64.rpm .* into/);
  await t.rejects(findPackage(`${dir}/none`, '0.1.0', 'x86_64'), /there is no package for x86_64/);
  t.equal(architectureOf('/x/cdmr_agent-0.1.0-1.aarch64.rpm'), 'aarch64');
  t.throws(() => architectureOf('/x/agent.rpm'), /is not named as rpm\/build/);
});
