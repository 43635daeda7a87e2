/** The web page in a real Chromium against a real master and agent: by keyboard and mouse, as a person has it. */
import t from 'tap';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Recovery } from '../../master/resources.ts';
import { noBrowser, openTab, type Tab } from './browser.ts';
import { writeNoise } from './content.ts';
import { startProxy } from './proxy.ts';
import { openWorld, type World } from './world.ts';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
/** Set: pictures for the README are written there. */
const pictures = process.env['PAGE_PICTURES'];

const button = (text: string, within = 'document'): string =>
  `[...${within}.querySelectorAll('button')].find((one) => one.textContent === ${JSON.stringify(text)})`;
const dialog = "document.querySelector('dialog[open]')";
const says = (text: string): string => `document.body.innerText.includes(${JSON.stringify(text)})`;

/** Goes on with Tab until the element has the focus: what is not reached so is not usable by keyboard. */
async function tabTo(tab: Tab, element: string): Promise<void> {
  await tab.until(`there is ${element}`, `Boolean(${element})`);
  for (let presses = 0; presses < 80; presses += 1) {
    if (await tab.eval<boolean>(`document.activeElement === ${element}`)) return;
    await tab.press('Tab');
  }
  throw new Error(`not reached by Tab: ${element}`);
}

interface Violation {
  id: string;
  impact: string;
  nodes: { html: string }[];
}
async function accessible(t: Test, tab: Tab, what: string): Promise<void> {
  await tab.eval(`void (${JSON.stringify(axe)}, window.axe ?? (0, function () { ${axe} }).call(window))`);
  const found = await tab.eval<Violation[]>('axe.run(document).then(({ violations }) => violations)');
  const serious = found.filter(({ impact }) => impact === 'serious' || impact === 'critical');
  t.same(
    serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 160)).join(' | ')}`),
    [],
    `axe: ${what}`,
  );
}
type Test = Parameters<typeof openTab>[0];

t.test('a replication is made, drilled and rolled back in the browser', { skip: noBrowser }, async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'shop.img');
  writeNoise(source, 8 << 20);
  // The copy of a failover lies where the agent may mirror it from.
  const copies = join(world.dir, 'copies');
  mkdirSync(copies);
  world.agentFlags.push('--allow', copies);
  await world.startAgent();
  const { host } = new URL(world.client.url);
  const proxy = await startProxy(host);
  t.teardown(() => proxy.close());
  const tab = await openTab(t);
  const url = `http://${proxy.address}/`;
  const show = async (hash: string): Promise<void> => void (await tab.eval(`location.hash = ${JSON.stringify(hash)}`));

  await tab.goto(url);
  await tab.until('the form to log in', says('Log in'));
  await accessible(t, tab, 'log in');
  await tabTo(tab, "document.getElementById('token')");
  await tab.type('rpl_wrong');
  await tab.press('Enter');
  await tab.until('the refusal is said', says('are wrong'));
  await tabTo(tab, "document.getElementById('token')");
  await tab.eval("document.getElementById('token').value = ''");
  await tab.type(readFileSync(join(world.masterDir, 'admin.token'), 'utf8').trim());
  await tab.press('Enter');
  await tab.until('logged in', says('admin (admin)'));
  t.notOk(await tab.eval('document.cookie'), 'no script reads the session');

  await tabTo(tab, button('Mirror a volume'));
  await tab.press('Enter');
  await tabTo(tab, "document.getElementById('field-name')");
  await tab.type('shop');
  await tabTo(tab, "document.getElementById('field-path')");
  await tab.type('/etc/passwd');
  await tab.press('Enter');
  await tab.until('the master refuses the path in the dialog', `${dialog}?.querySelector('[role=alert]').textContent`);
  await tabTo(tab, "document.getElementById('field-path')");
  await tab.eval("document.getElementById('field-path').value = ''");
  await tab.type(source);
  await tabTo(tab, "document.getElementById('field-rpoSeconds')");
  await tab.eval("document.getElementById('field-rpoSeconds').value = ''");
  await tab.type('5');
  await tab.press('Enter');
  await tab.until('its view opens', "location.hash === '#/replications/shop'");
  await tab.until('NORMAL', "document.querySelector('.states .badge')?.textContent === 'NORMAL'", 120);
  await tab.until('a point on the time line', "document.querySelector('path.points')?.getAttribute('d').length > 4");
  await tab.until('a line in the plot', "document.querySelector('path.age')?.getAttribute('d').includes('L')");
  t.equal((await world.get('shop')).spec.rpoSeconds, 5);

  await tab.click(button('Take a snapshot'));
  await tab.until('the snapshot is Ready', "document.querySelector('g.snapshot.Ready') !== null");
  await tab.click(button('Lock'));
  await tab.eval(`${dialog}.querySelector('#field-until').value = '2031-01-01T00:00:00'`);
  await tab.click(button('Lock', dialog));
  await tab.until('the lock is shown', says('locked until'));
  await accessible(t, tab, 'a replication, light');
  await tab.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: 'dark' }] });
  await accessible(t, tab, 'a replication, dark');

  await tab.click(button('Drill'));
  await tab.click(button('Drill', dialog));
  await tab.until('the recovery opens', "location.hash.startsWith('#/recoveries/')");
  await tab.until('it is Completed', "document.querySelector('.states')?.textContent.includes('Completed')", 120);
  t.ok(await tab.eval(says('Read back and right')));
  t.equal(await tab.eval("document.querySelectorAll('.steps > li').length"), 1);
  await accessible(t, tab, 'a recovery');
  await tab.click(button('Roll back'));
  await tab.until('asked before', `${dialog} !== null`);
  await tab.press('Escape');
  await tab.until('Escape closes it', `${dialog} === null`);
  t.equal(await tab.eval('document.activeElement.textContent'), 'Roll back', 'the focus is back where it was');
  await tab.click(button('Roll back'));
  await tab.click(button('Roll back', dialog));
  await tab.until('it is rolled back', "document.querySelector('.states')?.textContent.includes('RolledBack')");
  const [recovery] = (await world.client.list<Recovery>('/recoveries')).items;
  t.equal(recovery?.status.state, 'RolledBack');

  await show('#/replications/shop');
  await tab.until('its events are there', says('ReplicationCreated'));
  t.comment('a line that is cut is taken up again, with what happened meanwhile');
  proxy.cut(true);
  await tab.until('it says so', says('no connection'));
  await world.snapshot('shop', 'meanwhile');
  proxy.heal();
  await tab.until('live again', "document.querySelector('.line.live') !== null");
  const marked = "[...document.querySelectorAll('g.snapshot.Ready')].reduce((sum, one) => sum + Number(one.querySelector('.count')?.textContent ?? 1), 0)"; // prettier-ignore
  await tab.until('what happened meanwhile', `${says('meanwhile')} && ${marked} === 2`);
  for (const name of ['again', 'once-more']) await world.snapshot('shop', name);
  await tab.until('each has its mark, or is counted by one', `${says('once-more')} && ${marked} === 4`);
  const places = "[...document.querySelectorAll('g.snapshot')].map((one) => one.transform.baseVal[0].matrix.e).sort((a, b) => a - b)"; // prettier-ignore
  const between = `${places}.map((at, n, all) => at - (all[n - 1] ?? -Infinity))`;
  t.ok(await tab.eval(`${between}.every((width) => width >= 17.9)`), 'none covers another');
  t.match(
    await tab.eval("document.querySelector('g.snapshot .count').parentNode.querySelector('title').textContent"),
    /once-more/,
  );

  await world.client.send('POST', '/groups', {
    metadata: { name: 'together' },
    spec: { members: [{ replication: 'shop', startOrder: 1 }] },
  });
  await world.client.send('POST', '/recoveryschedules', {
    metadata: { name: 'nightly' },
    spec: { replication: 'shop', type: 'drill', repeat: 'daily', startTime: '2031-01-01T00:00:00Z' },
  });
  await show('#/recoveries');
  await tab.until('what is planned is listed with its next time', `${says('nightly')} && ${says('Jan 1, 2031')}`);
  await show('#/groups');
  await tab.until('the group is listed', says('together'));
  await show('#/groups/together');
  await tab.until('its member is there', 'document.querySelector(\'tbody a[href="#/replications/shop"]\') !== null');
  for (const place of [
    'groups',
    'groups/together',
    'replications',
    'recoveries',
    'agents',
    'agents/node-a',
    'storage',
    'events',
    'events/WARNING',
  ]) {
    await show(`#/${place}`);
    await tab.until(`${place} has come`, "document.querySelector('tbody tr, main > p.quiet') !== null");
    await accessible(t, tab, place);
  }
  await show('#/replications');
  await tab.until('the list has come', says('Mirror a volume'));
  await tab.press('/');
  await tab.until('the filter has the focus', "document.activeElement?.id === 'filter'");
  await tab.type('nothing-like-it');
  await tab.until('it filters', says('Nothing matches'));
  await tab.eval("document.getElementById('language').value = 'ko'");
  await tab.eval("document.getElementById('language').dispatchEvent(new Event('change', { bubbles: true }))");
  await tab.until('Korean', says('에이전트'));
  t.equal(await tab.eval('document.documentElement.lang'), 'ko');

  if (pictures !== undefined) {
    // Something to see: changes for a while.
    for (let round = 0; round < 45; round += 1) {
      writeNoise(source, 8 << 20);
      await sleep(2000);
    }
    await paint(tab, show, pictures);
  }
  await tab.eval("document.getElementById('language').value = 'en'");
  await tab.eval("document.getElementById('language').dispatchEvent(new Event('change', { bubbles: true }))");
  await failOver(t, world, tab, show, join(copies, 'shop.img'));
  t.same(tab.complaints, [], 'nothing was thrown, nothing refused by policy');
});

/** With the name typed, to the end: confirmed, and mirrored on from the copy. */
async function failOver(
  t: Test,
  world: World,
  tab: Tab,
  show: (hash: string) => Promise<void>,
  path: string,
): Promise<void> {
  // What is planned for it, and the group, would hold it.
  await world.client.send('DELETE', '/recoveryschedules/nightly');
  const submit = `${dialog}.querySelector('[type=submit]')`;
  const typeName = async (): Promise<void> => {
    t.equal(await tab.eval(`${submit}.disabled`), true, 'not before the name is typed');
    await tabTo(tab, "document.getElementById('field-typed')");
    await tab.type('sho');
    t.equal(await tab.eval(`${submit}.disabled`), true, 'nor by a part of it');
    await tab.type('p');
    await tab.until('by the whole name', `!${submit}.disabled`);
    await tab.press('Enter');
  };
  await show('#/replications/shop');
  await tab.click(button('Failover'));
  await tabTo(tab, "document.getElementById('field-path')");
  await tab.type(path);
  await accessible(t, tab, 'the dialog of a failover');
  await typeName();
  await tab.until('the failover opens', "location.hash.startsWith('#/recoveries/')");
  await tab.until('it is Completed', "document.querySelector('.states')?.textContent.includes('Completed')", 120);
  await world.until('it is promoted', async () => (await world.get('shop')).status.phase === 'Promoted');
  await tab.click(button('Confirm'));
  await typeName();
  await tab.until('it is Confirmed', "document.querySelector('.states')?.textContent.includes('Confirmed')", 180);
  t.match((await world.normal('shop-failback', 0, 120)).spec.source, { path });
  await show('#/replications');
  await tab.until('the list has the new one alone', `${says('shop-failback')} && document.querySelectorAll('tbody tr').length === 1`); // prettier-ignore
}

async function paint(tab: Tab, show: (hash: string) => Promise<void>, folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const choose = async (id: string, value: string): Promise<void> => {
    await tab.eval(`document.getElementById('${id}').value = '${value}'`);
    await tab.eval(`document.getElementById('${id}').dispatchEvent(new Event('change', { bubbles: true }))`);
  };
  for (const [name, language, theme, hash] of [
    ['replication-light', 'en', 'light', '#/replications/shop'],
    ['replication-dark-ko', 'ko', 'dark', '#/replications/shop'],
  ] as const) {
    await choose('language', language);
    await choose('theme', theme);
    await show(hash);
    await tab.until('the time line', "document.querySelector('g.snapshot.Ready') !== null");
    writeFileSync(resolve(folder, `${name}.png`), await tab.screenshot(1100, 900));
  }
}
