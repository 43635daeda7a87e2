/** Label selectors as in Kubernetes: `app=shop,tier!=test,zone in (a,b),tier notin (x),owner,!old`. All must hold. */
import { invalid } from './problem.ts';

export type Selector = (labels: Record<string, string> | undefined) => boolean;

/** Absent or empty selects all. @throws ApiProblem Invalid */
export function parseSelector(text: string | undefined): Selector {
  // Commas within parentheses belong to the set.
  const parts = (text ?? '').split(/,(?![^(]*\))/).map((part) => part.trim());
  const terms = parts.filter((part) => part !== '').map(parseTerm);
  return (labels = {}) => terms.every((term) => term(labels));
}

function parseTerm(part: string): (labels: Record<string, string>) => boolean {
  const set = /^([\w./-]+)\s+(in|notin)\s*\(([^()]*)\)$/.exec(part);
  if (set !== null) {
    const [, key = '', verb, list = ''] = set;
    const values = list.split(',').map((value) => value.trim());
    return (labels) => values.includes(own(labels, key) ?? '\0') === (verb === 'in');
  }
  const equal = /^([\w./-]+)\s*(==?|!=)\s*([\w.-]*)$/.exec(part);
  if (equal !== null) {
    const [, key = '', verb, value] = equal;
    return (labels) => (own(labels, key) === value) === (verb !== '!=');
  }
  const exists = /^(!?)\s*([\w./-]+)$/.exec(part);
  if (exists === null) {
    const message = 'has a term that cannot be read; write it such as app=shop,tier!=test,zone in (a,b),owner,!old';
    throw invalid([{ path: 'query.labelSelector', message }]);
  }
  const [, not, key = ''] = exists;
  return (labels) => (own(labels, key) !== undefined) === (not === '');
}

function own(labels: Record<string, string>, key: string): string | undefined {
  return Object.hasOwn(labels, key) ? labels[key] : undefined;
}
