/** What the work on a tree (treework.ts) is about: the changes, the tree as it is to be, and the names in its staging folder. */
import { nodeTypes, type Node } from '../../proto/wire.ts';
import type { TreeChange, Which } from './treelog.ts';
import { isSameObject } from './treenode.ts';
import type { Handle } from './treepath.ts';

export interface Work {
  root: Handle;
  staging: Handle;
  /** All, or at least those. */
  changes(which?: Which): Iterable<TreeChange>;
  change(slot: number): TreeChange | undefined;
  /** As the tree is to be. */
  node(slot: number): Node | undefined;
  slotOf(parent: number, name: Buffer): number | undefined;
  /** Puts the content of a new file to `n<slot>` if it is not there yet. */
  content?: (node: Node) => Promise<void>;
  /** Gets what was given more permissions for its owner; `attach` gives them back. */
  loosened: Set<number>;
  withhold(slot: number, isWithheld: boolean): void;
  /** Called before every step; throwing stops the work there. */
  step(): void;
}

export const staged = (slot: number): Buffer => Buffer.from(String(slot));
export const stagedContent = (slot: number): Buffer => Buffer.from(`n${slot}`);
export const stagedTrash = (slot: number): Buffer => Buffer.from(`x${slot}`);

/** The object that was in the slot is not the one that will be. */
export function isReplaced({ before, after, fresh, damaged }: TreeChange): boolean {
  if (!before || !after || fresh || !isSameObject(before, after)) return true;
  return damaged && after.type !== nodeTypes.file && after.type !== nodeTypes.directory;
}
