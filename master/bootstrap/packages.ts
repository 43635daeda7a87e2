/** Which package goes to a host: of a folder's, the newest release of one version for the host's architecture. */
import { readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';

const form = /^cdmr_agent-([0-9][^-]*)-([^-]+)\.([a-z0-9_]+)\.rpm$/;

/** `uname -m` that the package of this path is for. @throws Error when it is not named as rpm/build names them */
export function architectureOf(path: string): string {
  const found = form.exec(basename(path))?.[3];
  if (found === undefined)
    throw new Error(`${path} is not named as rpm/build names packages: cdmr_agent-VERSION-RELEASE.ARCHITECTURE.rpm`);
  return found;
}

/** @throws Error that says where to put one */
export async function findPackage(folder: string, version: string, architecture: string): Promise<string> {
  const names = await readdir(folder).catch(() => []);
  const fit = names
    .map((name) => ({ name, parts: form.exec(name) }))
    .filter(({ parts }) => parts?.[1] === version && parts[3] === architecture)
    .sort((a, b) => (a.parts?.[2] ?? '').localeCompare(b.parts?.[2] ?? '', 'en', { numeric: true }));
  const newest = fit.at(-1);
  if (newest === undefined)
    throw new Error(
      `there is no package for ${architecture}: put cdmr_agent-${version}-RELEASE.${architecture}.rpm (npm run rpm) into ${folder}`,
    );
  return join(folder, newest.name);
}
