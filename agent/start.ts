/** replicator-agent: main.ts, begun with what was compiled at its last start. */
import { parseArgs } from 'node:util';
import { useCompiled } from './compilecache.ts';

// Before anything else is loaded; main.ts reads the command line in earnest and says what is wrong with it.
const { data } = parseArgs({ options: { data: { type: 'string' } }, strict: false }).values;
if (typeof data === 'string') useCompiled(data);
await import('./main.ts');
