/**
 * replicator-receiver: keeps replicas on one volume for a master that dials in; in a cluster, the pod beside a claim.
 *
 * Exit status 0 after SIGTERM or SIGINT, 1 when it cannot start (the reason is on standard error), 2 for a wrong command line.
 */
import { realpath } from 'node:fs/promises';
import { optional, parseArguments, required, withDefault } from '../../proto/cli.ts';
import { asReplicationError, messageOf } from '../../proto/errors.ts';
import { holdData } from '../../proto/hold.ts';
import { logLevels, openLog } from '../../proto/log.ts';
import { systemEffects } from '../../proto/system.ts';
import { parseChoice, parseFolder, parseHostPort, parseText } from '../../proto/value.ts';
import { openFiller } from './filler.ts';
import { openReceiver } from './receiver.ts';
import { listen } from './server.ts';

const { options } = parseArguments(
  {
    name: 'replicator-receiver',
    summary: 'Keeps replicas on one volume for a replicator master that dials in.',
    flags: {
      volume: optional('DIR', 'where the replicas lie', parseFolder),
      fill: optional(
        'PATH',
        'instead: a blank volume, a device or a folder, that is filled with a recovery point',
        parseText,
      ),
      work: optional('DIR', 'with --fill: where what is needed meanwhile lies', parseFolder),
      listen: required('HOST:PORT', 'where the master dials', parseHostPort),
      cert: required('FILE', 'certificate of this receiver, by the CA of the master', parseText),
      key: required('FILE', 'its key', parseText),
      ca: required('FILE', "the master's ca.pem", parseText),
      'log-level': withDefault('LEVEL', 'info', logLevels.join(', '), parseChoice(...logLevels)),
    },
  },
  process.argv.slice(2),
);

const { volume: replicas, fill, work } = options;
if (fill === undefined ? replicas === undefined : work === undefined || replicas !== undefined) {
  process.stderr.write('replicator-receiver: give --volume, or --fill with --work. --help tells more.\n');
  process.exit(2);
}
const log = openLog('replicator-receiver', options['log-level']);
const stopping = Promise.withResolvers<void>();
for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stopping.resolve());

try {
  const volume = await realpath(fill ?? replicas ?? '');
  holdData(fill === undefined ? volume : (work ?? ''));
  const calls =
    fill === undefined ? openReceiver(volume, systemEffects) : openFiller(volume, work ?? '', systemEffects);
  const files = { key: options.key, certificate: options.cert, ca: options.ca };
  const server = await listen(calls, options.listen, files, (error) => log.warn(messageOf(error)));
  log.info({ volume, port: server.port }, 'ready');
  await stopping.promise;
  await server.close();
  log.info('stopped');
} catch (error) {
  log.fatal(asReplicationError(error).message);
  process.stderr.write(`replicator-receiver: ${messageOf(error)}\n`);
  process.exit(1);
}
