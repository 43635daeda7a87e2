/**
 * A real Chromium without a window, driven by the DevTools protocol over Node's own WebSocket.
 *
 * Clicks and keys are the browser's own input, not calls of handlers. Everything that the page throws, and all that the browser refuses by
 * policy, is kept in `complaints`. Teardown ends the browser and removes its profile.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';

const names = ['chromium', 'chromium-browser', 'google-chrome'];
const found = names.find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0);
/** Why there is no browser here; false: there is. */
export const noBrowser = found === undefined ? 'no Chromium on this machine (test/parts/install)' : false;

export interface Tab {
  /** What the page or the browser complained of so far. */
  complaints: string[];
  goto(url: string): Promise<void>;
  /** Value of a JavaScript expression in the page; promises are waited for. */
  eval<T>(expression: string): Promise<T>;
  /** Waits until the expression is truthy and answers it. */
  until<T>(what: string, expression: string, seconds?: number): Promise<T>;
  /** Clicks the middle of the first element that the expression names, once it is there. */
  click(element: string): Promise<void>;
  /** Such as Tab, Enter, Escape. */
  press(key: string, modifiers?: { shift?: boolean }): Promise<void>;
  type(text: string): Promise<void>;
  /** PNG of the whole page. */
  screenshot(width: number, height?: number): Promise<Buffer>;
  send<T>(method: string, params?: object): Promise<T>;
}

interface Message {
  id?: number;
  method?: string;
  sessionId?: string;
  params?: Record<string, unknown>;
  result?: unknown;
  error?: { message: string };
}

const codes: Record<string, number> = { Tab: 9, Enter: 13, Escape: 27, ' ': 32, '/': 191, ArrowDown: 40 };

export async function openTab(t: Test): Promise<Tab> {
  const profile = mkdtempSync(join(tmpdir(), 'replicator-chromium-'));
  const browser = spawn(
    found ?? '',
    [
      ...[
        '--headless=new',
        '--remote-debugging-port=0',
        `--user-data-dir=${profile}`,
        '--no-first-run',
        '--disable-gpu',
      ],
      ...['--no-sandbox', '--disable-dev-shm-usage', '--disable-background-networking', '--lang=en-US', 'about:blank'],
    ],
    { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, LANGUAGE: 'en_US' } },
  );
  let said = '';
  browser.stderr.on('data', (text: Buffer) => (said = (said + text.toString()).slice(-4000)));
  const gone = once(browser, 'exit');
  t.teardown(async () => {
    browser.kill('SIGKILL');
    await gone;
    rmSync(profile, { recursive: true, force: true, maxRetries: 10 });
  });
  const port = join(profile, 'DevToolsActivePort');
  // Its two lines are not written in one piece.
  const address = (): string[] => (existsSync(port) ? readFileSync(port, 'utf8').split('\n') : []);
  for (const endMs = Date.now() + 90_000; !address()[1]?.startsWith('/devtools/browser/'); await sleep(50))
    if (browser.exitCode !== null || Date.now() > endMs) throw new Error(`Chromium did not start: ${said}`);
  const [number = '', path = ''] = address();
  const socket = new WebSocket(`ws://127.0.0.1:${number}${path}`);
  await new Promise((resolve, reject) => {
    socket.addEventListener('open', resolve);
    socket.addEventListener('error', () => reject(new Error('no DevTools connection')));
  });
  t.teardown(() => socket.close());

  const waiting = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  const complaints: string[] = [];
  let lastId = 0;
  let loaded = (): void => undefined;
  socket.addEventListener('message', ({ data }) => {
    const { id, method, params, result, error } = JSON.parse(String(data)) as Message;
    if (id !== undefined) {
      if (error) waiting.get(id)?.reject(new Error(error.message));
      else waiting.get(id)?.resolve(result);
      waiting.delete(id);
    } else if (method === 'Page.loadEventFired') loaded();
    else if (method === 'Runtime.exceptionThrown') complaints.push(JSON.stringify(params?.['exceptionDetails']));
    else if (method === 'Log.entryAdded') {
      const { level, source, text, url } = params?.['entry'] as Record<string, string>;
      // A line that the test itself cuts is no fault of the page, nor is an answer of the API that says no.
      if (level === 'error' && source !== 'network') complaints.push(`${source}: ${text} ${url ?? ''}`);
    }
  });
  const attached: { sessionId?: string } = {};
  function send<T>(method: string, params: object = {}): Promise<T> {
    lastId += 1;
    const id = lastId;
    socket.send(JSON.stringify({ id, method, params, ...attached }));
    return new Promise((resolve, reject) => waiting.set(id, { resolve: resolve as (value: unknown) => void, reject }));
  }
  const { targetInfos } = await send<{ targetInfos: { targetId: string; type: string }[] }>('Target.getTargets');
  const targetId = targetInfos.find(({ type }) => type === 'page')?.targetId;
  Object.assign(attached, await send<{ sessionId: string }>('Target.attachToTarget', { targetId, flatten: true }));
  for (const domain of ['Page', 'Runtime', 'Log']) await send(`${domain}.enable`);
  await send('Emulation.setDeviceMetricsOverride', { width: 1200, height: 900, deviceScaleFactor: 1, mobile: false });

  interface Evaluated {
    result: { value: unknown };
    exceptionDetails?: { text: string; exception?: { description?: string } };
  }
  async function evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = await send<Evaluated>('Runtime.evaluate', {
      expression,
      awaitPromise: true,
      returnByValue: true,
    });
    if (exceptionDetails !== undefined)
      throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value as T;
  }
  async function until<T>(what: string, expression: string, seconds = 60): Promise<T> {
    for (const endMs = Date.now() + seconds * 1000; ; await sleep(50)) {
      const value = await evaluate<T>(expression);
      if (value) return value;
      if (Date.now() < endMs) continue;
      const text = await evaluate<string>('document.body.innerText');
      throw new Error(`not reached in ${seconds} s: ${what}\n${text}\n${complaints.join('\n')}`);
    }
  }
  async function press(key: string, { shift = false } = {}): Promise<void> {
    const text = key === 'Enter' ? '\r' : key.length === 1 ? key : undefined;
    const event = { key, code: key, windowsVirtualKeyCode: codes[key], modifiers: shift ? 8 : 0 };
    await send('Input.dispatchKeyEvent', { ...event, type: 'keyDown', ...(text === undefined ? {} : { text }) });
    await send('Input.dispatchKeyEvent', { ...event, type: 'keyUp' });
  }
  return {
    complaints,
    async goto(url) {
      const done = new Promise<void>((resolve) => (loaded = resolve));
      await send('Page.navigate', { url });
      await done;
    },
    eval: evaluate,
    until,
    async click(element) {
      await until(`there is ${element}`, `Boolean(${element})`);
      const { x, y } = await evaluate<{ x: number; y: number }>(`(() => {
        const node = ${element};
        node.scrollIntoView({ block: 'center' });
        const { left, top, width, height } = node.getBoundingClientRect();
        return { x: left + width / 2, y: top + height / 2 };
      })()`);
      for (const type of ['mousePressed', 'mouseReleased'])
        await send('Input.dispatchMouseEvent', { type, x, y, button: 'left', clickCount: 1 });
    },
    press,
    type: async (text) => void (await send('Input.insertText', { text })),
    async screenshot(width, height = 900) {
      await send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: false });
      const { data } = await send<{ data: string }>('Page.captureScreenshot', { format: 'png' });
      return Buffer.from(data, 'base64');
    },
    send,
  };
}
