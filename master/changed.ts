/** Wakes everyone who waits for "something was written". Nobody is told what: they read it from where they are. */
export interface Changed {
  tell(): void;
  /** Resolves at the next `tell`, or when the signal aborts. */
  next(signal: AbortSignal): Promise<void>;
}

export function changed(): Changed {
  const waiting = new Set<() => void>();
  return {
    tell() {
      for (const wake of [...waiting]) wake();
    },
    next(signal) {
      if (signal.aborted) return Promise.resolve();
      return new Promise((resolve) => {
        const wake = (): void => {
          waiting.delete(wake);
          signal.removeEventListener('abort', wake);
          resolve();
        };
        waiting.add(wake);
        signal.addEventListener('abort', wake);
      });
    },
  };
}
