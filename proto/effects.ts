/**
 * What the program does to the world, as interfaces: clock, randomness, disk. Production wires the real ones
 * (proto/system.ts); the simulator (test/sim) wires its own, seeded, and breaks them on purpose.
 * Pure modules take `nowMs` as a value instead.
 */

export interface Clock {
  /** Wall clock, milliseconds since the Unix epoch, with fraction. May jump. */
  nowMs(): number;
  /** Never goes back; only differences mean something. */
  monotonicMs(): number;
  /** Rejects with the signal's reason when aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

export interface Random {
  bytes(length: number): Buffer;
}

/** A file by absolute path. Errors are Node's system errors (`code` ENOENT, ENOSPC, ...). */
export interface Disk {
  /** read: must exist. write: read and write, created when absent. */
  open(path: string, mode: 'read' | 'write'): Promise<DiskFile>;
  /** With parents; no error when it exists. */
  mkdir(path: string): Promise<void>;
  /** Names in the directory, sorted; empty when it is absent. */
  list(path: string): Promise<string[]>;
  /** Bytes, or undefined when absent. */
  size(path: string): Promise<number | undefined>;
  rename(from: string, to: string): Promise<void>;
  /** File or whole tree; no error when absent. */
  remove(path: string): Promise<void>;
  /** Makes names in the directory durable. */
  syncDirectory(path: string): Promise<void>;
  /** Copies a file, sharing its blocks where the filesystem can; holes stay holes. `to` must be absent. Durable after sync. */
  clone(
    from: string,
    to: string,
    signal?: AbortSignal,
    progress?: (bytesDone: number) => void,
  ): Promise<'reflink' | 'copy'>;
  /**
   * Keeps the kernel from changing, moving or removing a file, or lets it again. Answers false where this filesystem or
   * process cannot. Absent: never.
   */
  immutable?(path: string, on: boolean): Promise<boolean>;
  /** Bytes that a file, or a tree with all below it, holds on storage; 0 when absent. Absent: not known. */
  usage?(path: string): Promise<number>;
  /** Of the filesystem that holds the path. */
  space(path: string): Promise<{ capacityBytes: number; freeBytes: number }>;
}

export interface DiskFile {
  /** Fills the buffer from the position; fewer bytes only at the end of the file. */
  read(buffer: Uint8Array, position: number): Promise<number>;
  /** Writes all of the buffers back to back. */
  write(buffers: Uint8Array[], position: number): Promise<void>;
  /** Makes the range read as zeros, as a hole where the filesystem can; never beyond the end of the file. */
  zero(position: number, length: number): Promise<void>;
  /** Start of the next data at or after the position, or undefined when only a hole follows. */
  nextData(position: number): Promise<number | undefined>;
  /** Start of the next hole at or after the position (the file's end counts as one). */
  nextHole(position: number): Promise<number>;
  /**
   * What was written there begins to go to storage, so that a `sync` later has less to wait for. Nobody is told when it is there, or
   * that it is not. Absent: never.
   */
  startSync?(position: number, length: number): void;
  truncate(size: number): Promise<void>;
  size(): Promise<number>;
  /** Data and size durable. */
  sync(): Promise<void>;
  close(): Promise<void>;
}

export interface Effects {
  clock: Clock;
  random: Random;
  disk: Disk;
}
