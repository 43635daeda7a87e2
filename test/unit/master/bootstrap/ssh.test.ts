import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import ssh2 from 'ssh2';
import t, { type Test } from 'tap';
import { parseHostKey } from '../../../../master/bootstrap/hostkey.ts';
import { openShell, type Shell } from '../../../../master/bootstrap/ssh.ts';

/** A host that answers every script by `answer`; in one process with its client, so that all that it says at once comes at once. */
async function shellOf(t: Test, answer: (channel: ssh2.ServerChannel) => void): Promise<Shell> {
  const { utils, Server } = ssh2;
  const key = utils.generateKeyPairSync('ed25519');
  const server = new Server({ hostKeys: [key.private] }, (client) => {
    client.on('authentication', (attempt) => attempt.accept());
    client.on('error', () => undefined);
    client.on('ready', () => client.on('session', (accept) => accept().on('exec', (accept) => answer(accept()))));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const { private: privateKey } = utils.generateKeyPairSync('ed25519');
  const host = { host: '127.0.0.1', port, user: 'root', hostKeys: parseHostKey(key.public), login: { privateKey } };
  t.teardown(() => server.close());
  const shell = await openShell(host, new AbortController().signal);
  t.teardown(() => shell[Symbol.asyncDispose]());
  return shell;
}

t.test('a status that comes together with the opening of its channel is heard', async (t) => {
  for (const output of ['', 'done\n']) {
    const shell = await shellOf(t, (channel) => {
      channel.write(output);
      channel.exit(7);
      channel.end();
    });
    t.strictSame(await shell.run('exit 7'), { status: 7, stdout: output, stderr: '' });
  }
});

t.test('a command that was killed, and a line that broke, say which', async (t) => {
  const killed = await shellOf(t, (channel) => {
    channel.exit('KILL');
    channel.end();
  });
  await t.rejects(killed.run('kill -9 $$'), { message: /a command was killed there by SIGKILL/ });
  const broken = await shellOf(t, (channel) => channel.end());
  await t.rejects(broken.run('true'), { message: /the line broke while a command ran/ });
});
