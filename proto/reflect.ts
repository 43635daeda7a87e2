/**
 * The three functions of the decorator metadata API that @peculiar/x509 (by way of its container) wants to find on
 * Reflect when it is loaded. Must be imported before it. Leaves a complete polyfill alone when one is there.
 *
 * Not a polyfill for anybody else: metadata of properties is not kept apart from that of the class.
 */
const metadata = new WeakMap<object, Map<unknown, unknown>>();

function getOwnMetadata(key: unknown, target: object): unknown {
  return metadata.get(target)?.get(key);
}

function getMetadata(key: unknown, target: object): unknown {
  for (let at: object | null = target; at !== null; at = Object.getPrototypeOf(at) as object | null) {
    const found = getOwnMetadata(key, at);
    if (found !== undefined) return found;
  }
  return undefined;
}

function defineMetadata(key: unknown, value: unknown, target: object): void {
  const map = metadata.get(target) ?? new Map<unknown, unknown>();
  metadata.set(target, map.set(key, value));
}

if (!('getMetadata' in Reflect)) Object.assign(Reflect, { getMetadata, getOwnMetadata, defineMetadata });
