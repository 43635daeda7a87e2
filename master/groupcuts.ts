/**
 * Cuts of groups: the members' volumes, on whatever agents, all stand still at one moment, and that moment is a point of
 * each of them or of none. The steps are those of GroupAsk in proto/replicator.proto; agent/groupcut.ts is the other side.
 *
 * Guarantees: `thaw` goes out only after every member has said that it stands still, and the moment is this master's clock
 * between the two, so it needs no mapping of clocks. `commit` goes out only after every member has said that its freeze
 * held until it was told to thaw. A member that fails, or whose call ends before that, or that takes too long, makes
 * it no point for all, and all are told why. A member that commits without having been told so is refused.
 *
 * What a crash leaves after `commit`: some members may have the point and others not. It carries the cut's name, and is listed
 * as the group's only where every member has it (`groupPoints`).
 */
import type { Clock, Random } from '../proto/effects.ts';
import type { GroupAnswer, GroupAsk } from '../proto/wire.ts';
import type { Point } from './replica/horizon.ts';

/** How long members are waited for that are there and busy (a resync, a verify). */
const gatherMs = 30_000;
/** Beyond what the hooks may take. */
const prepareMs = 15_000;
/** Beyond the longest freeze: each member's own limit ends it before. */
const freezeMs = 2000;

export interface GroupMember {
  uid: string;
  name: string;
  /** It has a first point. */
  initialized: boolean;
  paused: boolean;
  maxFreezeMs: number;
  /** Of all that runs before a freeze. */
  hookSeconds: number;
}

export interface GroupSeat {
  hear(answer: GroupAnswer): void;
  /** Whether this member was told to commit just this. */
  mayCommit(cut: string, sourceUs: number): boolean;
  leave(): void;
}

export interface GroupCuts {
  /** A member's Mirror call, until it leaves. `say` must not throw. */
  join(group: string, uid: string, say: (ask: GroupAsk) => void): GroupSeat;
}

interface Seat {
  say(ask: GroupAsk): void;
  told: { cut: string; sourceUs: number } | undefined;
}

/** What all must have answered, and what they are told then. */
const steps = {
  ready: { next: 'prepare', then: 'prepared' },
  prepared: { next: 'freeze', then: 'frozen' },
  frozen: { next: 'thaw', then: 'held' },
  held: { next: 'commit', then: undefined },
} as const;
type Awaited = keyof typeof steps;

interface Attempt {
  cut: string;
  awaits: Awaited;
  answered: Set<string>;
  /** Of the frozen moment. */
  sourceUs: number;
  /** Ends the time limit of the present step. */
  limit: AbortController;
}

export function groupCuts(options: {
  clock: Clock;
  random: Random;
  members: (group: string) => GroupMember[];
}): GroupCuts {
  const groups = new Map<string, Group>();
  return {
    join(name, uid, say) {
      const group = groups.get(name) ?? new Group(name, options);
      groups.set(name, group);
      const seat: Seat = { say, told: undefined };
      group.enter(uid, seat);
      return {
        hear: (answer) => group.hear(uid, seat, answer),
        mayCommit: (cut, sourceUs) => seat.told?.cut === cut && seat.told.sourceUs === sourceUs,
        leave() {
          group.leave(uid, seat);
          if (group.isEmpty && groups.get(name) === group) groups.delete(name);
        },
      };
    },
  };
}

class Group {
  readonly #name: string;
  readonly #options: Parameters<typeof groupCuts>[0];
  readonly #seats = new Map<string, Seat>();
  #attempt: Attempt | undefined;

  constructor(name: string, options: Parameters<typeof groupCuts>[0]) {
    this.#name = name;
    this.#options = options;
  }

  get isEmpty(): boolean {
    return this.#seats.size === 0;
  }

  /** A new call of the same member takes the old one's place. */
  enter(uid: string, seat: Seat): void {
    if (this.#seats.has(uid)) this.#abandon(`${this.#nameOf(uid)} has connected anew`);
    this.#seats.set(uid, seat);
  }

  leave(uid: string, seat: Seat): void {
    if (this.#seats.get(uid) !== seat) return;
    this.#seats.delete(uid);
    this.#abandon(`the line to ${this.#nameOf(uid)} broke`);
  }

  hear(uid: string, seat: Seat, { cut, step, message }: GroupAnswer): void {
    if (this.#seats.get(uid) !== seat) return;
    if (step === 'ready') return this.#ready(uid, seat);
    const attempt = this.#attempt;
    // Of an attempt that is over.
    if (!attempt || attempt.cut !== cut) return;
    if (step === 'failed') return this.#abandon(`${this.#nameOf(uid)}: ${message}`);
    if (step === attempt.awaits) this.#answered(attempt, uid);
  }

  #ready(uid: string, seat: Seat): void {
    seat.told = undefined;
    const members = this.#options.members(this.#name);
    if (members.some(({ initialized }) => !initialized)) {
      seat.say({ cut: '', step: 'alone', sourceUs: 0, message: '' });
      return;
    }
    const absent = members.find((member) => !this.#seats.has(member.uid));
    if (absent) {
      const message = this.#why(`${absent.name} ${absent.paused ? 'is paused' : 'is not being mirrored now'}`);
      this.#abandon(message);
      seat.say({ cut: '', step: 'abandon', sourceUs: 0, message });
      return;
    }
    if (this.#attempt && this.#attempt.awaits !== 'ready') this.#abandon(`${this.#nameOf(uid)} began anew`);
    const attempt = (this.#attempt ??= this.#begin(uid, members));
    this.#answered(attempt, uid);
  }

  #begin(first: string, members: GroupMember[]): Attempt {
    const cut = this.#options.random.bytes(12).toString('hex');
    const attempt: Attempt = {
      cut,
      awaits: 'ready',
      answered: new Set(),
      sourceUs: 0,
      limit: new AbortController(),
    };
    this.#limit(attempt, gatherMs);
    for (const { uid } of members) {
      if (uid !== first) this.#seats.get(uid)?.say({ cut: '', step: 'call', sourceUs: 0, message: '' });
    }
    return attempt;
  }

  #answered(attempt: Attempt, uid: string): void {
    attempt.answered.add(uid);
    const members = this.#options.members(this.#name);
    if (!members.every((member) => attempt.answered.has(member.uid))) return;
    const { next, then } = steps[attempt.awaits];
    // All stand still: each said so, and none has been told to thaw.
    if (next === 'thaw') attempt.sourceUs = Math.round(this.#options.clock.nowMs() * 1000);
    const { cut, sourceUs } = attempt;
    attempt.limit.abort();
    if (then === undefined) this.#attempt = undefined;
    else {
      attempt.awaits = then;
      attempt.answered = new Set();
      attempt.limit = new AbortController();
      if (then === 'prepared') this.#limit(attempt, prepareMs + 1000 * most(members, ({ hookSeconds }) => hookSeconds));
      if (then === 'frozen') this.#limit(attempt, freezeMs + most(members, ({ maxFreezeMs }) => maxFreezeMs));
    }
    for (const member of members) {
      const seat = this.#seats.get(member.uid);
      if (!seat) continue;
      if (next === 'commit') seat.told = { cut, sourceUs };
      seat.say({ cut, step: next, sourceUs: next === 'commit' ? sourceUs : 0, message: '' });
    }
  }

  #limit(attempt: Attempt, ms: number): void {
    const { limit } = attempt;
    this.#options.clock.sleep(ms, limit.signal).then(
      () => {
        if (this.#attempt !== attempt || limit.signal.aborted) return;
        const late = this.#options
          .members(this.#name)
          .filter(({ uid }) => !attempt.answered.has(uid))
          .map(({ name }) => name);
        this.#abandon(`${late.join(', ')} was not ${attempt.awaits} within ${Math.round(ms / 1000)} s`);
      },
      () => undefined,
    );
  }

  #abandon(what: string): void {
    const attempt = this.#attempt;
    if (!attempt) return;
    this.#attempt = undefined;
    attempt.limit.abort();
    for (const [uid, seat] of this.#seats) {
      // While members gather only those wait that are ready.
      if (attempt.awaits === 'ready' && !attempt.answered.has(uid)) continue;
      seat.say({ cut: attempt.cut, step: 'abandon', sourceUs: 0, message: this.#why(what) });
    }
  }

  #why(what: string): string {
    const prefix = `group ${this.#name} has no common cut: `;
    return what.startsWith(prefix) ? what : `${prefix}${what}`;
  }

  #nameOf(uid: string): string {
    return this.#options.members(this.#name).find((member) => member.uid === uid)?.name ?? uid;
  }
}

function most(members: GroupMember[], of: (member: GroupMember) => number): number {
  return Math.max(0, ...members.map(of));
}

/** One moment of a group that can be recovered: a point of each member. */
export interface GroupPoint {
  cut: string;
  /** Master's clock, microseconds; the same for all. */
  sourceUs: number;
  points: { uid: string; point: Point }[];
}

/** Those that every member has, oldest first. Pure. */
export function groupPoints(members: readonly { uid: string; points: readonly Point[] }[]): GroupPoint[] {
  const [first, ...rest] = members.map(({ uid, points }) => ({
    uid,
    byCut: new Map(points.filter(({ groupCut }) => groupCut !== '').map((point) => [point.groupCut, point])),
  }));
  if (!first) return [];
  return [...first.byCut].flatMap(([cut, point]) => {
    const points = [{ uid: first.uid, point }];
    for (const { uid, byCut } of rest) {
      const other = byCut.get(cut);
      if (!other) return [];
      points.push({ uid, point: other });
    }
    return [{ cut, sourceUs: point.sourceUs, points }];
  });
}
