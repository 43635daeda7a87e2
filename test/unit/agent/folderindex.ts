/** What a replica's index would say of a folder. */
import fs from 'node:fs';
import { join } from 'node:path';
import { scanFolder } from '../../../agent/treescan.ts';
import { TreeIndex } from '../../../master/replica/treeindex.ts';

let indexes = 0;

/** @param dir where new files may be made */
export async function indexOf(dir: string, folder: string): Promise<TreeIndex> {
  const wanted = new TreeIndex(join(dir, `none-${++indexes}`));
  const index = new TreeIndex(join(dir, `point-${indexes}`));
  const root = await fs.promises.open(folder, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  const none = join(dir, `staging-${indexes}`);
  fs.mkdirSync(none);
  const staging = await fs.promises.open(none, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  const stagingName = Buffer.from('no such name');
  await scanFolder({
    ...{ root, wanted, index, staging, stagingName },
    signal: new AbortController().signal,
    progress: async () => undefined,
  });
  await root.close();
  await staging.close();
  wanted.close();
  return index;
}
