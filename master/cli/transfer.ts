/**
 * `replctl export` and `import`: what people have decided (storage classes, replications, groups, planned recoveries) as one file,
 * for another master, a review or a backup. No status, no data of replicas, no secret.
 *
 * An import goes in the order in which objects need each other, takes what it can and says what it could not: exit status 1 then.
 */
import { stringify } from 'yaml';
import { repeated, required, toggle } from '../../proto/cli.ts';
import { parseChoice, parseText } from '../../proto/value.ts';
import { decided, put, readDocuments, readText, type Written } from './apply.ts';
import { ApiProblem, explainProblem } from './client.ts';
import { printObject } from './get.ts';
import { kindOf } from './kinds.ts';
import { verb } from './verb.ts';

/** In the order in which they need each other. */
const order = [
  ['StorageClass', 'storageclasses'],
  ['Replication', 'replications'],
  ['Group', 'groups'],
  ['RecoverySchedule', 'recoveryschedules'],
] as const;

export const exporting = verb(
  {
    name: 'export',
    summary: 'Print all that people have decided, as YAML that import and apply read.',
    flags: {
      kind: repeated('KIND', `only this kind: ${order.map(([, plural]) => plural).join('|')}`, parseChoice(...order.map(([, plural]) => plural))), // prettier-ignore
    },
    notes: 'Example:\n  replctl export > dr.yaml; replctl import -f dr.yaml --url https://other:8080',
  },
  async (session, { options }) => {
    const objects: Written[] = [];
    for (const [, plural] of order) {
      if (options.kind.length > 0 && !options.kind.includes(plural)) continue;
      const { items } = await session.client.list<Written>(kindOf(plural).path(''));
      objects.push(...items.map(decided));
    }
    if (session.output === 'json') session.print(JSON.stringify({ kind: 'List', items: objects }, null, 2));
    else session.print(objects.map((object) => `---\n${stringify(object)}`).join(''));
    if (objects.length === 0) session.note('There is nothing to export.');
    return 0;
  },
);

export const importing = verb(
  {
    name: 'import',
    summary: 'Make the objects of an export so: storage classes first, planned recoveries last.',
    flags: {
      filename: { ...required('FILE', 'file to read; - is standard input', parseText), short: 'f' },
      paused: toggle('pause each replication that is made or changed; `replctl resume` starts them'),
    },
    notes: 'What is refused is said and the rest goes on; the exit status is 1 then.',
  },
  async (session, { options }) => {
    const known: readonly string[] = order.map(([kind]) => kind);
    const objects = readDocuments(readText(options.filename), options.filename, known);
    objects.sort((a, b) => known.indexOf(a.kind) - known.indexOf(b.kind));
    let refused = 0;
    for (const object of objects) {
      const kind = kindOf(order.find(([name]) => name === object.kind)?.[1] ?? '');
      const isPaused = options.paused && object.kind === 'Replication';
      try {
        const written = isPaused ? { ...object, spec: { ...object.spec, paused: true } } : object;
        const [stored, done] = await put(session.client, kind, '', written);
        printObject(session, kind, stored, '', done);
      } catch (error) {
        if (!(error instanceof ApiProblem)) throw error;
        refused += 1;
        session.note(`${kind.singular}/${object.metadata.name}: ${explainProblem(error.problem)}`);
      }
    }
    if (refused > 0) session.note(`${refused} of ${objects.length} were refused.`);
    return refused > 0 ? 1 : 0;
  },
);
