/**
 * The modelled source volume, with everything it ever was: which content it had at which time. Content is slots of 4 KiB,
 * each filled with one number (0 = zeros), so that any bytes can be told to be, or not to be, a state of this volume.
 */
export const slotBytes = 4096;
/** Looked at together: those of a granule. */
const runSlots = 16;

interface Version {
  fromMs: number;
  sizeBytes: number;
  sourceId: string;
  frozen: boolean;
}

export class Volume {
  #slots: Uint32Array;
  #sizeBytes: number;
  readonly #print: Print = { high: 0, low: 0 };
  #sourceId = 'sim:1';
  readonly #versions: Version[];
  /** Version numbers by fingerprint of content and size. */
  readonly #byPrint = new Map<number, number[]>();

  constructor(sizeBytes: number, nowMs: number) {
    this.#sizeBytes = sizeBytes;
    this.#slots = new Uint32Array(Math.ceil(sizeBytes / slotBytes));
    togglePrint(this.#print, sizeSlot, sizeBytes + 1);
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

  /** As it is at each instant. */
  get present(): Readonly<Uint32Array> {
    return this.#slots;
  }

  write(first: number, values: Uint32Array, nowMs: number): void {
    const count = Math.min(values.length, this.#slots.length - first);
    for (let i = 0; i < count; i++) {
      const value = this.#fitting(first + i, values[i] ?? 0);
      togglePrint(this.#print, first + i, this.slot(first + i));
      togglePrint(this.#print, first + i, value);
      this.#slots[first + i] = value;
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
    Object.assign(this.#print, printOf(slots, this.#sizeBytes));
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
    const print = printKey(this.#print);
    const known = this.#byPrint.get(print) ?? [];
    known.push(this.#versions.length);
    this.#byPrint.set(print, known);
    this.#versions.push({ fromMs: nowMs, sizeBytes: this.#sizeBytes, sourceId: this.#sourceId, frozen: false });
  }

  /** Why these bytes are not what the volume was at one instant between the two (a frozen one if so asked), or undefined. */
  whyNotAt(
    bytes: Buffer,
    range: { fromMs: number; toMs: number; sourceId: string; frozen: boolean },
  ): string | undefined {
    const slots = new Uint32Array(Math.ceil(bytes.length / slotBytes));
    for (let i = 0; i < slots.length;) {
      // Mostly many slots have one number. The last one may be shorter than that, and has another number then.
      const isWhole = (i + runSlots) * slotBytes <= bytes.length;
      const count = isWhole && valueOf(bytes, i, runSlots) !== undefined ? runSlots : 1;
      const value = valueOf(bytes, i, count);
      if (value === undefined) return `bytes at ${i * slotBytes} were never written like this`;
      slots.fill(value, i, i + count);
      i += count;
    }
    const versions = this.#byPrint.get(printKey(printOf(slots, bytes.length))) ?? [];
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
export function readSlots(slots: Readonly<Uint32Array>, sizeBytes: number, buffer: Buffer, position: number): number {
  const length = Math.max(0, Math.min(buffer.length, sizeBytes - position));
  for (let done = 0; done < length;) {
    let index = Math.floor((position + done) / slotBytes);
    const value = slots[index] ?? 0;
    while (slots[index] === value) index++;
    const end = Math.min(length, Math.max(index, Math.floor((position + done) / slotBytes) + 1) * slotBytes - position);
    fill(buffer, value, done, end);
    done = end;
  }
  return length;
}

function fill(buffer: Buffer, value: number, from: number, to: number): void {
  const words = Math.floor((to - from) / 4);
  const isAligned = (buffer.byteOffset + from) % 4 === 0;
  if (isAligned) new Uint32Array(buffer.buffer, buffer.byteOffset + from, words).fill(value);
  const filled = isAligned ? from + 4 * words : from;
  if (filled < to) buffer.fill(bytesOf(value), filled, to);
}

function bytesOf(value: number): Buffer {
  const four = Buffer.alloc(4);
  four.writeUInt32LE(value);
  return four;
}

/** The one number that all of these slots have. Of one that is shorter than a number its bytes are the number's beginning. */
function valueOf(bytes: Buffer, first: number, count: number): number | undefined {
  const part = bytes.subarray(first * slotBytes, (first + count) * slotBytes);
  if (part.length <= 4) {
    const four = Buffer.alloc(4);
    part.copy(four);
    return four.readUInt32LE();
  }
  // Each number is the one before.
  const isOne = part.compare(part, 0, part.length - 4, 4) === 0;
  return isOne ? part.readUInt32LE() : undefined;
}

/** 64 bits that make it unlikely that two states have one print; 0 for zeros, so that blank volumes are cheap. */
interface Print {
  high: number;
  low: number;
}

/** Stands for the size. */
const sizeSlot = -1;

function printOf(slots: Uint32Array, sizeBytes: number): Print {
  const print = { high: 0, low: 0 };
  togglePrint(print, sizeSlot, sizeBytes + 1);
  for (let i = 0; i < slots.length; i++) togglePrint(print, i, slots[i] ?? 0);
  return print;
}

/** Adds that the slot has this value, or takes that away. */
function togglePrint(print: Print, index: number, value: number): void {
  if (value === 0) return;
  const high = mix(Math.imul(index + 1, 0x9e3779b1) ^ value);
  print.high ^= high;
  print.low ^= mix(Math.imul(value, 0x85ebca77) ^ (index + 0x7f4a7c15) ^ high);
}

/** As many of the bits as a number holds exactly. */
function printKey({ high, low }: Print): number {
  return (high >>> 0) * 2 ** 21 + (low >>> 11);
}

function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
  return (x ^ (x >>> 15)) >>> 0;
}
