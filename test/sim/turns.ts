/**
 * Turns of the event loop: at the begin of one everything has run that could, and failures that nobody heard have been told.
 * An iteration of the loop costs more than most of what happens in a turn, so immediates are asked for in advance, many for
 * one iteration: Node does all of the above between any two of them.
 */
const inAdvance = 256;
const waiting: (() => void)[] = [];
let coming = 0;

/** Resolves when everything else has run that can, those that wait for theirs since before among it. */
export function turn(): Promise<void> {
  return new Promise((resolve) => {
    waiting.push(resolve);
    if (coming >= waiting.length) return;
    while (coming < inAdvance) {
      coming++;
      setImmediate(begin);
    }
  });
}

function begin(): void {
  coming--;
  waiting.shift()?.();
}
