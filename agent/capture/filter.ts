/**
 * Which names of a tree are mirrored, by patterns in the syntax of gitignore(5), matched with case.
 *
 * `exclude`: what matches is left out, with all below it, as git leaves it out; a later `!pattern` takes back. `include`: when
 * there are any, what matches is mirrored with all below it, and of the rest only the directories that may lead to something that
 * matches. A name that is excluded is left out whatever is included. Patterns are relative to the source's root. Names that are
 * not UTF-8 are matched with U+FFFD in the place of what is not. Pure; memory does not grow with the number of names.
 */
import ignore, { type Ignore } from 'ignore';
import { ReplicationError, messageOf } from '../../proto/errors.ts';

/** The library remembers each path that it was asked for. */
const maxRemembered = 10_000;
const slash = '/';

export interface Patterns {
  include: readonly string[];
  exclude: readonly string[];
}

export class Filter {
  readonly #include: Matcher | undefined;
  readonly #exclude: Matcher | undefined;
  readonly #leads: ((directory: string[]) => boolean)[];

  /** @throws SourceRefused naming the pattern that cannot be read */
  constructor({ include, exclude }: Patterns) {
    this.#include = include.length > 0 ? new Matcher('include', include) : undefined;
    this.#exclude = exclude.length > 0 ? new Matcher('exclude', exclude) : undefined;
    this.#leads = include.map(leading);
  }

  /** Nothing is left out. */
  get isOpen(): boolean {
    return this.#include === undefined && this.#exclude === undefined;
  }

  /** @param directory names from the root to the directory that the name is in, which is wanted itself */
  wants(directory: readonly Buffer[], name: Buffer, isDirectory: boolean): boolean {
    const names = [...directory, name].map((one) => one.toString());
    const path = names.join(slash) + (isDirectory ? slash : '');
    if (this.#exclude?.matches(path)) return false;
    if (!this.#include || this.#include.matches(path)) return true;
    return isDirectory && this.#leads.some((leadsBelow) => leadsBelow(names));
  }
}

class Matcher {
  readonly #patterns: readonly string[];
  #ignore: Ignore;
  #asked = 0;

  constructor(field: keyof Patterns, patterns: readonly string[]) {
    for (const [at, pattern] of patterns.entries()) {
      try {
        if (/[\n\r\0]/.test(pattern)) throw new Error('it holds more than one line; make it one pattern for each');
        matcher([pattern]).ignores('any/path');
      } catch (error) {
        throw new ReplicationError(
          'SourceRefused',
          `source.${field}[${at}] ${JSON.stringify(pattern)} is no pattern of gitignore: ${messageOf(error)}`,
        );
      }
    }
    this.#patterns = patterns;
    this.#ignore = matcher(patterns);
  }

  matches(path: string): boolean {
    if (this.#asked++ >= maxRemembered) [this.#ignore, this.#asked] = [matcher(this.#patterns), 0];
    return this.#ignore.ignores(path);
  }
}

function matcher(patterns: readonly string[]): Ignore {
  return ignore({ ignorecase: false, allowRelativePaths: true }).add(patterns);
}

/** Can something below the directory match, which does not match itself? */
function leading(pattern: string): (directory: string[]) => boolean {
  const text = pattern.replace(/(?<!\\) +$/, '');
  if (text === '' || text.startsWith('#') || text.startsWith('!')) return () => false;
  // Without a slash but at its end it matches at any depth.
  if (!/\/./.test(text)) return () => true;
  const segments = text
    .replace(/^\//, '')
    .split(slash)
    .map((segment) => ({
      text: segment,
      globs: /[*?[\\]/.test(segment) ? new Matcher('include', [`/${segment}`]) : undefined,
    }));
  return (directory) => {
    for (const [at, name] of directory.entries()) {
      const segment = segments[at];
      if (segment === undefined || segment.text === '') return false;
      if (segment.text === '**') return true;
      if (segment.globs ? !segment.globs.matches(name) : segment.text !== name) return false;
    }
    return true;
  };
}
