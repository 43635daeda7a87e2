/**
 * The CustomResourceDefinitions, generated from the schemas of the REST API: one source for both faces of an object.
 * `npm run definitions` writes the files among the manifests; a test fails when they are not up to date.
 *
 * Cost of the validation rules is bounded by maxLength and maxItems; the API server refuses a definition whose rules
 * could cost too much, so a test applies them all to a real one.
 */
import { writeFileSync } from 'node:fs';
import { stringify } from 'yaml';
import type { Kind } from '../resources.ts';
import { accepted } from './codec.ts';
import { allKinds, group, named, version, type Named } from './kinds.ts';
import { lenient, structural, type JsonSchema } from './structural.ts';

interface Rule {
  rule: string;
  message: string;
}

const label = '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$';
const isLabel: Rule = {
  rule: `self.metadata.name.matches('${label}')`,
  message: 'metadata.name must be 1 to 63 lower-case letters, digits and "-"',
};

/** Of the whole object. */
const objectRules: { [K in Kind]?: Rule[] } = {
  Snapshot: [
    {
      rule: `self.metadata.name.startsWith(self.spec.replication + '.') && self.metadata.name.substring(size(self.spec.replication) + 1).matches('${label}')`,
      message: 'metadata.name must be <spec.replication>.<name>, such as orders.before-upgrade',
    },
  ],
};

const fixed = (field: string): Rule => ({
  rule: `self.${field} == oldSelf.${field}`,
  message: `${field} cannot be changed; create another object instead`,
});

const fixedOptional = (field: string): Rule => ({
  ...fixed(field),
  rule: `has(self.${field}) == has(oldSelf.${field}) && (!has(self.${field}) || self.${field} == oldSelf.${field})`,
});

const ofOne: Rule = {
  rule: 'has(self.replication) != has(self.group)',
  message: 'must name either a replication or a group',
};

/** Of spec. A rule with oldSelf is asked at changes only. */
const specRules: { [K in Kind]?: Rule[] } = {
  Replication: [
    fixed('target.storageClass'),
    {
      rule: "has(self.source.pvc) || (self.source.agent != '' && self.source.path != '')",
      message: 'source must name agent and path, or a pvc',
    },
    fixedOptional('source.pvc'),
    // With a pvc the master writes them.
    ...['source.agent', 'source.path'].map((field) => ({
      ...fixed(field),
      rule: `has(self.source.pvc) || self.${field} == oldSelf.${field}`,
    })),
    {
      rule: '!has(oldSelf.source.volumeMode) || (has(self.source.volumeMode) && self.source.volumeMode == oldSelf.source.volumeMode)',
      message: 'source.volumeMode cannot be changed; create another object instead',
    },
    {
      rule: "!has(self.source.volumeMode) || self.source.volumeMode != 'Block' || (size(self.source.include) == 0 && size(self.source.exclude) == 0)",
      message: 'source.include and source.exclude are for volumeMode Filesystem only; leave them out',
    },
    {
      rule: "!has(self.consistency) || !has(self.source.volumeMode) || self.consistency != (self.source.volumeMode == 'Block' ? 'file' : 'crash')",
      message: 'consistency must be filesystem or crash for volumeMode Block, filesystem or file for Filesystem',
    },
    {
      rule: 'self.snapshotSchedules.all(a, self.snapshotSchedules.exists_one(b, a.period == b.period))',
      message: 'snapshotSchedules must have one schedule of each period at most',
    },
    {
      rule: "!has(self.trigger.schedule) || self.trigger.schedule.matches('^\\\\S+( +\\\\S+){4}$')",
      message: 'trigger.schedule must be a cron expression of five fields, such as */5 * * * *',
    },
  ],
  StorageClass: [
    {
      rule: 'self == oldSelf',
      message: 'spec cannot be changed, as replicas lie there; create another storage class',
    },
    {
      rule: "self.driver == 'kubernetes' ? has(self.parameters.storageClassName) && !has(self.parameters.path) : has(self.parameters.path) && !has(self.parameters.storageClassName) && !has(self.parameters.accessMode)",
      message: 'parameters must be path for driver directory, storageClassName (and accessMode) for driver kubernetes',
    },
  ],
  Snapshot: [
    fixed('replication'),
    {
      rule: '!has(oldSelf.lockedUntil) || (has(self.lockedUntil) && self.lockedUntil >= oldSelf.lockedUntil)',
      message: 'a lock can be made longer, never shorter',
    },
  ],
  Recovery: [...['replication', 'group'].map(fixedOptional), fixed('type'), ofOne],
  RecoverySchedule: [ofOne],
};

const hiddenSchemas: Record<NonNullable<Named['hidden']>, JsonSchema> = {
  job: {
    type: 'object',
    description: 'what the master has begun of a recovery; not to be written by hand',
    'x-kubernetes-preserve-unknown-fields': true,
  },
  requests: {
    type: 'object',
    description: 'actions asked for over REST, and how far they are; not to be written by hand',
    'x-kubernetes-preserve-unknown-fields': true,
  },
  identity: {
    type: 'object',
    description: "fingerprints of the agent's certificates; not to be written by hand",
    'x-kubernetes-preserve-unknown-fields': true,
  },
};

export function definition(of: Kind): Record<string, unknown> {
  const { kind, plural, singular, shortNames, schema, columns, hidden } = named(of);
  const { spec, status } = (schema as unknown as JsonSchema).properties ?? {};
  const rules = (list: Rule[]): JsonSchema => (list.length > 0 ? { 'x-kubernetes-validations': list } : {});
  const statusSchema = lenient(structural(status ?? {}));
  const hiddenFields = {
    ...(hidden === undefined ? {} : { [hidden]: hiddenSchemas[hidden] }),
    [accepted]: { type: 'boolean', description: 'the master has taken the object on' },
  };
  return {
    apiVersion: 'apiextensions.k8s.io/v1',
    kind: 'CustomResourceDefinition',
    metadata: {
      name: `${plural}.${group}`,
      // See removal-guard.yaml among the manifests.
      labels: { 'app.kubernetes.io/part-of': 'cdm-replicator', [`${group}/holds-data`]: 'true' },
    },
    spec: {
      group,
      scope: 'Namespaced',
      names: { kind, listKind: `${kind}List`, plural, singular, shortNames, categories: ['replication'] },
      conversion: { strategy: 'None' },
      versions: [
        {
          name: version,
          served: true,
          storage: true,
          subresources: { status: {} },
          additionalPrinterColumns: columns,
          schema: {
            openAPIV3Schema: {
              type: 'object',
              required: ['spec'],
              properties: {
                apiVersion: { type: 'string' },
                kind: { type: 'string' },
                metadata: { type: 'object' },
                spec: { ...structural(spec ?? {}), ...rules(specRules[of] ?? []) },
                status: { ...statusSchema, properties: { ...statusSchema.properties, ...hiddenFields } },
              },
              ...rules(objectRules[of] ?? [isLabel]),
            },
          },
        },
      ],
    },
  };
}

/** Name of its file among the manifests. */
export function fileOf(of: Kind): string {
  return `${group}_${named(of).plural}.yaml`;
}

export function textOf(of: Kind): string {
  return `# Generated by master/kubernetes/crd.ts from the schemas of the REST API.\n${stringify(definition(of), {
    lineWidth: 0,
    aliasDuplicateObjects: false,
  })}`;
}

if (import.meta.main) {
  const folder = process.argv[2];
  if (folder === undefined) {
    process.stderr.write('Usage: node master/kubernetes/crd.ts FOLDER\n');
    process.exit(2);
  }
  for (const kind of allKinds) writeFileSync(`${folder}/${fileOf(kind)}`, textOf(kind));
}
