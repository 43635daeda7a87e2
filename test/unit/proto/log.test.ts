import t from 'tap';
import { openLog } from '../../../proto/log.ts';

function lines(journald: boolean): { written: string[]; log: ReturnType<typeof openLog> } {
  const written: string[] = [];
  return { written, log: openLog('program', 'debug', { write: (line) => void written.push(line) }, journald) };
}

t.test('one JSON line each, with the level as a word and RFC 3339 time', async (t) => {
  const { written, log } = lines(false);
  log.warn({ replication: 'db', call: 'ab12' }, 'late');
  log.trace('not asked for');
  t.equal(written.length, 1);
  t.match(JSON.parse(written[0] ?? ''), {
    level: 'warn',
    time: /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/,
    program: 'program',
    replication: 'db',
    call: 'ab12',
    msg: 'late',
  });
});

t.test('under journald each line begins with its priority', async (t) => {
  const { written, log } = lines(true);
  log.debug('d');
  log.info('i');
  log.warn('w');
  log.error('e');
  log.fatal('f');
  t.strictSame(
    written.map((line) => line.slice(0, 4)),
    ['<7>{', '<6>{', '<4>{', '<3>{', '<2>{'],
  );
});

t.test('fields named like secrets are not written', async (t) => {
  const { written, log } = lines(false);
  log.info({ token: 's3cret', body: { privateKey: 's3cret', deep: { password: 's3cret' } }, name: 'kept' }, 'x');
  t.notMatch(written[0], 's3cret');
  t.match(written[0], /kept/);
});
