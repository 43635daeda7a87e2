/**
 * The freeze guard: the process that freezes and thaws filesystems and control groups (standstill.ts), started by
 * agent/guard.ts, its only user.
 *
 * Guarantees: what it froze it thaws on request, when the limit passes (counted from the moment the freeze was called), and
 * when its standard input ends, which is how it learns of the agent's death, however it came. A freeze that the kernel
 * completes after its limit or after a thaw was asked is undone at once. It exits only when nothing is frozen by it.
 *
 * It writes to nothing but the pipe to the agent (a log could lie on the frozen filesystem), stands in `/`, and takes no
 * signal for an end: one that reaches the whole process group must not leave a filesystem frozen. If it is killed while
 * something is frozen, the agent starts another one that thaws; if both are killed at once, the next agent's start does.
 *
 * Freezing waits for three grace periods of the kernel's RCU, 10 to 30 ms each, with every writer standing still: for the time of
 * the call they are asked to be short (`hurry`). A node that must not have that says so with rcu_normal, which wins.
 *
 * Requests, one JSON object a line: {id, freeze: target, maxFreezeMs} | {id, thaw: id of the freeze} | {id, thawAll: []}.
 * Answers: {id, ...result} | {id, error: {code, message}}.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { messageOf, systemErrorCode } from '../proto/errors.ts';
import { openStandstill, type Standstill } from './standstill.ts';

/** What the agent reads. */
export interface GuardAnswer {
  id: number;
  error?: { code: string; message: string };
  /** freeze: how long the call took; thaw: from the call of the freeze until it was thawed. Microseconds. */
  freezeUs?: number;
  /** thaw: nothing thawed it before. */
  held?: boolean;
  /** thawAll: those that were frozen. */
  thawed?: string[];
}

/** Each has a thread of the pool (see UV_THREADPOOL_SIZE in guard.ts) while its call hangs, and needs one more to thaw. */
export const maxFreezes = 24;

interface Freeze {
  what: Standstill;
  startedNs: bigint;
  frozenUs: number;
  limit?: NodeJS.Timeout;
  frozen: boolean;
  /** It is to be thawed as soon as the call returns. */
  unwanted: boolean;
  thawing?: Promise<boolean>;
  /** The freezing call has returned, and was undone if unwanted. */
  settled: Promise<void>;
}

const freezes = new Map<number, Freeze>();
let ending = false;

function answer(message: GuardAnswer): void {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}

function microsecondsSince(startedNs: bigint): number {
  return Number((process.hrtime.bigint() - startedNs) / 1000n);
}

const expeditedPath = '/sys/kernel/rcu_expedited';
let hurrying = 0;

function expedite(value: '0' | '1'): boolean {
  try {
    if (readFileSync(expeditedPath, 'utf8').trim() === value) return false;
    writeFileSync(expeditedPath, value);
    return true;
  } catch {
    return false; // not this kernel, or not for us: the freeze takes longer
  }
}

let isOurs = false;

/** Documentation/RCU: expedited grace periods, until the answer is called. Somebody else's setting stays. */
function hurry(): () => void {
  if (hurrying++ === 0) isOurs = expedite('1');
  let isOver = false;
  return () => {
    if (isOver) return;
    isOver = true;
    if (--hurrying > 0 || !isOurs) return;
    isOurs = false;
    expedite('0');
  };
}

async function freeze(id: number, target: string, maxFreezeMs: number): Promise<void> {
  if (freezes.size >= maxFreezes) throw new Error(`more than ${maxFreezes} frozen at once`);
  const what = await openStandstill(target);
  const { promise: settled, resolve: settle } = Promise.withResolvers<void>();
  const one: Freeze = { what, startedNs: 0n, frozenUs: 0, frozen: false, unwanted: ending, settled };
  freezes.set(id, one);
  try {
    await what.prepare();
    if (one.unwanted) throw new Error('no longer wanted');
    const calm = hurry();
    one.startedNs = process.hrtime.bigint();
    one.limit = setTimeout(() => {
      calm();
      thaw(one).catch(ignore);
    }, maxFreezeMs);
    await what.freeze(() => !one.unwanted).finally(calm);
    const freezeUs = microsecondsSince(one.startedNs);
    one.frozen = true;
    if (!one.unwanted) return answer({ id, freezeUs });
    await thaw(one);
    throw new Error(`freezing took ${Math.round(freezeUs / 1000)} ms, longer than allowed`);
  } catch (error) {
    await end(id, one);
    throw error;
  } finally {
    settle();
  }
}

/** True when it was still frozen. Safe to call in any state and twice; the second one waits and answers false. */
async function thaw(one: Freeze): Promise<boolean> {
  clearTimeout(one.limit);
  one.unwanted = true;
  if (!one.frozen) return false;
  if (one.thawing) {
    await one.thawing;
    return false;
  }
  one.thawing = thawUntilDone(one.what);
  const held = await one.thawing;
  one.frozenUs = microsecondsSince(one.startedNs);
  return held;
}

/** Tried again for ever: giving up leaves a node without its disk. */
async function thawUntilDone(what: Standstill): Promise<boolean> {
  for (;;) {
    try {
      return await what.thaw();
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

async function end(id: number, one: Freeze): Promise<void> {
  clearTimeout(one.limit);
  freezes.delete(id);
  await one.what.close();
}

async function thawOnRequest(id: number, freezeId: number): Promise<void> {
  const one = freezes.get(freezeId);
  if (!one) return answer({ id, held: false, freezeUs: 0 });
  const held = await thaw(one);
  await one.settled;
  if (freezes.has(freezeId)) await end(freezeId, one);
  answer({ id, held, freezeUs: one.frozenUs });
}

async function thawAll(id: number, targets: string[]): Promise<void> {
  const thawed = await Promise.all(
    targets.map(async (target) => {
      const what = await openStandstill(target).catch(() => undefined);
      const wasFrozen = what !== undefined && (await thawUntilDone(what));
      await what?.close();
      return wasFrozen ? [target] : [];
    }),
  );
  answer({ id, thawed: thawed.flat() });
}

interface Request {
  id: number;
  freeze?: string;
  maxFreezeMs?: number;
  thaw?: number;
  thawAll?: string[];
}

async function handle(request: Request): Promise<void> {
  const { id } = request;
  try {
    if (request.freeze !== undefined) await freeze(id, request.freeze, request.maxFreezeMs ?? 0);
    else if (request.thaw !== undefined) await thawOnRequest(id, request.thaw);
    else if (request.thawAll !== undefined) await thawAll(id, request.thawAll);
  } catch (error) {
    answer({ id, error: { code: systemErrorCode(error) ?? '', message: messageOf(error) } });
  }
}

function ignore(): void {
  // The answer to the freeze or thaw says it.
}

/** Thaws all, also what a call that is still under way freezes yet, and exits. */
async function finish(): Promise<void> {
  ending = true;
  await Promise.all([...freezes.values()].map((one) => thaw(one).then(() => one.settled)));
  process.exit(0);
}

process.chdir('/');
// A guard before us was killed in the middle of a freeze.
if (process.env['RCU_CALM'] === '1') expedite('0');
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGPIPE'] as const) process.on(signal, ignore);
process.stdout.on('error', ignore); // the agent is gone; the end of standard input follows
createInterface({ input: process.stdin })
  .on('line', (line) => {
    handle(JSON.parse(line) as Request).catch(ignore);
  })
  .on('close', () => {
    finish().catch(ignore);
  });
