/** What lies between the two sides: the loopback as it is, or a long line. */
import { loopbackBytes } from './processes.ts';
import { startSlowLine, type LineOptions, type SlowLine } from './slowline.ts';

export interface Distance {
  /** The port by which the other side, which listens at this one, is reached. */
  far: (port: number) => Promise<number>;
  /** Between the sides so far, both ways. @param hops of a byte over the loopback where there is no line to count them */
  wireBytes(hops: number): number;
  close(): Promise<void>;
}

export const near: Distance = {
  far: (port) => Promise.resolve(port),
  wireBytes: loopbackBytes,
  close: () => Promise.resolve(),
};

export function distance(line: LineOptions): Distance {
  const lines: SlowLine[] = [];
  return {
    async far(port) {
      const made = await startSlowLine(port, line);
      lines.push(made);
      return made.port;
    },
    wireBytes: () => lines.reduce((sum, one) => sum + one.bytes(), 0),
    async close() {
      await Promise.all(lines.map((one) => one.close()));
    },
  };
}
