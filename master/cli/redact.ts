/**
 * Takes out of what leaves the house what may be secret: values of fields named like secrets, arguments of programs (the
 * programs stay), annotations, and in any text tokens, private keys and passwords in URLs.
 */
const secretField = /token|passw|passphrase|secret|private|credential|authorization|cookie|session$/i;
const text: [RegExp, string][] = [
  [/-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(-----END [A-Z ]*PRIVATE KEY-----|$)/g, '[private key]'],
  [/\brpl_[A-Za-z0-9_-]{8,}/g, '[token]'],
  [/\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]{8,}/gi, '$1 [redacted]'],
  [/(\/\/[^/\s:@]*):[^/\s@]+@/g, '$1:[redacted]@'],
  [/\b(pass(?:word|wd|phrase)?|secret|token)(["']?\s*[=:]\s*["']?)[^\s"',}]+/gi, '$1$2[redacted]'],
];

export function redactText(given: string): string {
  return text.reduce((all, [pattern, instead]) => all.replace(pattern, instead), given);
}

/** Lines of JSON as objects, so that fields count; the rest, such as journald's, as text. */
export function redactLog(given: string): string {
  return given
    .split('\n')
    .map((line) => {
      const at = line.indexOf('{"');
      try {
        return at < 0
          ? redactText(line)
          : redactText(line.slice(0, at)) + JSON.stringify(redact(JSON.parse(line.slice(at))));
      } catch {
        return redactText(line);
      }
    })
    .join('\n');
}

export function redact(value: unknown): unknown {
  if (typeof value === 'string') return redactText(value);
  if (Array.isArray(value)) return value.map(redact);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value as Record<string, unknown>).map(([key, item]) => {
      if (secretField.test(key) && item !== null && typeof item !== 'boolean') return [key, '[redacted]'];
      if (key === 'annotations' && typeof item === 'object' && item !== null)
        return [key, Object.fromEntries(Object.keys(item).map((name) => [name, '[redacted]']))];
      if (isProgram(key) && Array.isArray(item))
        return [key, item.map((argument, index) => (index === 0 ? redact(argument) : '[argument]'))];
      return [key, redact(item)];
    }),
  );
}

function isProgram(key: string): boolean {
  return ['argv', 'beforeFreeze', 'afterThaw'].includes(key);
}
