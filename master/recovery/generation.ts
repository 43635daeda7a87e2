/** Fencing generations: decimal numbers as text, each above all before it. */
export function nextGeneration(generation: string): string {
  return String(BigInt(generation) + 1n);
}
