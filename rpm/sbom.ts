/**
 * The parts that the package bundles, as CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/): for scanners of
 * vulnerabilities and licences, which find no packages in one RPM.
 *
 * The same tree gives the same text: without a serial number, the time is that of the build's sources.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

interface Locked {
  version: string;
  integrity?: string;
  license?: string;
}

/**
 * @param tree has package-lock.json and node_modules
 * @param paths folders of packages relative to it, as the lock file names them
 * @throws when one is not in the lock file
 */
export function partsList(tree: string, paths: readonly string[], version: string, epochSeconds: number): string {
  const lock = JSON.parse(readFileSync(join(tree, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, Locked>;
  };
  const components = paths.map((path) => {
    const locked = lock.packages[path];
    if (locked === undefined) throw new Error(`${path} is not in package-lock.json`);
    return component(path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length), locked);
  });
  const list = {
    bomFormat: 'CycloneDX',
    specVersion: '1.6',
    version: 1,
    metadata: {
      timestamp: new Date(epochSeconds * 1000).toISOString(),
      component: { type: 'application', 'bom-ref': 'cdmr_agent', name: 'cdmr_agent', version },
    },
    components,
  };
  return `${JSON.stringify(list, null, 1)}\n`;
}

function component(fullName: string, { version, integrity, license }: Locked): object {
  const [name = '', group] = fullName.split('/').reverse();
  const purl = `pkg:npm/${group === undefined ? '' : `${encodeURIComponent(group)}/`}${name}@${version}`;
  return {
    type: 'library',
    'bom-ref': purl,
    ...(group === undefined ? {} : { group }),
    name,
    version,
    purl,
    ...(license === undefined
      ? {}
      : { licenses: [/[ ()]/.test(license) ? { expression: license } : { license: { id: license } }] }),
    // Of the archive that the registry gave.
    ...(integrity?.startsWith('sha512-')
      ? { hashes: [{ alg: 'SHA-512', content: Buffer.from(integrity.slice(7), 'base64').toString('hex') }] }
      : {}),
  };
}
