/**
 * The modelled source volume, with everything it ever was: which content it had at which time. Content is slots of 4 KiB,
 * each filled with one number (0 = zeros), so that any bytes can be told to be, or not to be, a state of this volume.
 */
export const slotBytes = 4096;

interface Version {
  fromMs: number;
  sizeBytes: number;
  sourceId: string;
  frozen: boolean;
}

export class Volume {
  #slots: Uint32Array;
  #sizeBytes: number;
  #print: bigint;
  #sourceId = 'sim:1';
  readonly #versions: Version[];
  /** Version numbers by fingerprint of content and size. */
  readonly #byPrint = new Map<bigint, number[]>();

  constructor(sizeBytes: number, nowMs: number) {
    this.#sizeBytes = sizeBytes;
    this.#slots = new Uint32Array(Math.ceil(sizeBytes / slotBytes));
    this.#print = sizePrint(sizeBytes);
    this.#versions = [];
    this.#note(nowMs);
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get sourceId(): string {
    return this.#sourceId;
  }

  get slotCount(): number {
    return this.#slots.length;
  }

  /** Changes with every write, also one of the same content. */
  get version(): number {
    return this.#versions.length - 1;
  }

  slot(index: number): number {
    return this.#slots[index] ?? 0;
  }

  /** A copy of this instant's content. */
  slots(): Uint32Array {
    return this.#slots.slice();
  }

  write(first: number, values: Iterable<number>, nowMs: number): void {
    let at = first;
    for (let value of values) {
      if (at >= this.#slots.length) break;
      value = this.#fitting(at, value);
      this.#print ^= slotPrint(at, this.slot(at)) ^ slotPrint(at, value);
      this.#slots[at++] = value;
    }
    this.#note(nowMs);
  }

  /** The last slot, which was short or becomes so, gets `value`. */
  resize(sizeBytes: number, value: number, nowMs: number): void {
    const slots = new Uint32Array(Math.ceil(sizeBytes / slotBytes));
    slots.set(this.#slots.subarray(0, slots.length));
    const border = Math.min(slots.length, this.#slots.length) - 1;
    if (border >= 0) slots[border] = value;
    this.#sizeBytes = sizeBytes;
    this.#setAll(slots);
    this.#note(nowMs);
  }

  /** Another volume stands in its place. */
  replace(sourceId: string, slots: Uint32Array, nowMs: number): void {
    this.#sourceId = sourceId;
    this.#setAll(slots);
    this.#note(nowMs);
  }

  #setAll(slots: Uint32Array): void {
    const last = slots.length - 1;
    if (last >= 0) slots[last] = this.#fitting(last, slots[last] ?? 0);
    this.#slots = slots;
    this.#print = printOf(slots, this.#sizeBytes);
  }

  /** A last slot of less than four bytes holds no more of the number than that. */
  #fitting(index: number, value: number): number {
    const length = this.#sizeBytes - index * slotBytes;
    return length >= 4 ? value : value & (2 ** (8 * length) - 1);
  }

  noteFrozen(): void {
    const present = this.#versions.at(-1);
    if (present) present.frozen = true;
  }

  #note(nowMs: number): void {
    const known = this.#byPrint.get(this.#print) ?? [];
    known.push(this.#versions.length);
    this.#byPrint.set(this.#print, known);
    this.#versions.push({ fromMs: nowMs, sizeBytes: this.#sizeBytes, sourceId: this.#sourceId, frozen: false });
  }

  /** Why these bytes are not what the volume was at one instant between the two (a frozen one if so asked), or undefined. */
  whyNotAt(
    bytes: Buffer,
    range: { fromMs: number; toMs: number; sourceId: string; frozen: boolean },
  ): string | undefined {
    const slots = new Uint32Array(Math.ceil(bytes.length / slotBytes));
    for (let i = 0; i < slots.length; i++) {
      const part = bytes.subarray(i * slotBytes, (i + 1) * slotBytes);
      const value = valueOf(part);
      if (value === undefined) return `bytes at ${i * slotBytes} were never written like this`;
      slots[i] = value;
    }
    const versions = this.#byPrint.get(printOf(slots, bytes.length)) ?? [];
    if (versions.length === 0) return 'no instant had this content';
    const during = versions.filter((number) => {
      const endMs = this.#versions[number + 1]?.fromMs ?? Infinity;
      return endMs >= range.fromMs && (this.#versions[number]?.fromMs ?? 0) <= range.toMs;
    });
    if (during.length === 0) {
      const times = versions.map((number) => Math.round(this.#versions[number]?.fromMs ?? 0)).slice(0, 5);
      return `the content is that of ${times.join(', ')} ms, not of ${range.fromMs} to ${range.toMs} ms`;
    }
    const right = during.filter((number) => this.#versions[number]?.sourceId === range.sourceId);
    if (right.length === 0) return `the content is that of another source than ${range.sourceId}`;
    if (range.frozen && !right.some((number) => this.#versions[number]?.frozen)) return 'it was not frozen then';
    return undefined;
  }

  /** Why these bytes are not what the volume is now. */
  whyNotNow(bytes: Buffer): string | undefined {
    return this.whyNotAt(bytes, {
      fromMs: this.#versions.at(-1)?.fromMs ?? 0,
      toMs: Infinity,
      sourceId: this.#sourceId,
      frozen: false,
    });
  }
}

/** Fills the buffer with what is at the position; answers how many bytes there were. */
export function readSlots(slots: Uint32Array, sizeBytes: number, buffer: Buffer, position: number): number {
  const length = Math.max(0, Math.min(buffer.length, sizeBytes - position));
  const four = Buffer.alloc(4);
  for (let done = 0; done < length;) {
    const index = Math.floor((position + done) / slotBytes);
    const part = Math.min(slotBytes - ((position + done) % slotBytes), length - done);
    four.writeUInt32LE(slots[index] ?? 0);
    buffer.fill(four, done, done + part);
    done += part;
  }
  return length;
}

function valueOf(part: Buffer): number | undefined {
  const four = Buffer.alloc(4);
  part.copy(four);
  // A last slot shorter than the number: its bytes must be those of its beginning, which is all that is known of it.
  const whole = part.length < 4 ? four.readUInt32LE() : part.readUInt32LE();
  const expected = Buffer.alloc(part.length);
  four.writeUInt32LE(whole);
  expected.fill(four);
  return expected.equals(part) ? whole : undefined;
}

function printOf(slots: Uint32Array, sizeBytes: number): bigint {
  let print = sizePrint(sizeBytes);
  for (let i = 0; i < slots.length; i++) print ^= slotPrint(i, slots[i] ?? 0);
  return print;
}

function sizePrint(sizeBytes: number): bigint {
  return slotPrint(-1, sizeBytes + 1);
}

/** 64 bits that make it unlikely that two states have one print; 0 for zeros, so that blank volumes are cheap. */
function slotPrint(index: number, value: number): bigint {
  if (value === 0) return 0n;
  const high = mix(Math.imul(index + 1, 0x9e3779b1) ^ value);
  const low = mix(Math.imul(value, 0x85ebca77) ^ (index + 0x7f4a7c15) ^ high);
  return (BigInt(high) << 32n) | BigInt(low);
}

function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
  return (x ^ (x >>> 15)) >>> 0;
}
