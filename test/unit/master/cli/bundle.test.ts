import t from 'tap';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { redact, redactLog, redactText } from '../../../../master/cli/redact.ts';
import { tar } from '../../../../master/cli/tar.ts';

t.test('what may be secret is taken out, the rest stays', async (t) => {
  const given = {
    metadata: { name: 'db', annotations: { note: 's3cret' }, labels: { app: 'shop' } },
    spec: {
      hooks: { beforeFreeze: ['/usr/bin/psql', '--password=s3cret', 's3cret'], afterThaw: [] },
      check: { argv: ['/opt/check', 's3cret'] },
      source: { path: '/srv/db.img' },
      joinToken: 's3cret',
      adminPassword: 's3cret',
      tokenIsSet: true,
    },
    status: {
      message: 'Authorization: Bearer s3cret-s3cret failed',
      url: 'https://u:s3cret@host/x',
      size: 7,
      none: null,
    },
  };
  const text = JSON.stringify(redact(given));
  t.notMatch(text, 's3cret');
  t.match(redact(given), {
    metadata: { name: 'db', annotations: { note: '[redacted]' }, labels: { app: 'shop' } },
    spec: {
      hooks: { beforeFreeze: ['/usr/bin/psql', '[argument]', '[argument]'], afterThaw: [] },
      check: { argv: ['/opt/check', '[argument]'] },
      source: { path: '/srv/db.img' },
      tokenIsSet: true,
    },
    status: { url: 'https://u:[redacted]@host/x', size: 7, none: null },
  });
  const key = '-----BEGIN OPENSSH PRIVATE KEY-----\ns3cret\n-----END OPENSSH PRIVATE KEY-----';
  const line = { level: 'info', argv: ['/bin/psql', 's3cret'], joinToken: 's3cret', msg: 'a "quoted" word' };
  const log = redactLog(`2026-11-20 host agent[7]: ${JSON.stringify(line)}\n{"half\npassword=s3cret\n`);
  t.notMatch(log, 's3cret');
  t.match(log, '"msg":"a \\"quoted\\" word"}\n{"half\npassword=[redacted]\n');
  for (const secret of [key, `${key.slice(0, 45)}`, 'rpl_s3crets3cret', 'password=s3cret', '"token": "s3cret"'])
    t.notMatch(redactText(`before ${secret} after`), 's3cret', secret);
});

t.test('tar reads the archive', { skip: spawnSync('tar', ['--version']).status !== 0 && 'needs tar' }, async (t) => {
  const dir = t.testdir({});
  const big = 'x'.repeat(1025);
  const files = [
    { name: 'a.json', content: '{}\n' },
    { name: 'logs/empty', content: '' },
    { name: 'logs/big', content: big },
  ];
  writeFileSync(join(dir, 'a.tar'), tar(files, new Date('2026-11-20T09:00:00Z')));
  const listed = spawnSync('tar', ['-tvf', join(dir, 'a.tar')], { encoding: 'utf8', env: { TZ: 'UTC' } });
  t.equal(listed.status, 0, listed.stderr);
  t.match(listed.stdout, /-rw------- .* 3 2026-11-20 09:00 a\.json\n.* 0 .* logs\/empty\n.* 1025 .* logs\/big\n/);
  t.equal(spawnSync('tar', ['-xOf', join(dir, 'a.tar'), 'logs/big'], { encoding: 'utf8' }).stdout, big);
  t.throws(() => tar([{ name: 'n'.repeat(101), content: '' }], new Date()), RangeError);
});
