/**
 * This agent's side of a cut that all members of a group take together: see GroupAsk in proto/replicator.proto for the
 * steps, and master/groupcuts.ts for the other side.
 *
 * Guarantees: a member stands still only between `freeze` and its own thaw, and never longer than maxFreezeMs, whatever
 * becomes of the master (the guard's limit). A point is committed only when the master has said so, after every member's
 * freeze held. Whatever goes wrong is a NoConsistentCut with the reason, for all members.
 */
import { messageOf } from '../proto/errors.ts';
import type { GroupAnswer, GroupAsk } from '../proto/wire.ts';
import { CutRefused } from './refusal.ts';
import type { Hold } from './source.ts';

/** While others are waited for, what changes meanwhile is brought so often. */
const againMs = 500;

/** The line to the master, in the order of the call's messages. */
export interface GroupLine {
  answer(answer: GroupAnswer): Promise<void>;
  /** What is asked next; undefined when `late` comes first. @throws what ended the call */
  asked(late?: Promise<unknown>): Promise<GroupAsk | undefined>;
}

export class GroupCut implements Hold {
  readonly cut: string;
  readonly #line: GroupLine;
  #done: 'gathered' | 'prepared' | 'frozen' = 'gathered';
  /** Why there is no common cut; nothing is answered to what is said of it from then on. */
  #over: string | undefined;
  #frozen: Promise<string | undefined> | undefined;

  private constructor(line: GroupLine, cut: string) {
    this.#line = line;
    this.cut = cut;
  }

  /**
   * Waits for the other members. `again` brings what has changed meanwhile. Undefined: this volume is to cut by itself, as
   * not all have a first point yet. @throws NoConsistentCut
   */
  static async gather(
    line: GroupLine,
    sleep: (ms: number) => Promise<void>,
    again: () => Promise<void>,
  ): Promise<GroupCut | undefined> {
    await line.answer({ cut: '', step: 'ready', message: '' });
    for (;;) {
      const ask = await line.asked(sleep(againMs));
      if (!ask) await again();
      else if (ask.step === 'alone') return undefined;
      else if (ask.step === 'abandon') throw new CutRefused('group', ask.message);
      else if (ask.step === 'prepare') return new GroupCut(line, ask.cut);
    }
  }

  async prepared(): Promise<void> {
    if (this.#over !== undefined) throw new CutRefused('group', this.#over);
    // Another way of the same cut.
    if (this.#done === 'prepared') return;
    if (this.#done === 'frozen') throw new CutRefused('group', "the group's moment has passed");
    await this.#say('prepared');
    await this.#expect('freeze');
    this.#done = 'prepared';
  }

  async frozen(): Promise<string | undefined> {
    if (this.#over !== undefined) return this.#over;
    if (this.#frozen) return "the group's moment has passed";
    this.#done = 'frozen';
    return (this.#frozen = this.#stand());
  }

  async #stand(): Promise<string | undefined> {
    try {
      await this.#say('frozen');
      await this.#expect('thaw');
      return undefined;
    } catch (error) {
      return messageOf(error);
    }
  }

  /** This volume was still until it was told to thaw. Answers the moment at which all were. @throws NoConsistentCut */
  async held(): Promise<number> {
    if (this.#done !== 'frozen') throw new CutRefused('group', 'this way to a cut is none for a group');
    await this.#say('held');
    return (await this.#expect('commit')).sourceUs;
  }

  /** The others need not wait. */
  async failed(message: string): Promise<void> {
    if (this.#over !== undefined) return;
    this.#over = message;
    await this.#line.answer({ cut: this.cut, step: 'failed', message: message.slice(0, 4000) });
    // What the master says to that is not for the next cut to hear.
    await this.#frozen;
  }

  async #say(step: GroupAnswer['step']): Promise<void> {
    await this.#line.answer({ cut: this.cut, step, message: '' });
  }

  async #expect(step: GroupAsk['step']): Promise<GroupAsk> {
    for (;;) {
      const ask = await this.#line.asked();
      if (ask?.cut !== this.cut) continue;
      if (ask.step === step) return ask;
      if (ask.step !== 'abandon') continue;
      this.#over = ask.message;
      throw new CutRefused('group', ask.message);
    }
  }
}
