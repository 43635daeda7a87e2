/** A tar archive (POSIX ustar) of small files, made in memory. */
export interface TarFile {
  /** At most 100 bytes, relative. */
  name: string;
  content: string | Uint8Array;
}

const block = 512;

/** Files of mode 0600 of nobody in particular. @throws RangeError when a name is too long */
export function tar(files: TarFile[], modified: Date): Buffer {
  const seconds = Math.floor(modified.getTime() / 1000);
  const parts = files.flatMap(({ name, content }) => {
    const bytes = Buffer.from(content);
    return [header(name, bytes.length, seconds), bytes, Buffer.alloc((block - (bytes.length % block)) % block)];
  });
  return Buffer.concat([...parts, Buffer.alloc(2 * block)]);
}

function header(name: string, size: number, seconds: number): Buffer {
  if (Buffer.byteLength(name) > 100) throw new RangeError(`${name} is longer than 100 bytes`);
  const head = Buffer.alloc(block);
  const octal = (value: number, at: number, width: number): void =>
    void head.write(`${value.toString(8).padStart(width - 1, '0')}\0`, at, 'latin1');
  head.write(name, 0);
  octal(0o600, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(size, 124, 12);
  octal(seconds, 136, 12);
  head.write('        0', 148, 'latin1'); // the sum counts as blanks; then the type: a file
  head.write('ustar\x0000', 257, 'latin1');
  octal(
    head.reduce((sum, byte) => sum + byte, 0),
    148,
    7,
  );
  return head;
}
