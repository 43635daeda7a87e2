import t from 'tap';
import {
  helpText,
  nearest,
  optional,
  readArguments,
  repeated,
  required,
  toggle,
  UsageError,
  withDefault,
} from '../../../proto/cli.ts';
import {
  parseChoice,
  parseDuration,
  parseHostPort,
  parsePeer,
  parseName,
  parseSize,
  parseText,
  formatHostPort,
} from '../../../proto/value.ts';

const program = {
  name: 'copier',
  summary: 'Copies.',
  flags: {
    name: required('NODE', 'name of this node', parseName),
    http: withDefault('HOST:PORT', '127.0.0.1:8080', 'address', parseHostPort),
    allow: repeated('PATH', 'may be read', parseText),
    output: { ...optional('FORM', 'form', parseChoice('json', 'yaml')), short: 'o' },
    force: toggle('do it'),
  },
  operands: 'FROM [TO]',
  minOperands: 1,
  maxOperands: 2,
};
const read = (...argv: string[]) => {
  const result = readArguments(program, argv);
  if ('wants' in result) throw new Error(`wants ${result.wants}`);
  return result;
};

t.test('flags are read in any order, with defaults, lists and operands', async (t) => {
  const { options, operands } = read('a', '--allow', '/x', '--name=node-a', 'b', '--allow=/y', '-o', 'json');
  t.strictSame(operands, ['a', 'b']);
  t.strictSame(options, {
    name: 'node-a',
    http: { host: '127.0.0.1', port: 8080 },
    allow: ['/x', '/y'],
    output: 'json',
    force: false,
  });
  t.strictSame(read('a', '--name', 'n', '--', '--force').operands, ['a', '--force'], 'after -- nothing is a flag');
});

const wrong: [string, string[], RegExp, RegExp][] = [
  ['an unknown flag', ['a', '--name', 'n', '--forse'], /--forse/, /--force/],
  ['a flag without its value', ['a', '--name'], /--name has no value/, /--name NODE/],
  ['a flag that would swallow the next', ['a', '--name', '--force'], /--name has no value/, /--name NODE/],
  ['a value that does not parse', ['a', '--name', 'N_1'], /--name N_1: is not a name/, /--name NODE/],
  ['a choice that is none', ['a', '--name', 'n', '--output', 'xml'], /--output xml: is none of json, yaml/, /FORM/],
  ['a needed flag left out', ['a'], /--name is missing/, /name of this node/],
  ['a flag given twice', ['a', '--name', 'n', '--name', 'm'], /2 times/, /once/],
  ['a switch with a value', ['a', '--name', 'n', '--force=yes'], /takes no value/, /--force alone/],
  ['an operand left out', ['--name', 'n'], /FROM is missing/, /copier FROM \[TO\]/],
  ['an operand too many', ['a', 'b', 'c', '--name', 'n'], /"c"/, /copier FROM \[TO\]/],
];
for (const [what, argv, message, cure] of wrong) {
  t.test(`${what} is a usage error that names it and the cure`, async (t) => {
    try {
      read(...argv);
      t.fail('was accepted');
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      t.match(error.message, message);
      t.match(error.cure, cure);
    }
  });
}

t.test('help is to be had for a line that is wrong, and lists every flag with its default', async (t) => {
  t.strictSame(readArguments(program, ['--nonsense', '-h']), { wants: 'help' });
  t.strictSame(readArguments(program, ['--version']), { wants: 'version' });
  const text = helpText(program);
  for (const word of [
    '--name NODE',
    '--http HOST:PORT',
    'default 127.0.0.1:8080',
    '-o, --output',
    'FROM [TO]',
    '-h, --help',
  ])
    t.ok(text.includes(word), word);
});

t.test('a typing mistake finds its word, nonsense finds none', async (t) => {
  t.equal(nearest('replicatoins', ['agents', 'replications']), 'replications');
  t.equal(nearest('xyz', ['agents', 'replications']), undefined);
});

t.test('addresses', async (t) => {
  t.strictSame(parseHostPort('[::1]:0'), { host: '::1', port: 0 });
  t.strictSame(parseHostPort('master.example:8443'), { host: 'master.example', port: 8443 });
  t.equal(formatHostPort({ host: '::1', port: 1 }), '[::1]:1');
  for (const bad of ['8080', ':8080', 'host', 'host:65536', '::1:80', 'a b:1', 'http://x:1', 'host:-1'])
    t.throws(() => parseHostPort(bad), bad);
  t.throws(() => parsePeer('host:0'), /dialled/);
});

t.test('durations need a unit, sizes may have one, both refuse the rest', async (t) => {
  t.strictSame(['500ms', '5s', '2m', '1.5h', '7d', '0s'].map(parseDuration), [0.5, 5, 120, 5400, 604800, 0]);
  for (const bad of ['5', 's', '-1s', '5 s', '5sec', '']) t.throws(() => parseDuration(bad), /such as/, bad);
  t.strictSame(['0', '4096', '64KiB', '1.5MiB', '10GB', '10Gi', '1TiB'].map(parseSize), [
    0,
    4096,
    65536,
    1572864,
    1e10,
    10737418240,
    2 ** 40,
  ]);
  for (const bad of ['', '-1', '1XB', 'GiB', '99999999TiB']) t.throws(() => parseSize(bad), /such as/, bad);
});

t.test('names are RFC 1123 labels of at most 63', async (t) => {
  t.equal(parseName('a'.repeat(63)), 'a'.repeat(63));
  for (const bad of ['', '-a', 'a-', 'A', 'a.b', 'a'.repeat(64), 'ü'])
    t.throws(() => parseName(bad), /is not a name/, bad);
});
