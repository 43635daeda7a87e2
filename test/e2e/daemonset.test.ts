/** The agent's manifest against a real API server with its controllers, as its first lines tell a new user. */
import t from 'tap';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { skipKubernetes, startKubernetes, until } from '../kubernetes.ts';

const manifest = new URL('../../rpm/cdmr-agent-daemonset.yaml', import.meta.url).pathname;
const masters = new URL('../../master/manifests', import.meta.url).pathname;
const namespace = 'cdm-replicator-agent';

t.test('each node gets its pod, also beside the master of the same cluster', { skip: skipKubernetes }, async (t) => {
  const cluster = await startKubernetes({ controllers: true });
  t.teardown(() => cluster.close());
  const kubectl = (...argv: string[]): string => cluster.kubectl(argv);
  const node = { apiVersion: 'v1', kind: 'Node', metadata: { name: 'node-a' } };
  cluster.kubectl(['create', '-f', '-'], JSON.stringify(node));
  kubectl('apply', '-k', masters);
  kubectl('apply', '--validate=strict', '-f', manifest);

  await t.test('its first lines say what to make, and that is what its pods ask for', async (t) => {
    const cwd = t.testdir({ 'ca.pem': 'ca', 'join.token': 'token', allow: '/dev/vdb\n' });
    const said = [...readFileSync(manifest, 'utf8').matchAll(/^# +kubectl (-n .*)$/gm)].map(([, line = '']) => line);
    t.equal(said.length, 2);
    for (const line of said) {
      const { status, stderr } = spawnSync('kubectl', ['--kubeconfig', cluster.kubeconfig, ...line.split(' ')], { cwd, encoding: 'utf8' }); // prettier-ignore
      t.equal(status, 0, `${line}: ${stderr}`);
    }
    const made = kubectl('-n', namespace, 'get', 'secret,configmap', '-o', 'name').split('\n');
    for (const { secret, configMap } of sources(
      kubectl('-n', namespace, 'get', 'daemonset', 'cdmr-agent', '-o', 'json'),
    ))
      t.ok(made.includes(secret ? `secret/${secret.name}` : `configmap/${configMap?.name}`));
  });

  await t.test('the pod of the node is admitted', async (t) => {
    const pods = () => kubectl('-n', namespace, 'get', 'pods', '-l', 'app=cdmr-agent', '-o', 'name').trim();
    await until(() => pods() !== '');
    t.equal(pods().split('\n').length, 1);
    const events = kubectl('-n', namespace, 'get', 'events', '-o', 'jsonpath={.items[*].message}');
    t.notMatch(events, /forbidden|violates/);
  });
});

interface Source {
  secret?: { name: string };
  configMap?: { name: string };
}
function sources(daemonSet: string): Source[] {
  const { spec } = JSON.parse(daemonSet) as {
    spec: { template: { spec: { volumes: { projected?: { sources: Source[] } }[] } } };
  };
  return spec.template.spec.volumes.flatMap(({ projected }) => projected?.sources ?? []);
}
