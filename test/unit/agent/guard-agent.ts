/** An "agent" to be killed: freezes the given mount point, says so, and waits. */
import { startGuard } from '../../../agent/guard.ts';

const guard = startGuard();
await guard.freeze(process.argv[2] ?? '', 60_000);
process.stdout.write(`${guard.pid}\n`);
setInterval(() => undefined, 1000);
