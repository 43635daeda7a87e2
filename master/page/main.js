/**
 * The page: who is logged in, which view is shown, and the streams that keep it up to date. The public API is all it has,
 * and nothing is asked for twice: after the first load everything comes by server-sent events.
 */
import { call, can, currentSession, logIn, logOut, resume, watch, whenEnded } from './api.js';
import { messageOf, toast } from './dialog.js';
import { el, nodesOf, patch } from './dom.js';
import { learnClock } from './format.js';
import { language, setLanguage, t } from './text.js';
import { collections, views } from './views.js';

const maxEvents = 200;
const root = el('div', { id: 'root' });
/** @type {{ place: string, name: string, view: import('./views.js').View, state: import('./views.js').State, ui: Record<string, any>, stop: AbortController } | null} */
let current = null;
let isLive = false;
let loginTrouble = '';

/** @param {string} theme */
function setTheme(theme) {
  localStorage.setItem('theme', theme);
  document.documentElement.dataset.theme = theme;
}
document.documentElement.dataset.theme = localStorage.getItem('theme') ?? 'auto';

/** Opens what the address says. */
function go() {
  const [place = '', name = ''] = location.hash.replace(/^#\//, '').split('/').map(decodeURIComponent);
  const known = views[place];
  if (known === undefined || (name !== '' && known.one === undefined)) {
    location.replace('#/replications');
    return;
  }
  const view = name === '' ? known.many : /** @type {import('./views.js').View} */ (known.one);
  current?.stop.abort();
  const stop = new AbortController();
  const state = { objects: new Map(), events: [], loaded: {}, synced: false };
  current = { place, name, view, state, ui: {}, stop };
  isLive = true;
  if (currentSession() !== null) open(current);
  draw();
  document.getElementById('main')?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

/** @param {NonNullable<typeof current>} opened */
function open({ view, name, state, stop }) {
  const { signal } = stop;
  const kinds = view.kinds.filter((kind) => can('GET', collections[kind] ?? ''));
  if (kinds.length > 0) {
    const replication = view.replication?.(name);
    const of = replication === undefined ? '' : `&replication=${encodeURIComponent(replication)}`;
    const to = {
      reset: () => state.objects.clear(),
      state: setLive,
      synced() {
        state.synced = true;
        drawSoon();
      },
      /** @param {{ type: string, object: any }} message */
      message(message) {
        const { type, object } = message;
        const key = `${object.kind}/${object.metadata.name}`;
        if (object.kind === 'Replication' && type !== 'DELETED') learnClock(object.status);
        if (type === 'DELETED') state.objects.delete(key);
        else state.objects.set(key, object);
        view.onMessage?.(state, message);
        drawSoon();
      },
    };
    watch(`/watch?kinds=${kinds.join(',')}${of}`, to, signal).catch(report);
  }
  if (view.events !== undefined) followEvents(view.events(name), state, signal).catch(report);
  view
    .load?.(name, signal)
    .then((loaded) => {
      Object.assign(state.loaded, loaded);
      drawSoon();
    })
    .catch(report);

  /** @param {unknown} error */
  function report(error) {
    if (!signal.aborted) toast(messageOf(error), true);
  }
}

/** The newest, then what comes: the whole log is not sent. @param {string} query @param {import('./views.js').State} state @param {AbortSignal} signal */
async function followEvents(query, state, signal) {
  const list = async () => {
    const page = await call('GET', `/events?limit=${maxEvents}&${query}`, undefined, signal);
    state.events = page.items;
    state.synced = true;
    drawSoon();
    return page.metadata.resourceVersion;
  };
  const to = {
    since: await list(),
    reset: list,
    state: setLive,
    /** @param {{ object: any }} message */
    message({ object }) {
      state.events = [object, ...state.events.filter(({ id }) => id !== object.id)].slice(0, maxEvents);
      drawSoon();
    },
  };
  await watch(`/events?watch=true&${query}`, to, signal);
}

/** @param {boolean} live */
function setLive(live) {
  isLive = live;
  drawSoon();
}

let isDue = false;
function drawSoon() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    draw();
  });
}

function draw() {
  document.documentElement.lang = language();
  const session = currentSession();
  const title = session === null ? t('logIn') : (current?.view.title(current.name) ?? '');
  document.title = `${title} · ${t('title')}`;
  patch(root, nodesOf([
    el('a', { class: 'skip', href: '#main', onclick: skip }, t('skip')),
    header(session),
    el(
      'main',
      { id: 'main', tabindex: -1 },
      el('h1', {}, title),
      session === null
        ? loginForm()
        : current?.view.draw(current.state, current.name, current.ui, drawSoon),
    ),
  ])); // prettier-ignore
}
/** @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById('main')?.focus();
}

/** @param {{ user: string, role: string } | null} session */
function header(session) {
  const places = Object.entries(views).filter(([, { needs }]) => can('GET', needs));
  /** @param {string} id @param {string} label @param {[string, string][]} options @param {string} chosen @param {(value: string) => void} choose */
  const select = (id, label, options, chosen, choose) =>
    el(
      'label',
      { class: 'choice' },
      el('span', { class: 'hidden' }, label),
      el(
        'select',
        {
          id,
          onchange: (/** @type {any} */ { target }) => {
            choose(target.value);
            draw();
          },
        },
        ...options.map(([value, text]) => el('option', { value, selected: value === chosen }, text)),
      ),
    );
  return el(
    'header',
    {},
    el('a', { class: 'brand', href: '#/replications' }, t('title')),
    session === null
      ? null
      : el(
          'nav',
          { 'aria-label': t('navigation') },
          ...places.map(([place]) =>
            el(
              'a',
              { key: place, href: `#/${place}`, 'aria-current': place === current?.place ? 'page' : null },
              t(place),
            ),
          ),
          el('a', { href: '/docs', rel: 'noopener', target: '_blank' }, t('api')),
        ),
    el(
      'div',
      { class: 'tools' },
      session === null
        ? null
        : el('span', { role: 'status', class: isLive ? 'line live' : 'line' }, t(isLive ? 'live' : 'lost')),
      select('language', t('language'), [['en', 'English'], ['ko', '한국어']], language(), (value) => setLanguage(/** @type {any} */ (value))), // prettier-ignore
      select(
        'theme',
        t('theme'),
        [['auto', t('themeAuto')], ['light', t('themeLight')], ['dark', t('themeDark')]],
        document.documentElement.dataset.theme ?? 'auto',
        setTheme,
      ), // prettier-ignore
      session === null ? null : el('span', { class: 'who' }, `${session.user} (${session.role})`),
      session === null ? null : el('button', { type: 'button', onclick: () => void logOut().catch((error) => toast(messageOf(error), true)) }, t('logOut')), // prettier-ignore
    ),
  );
}

function loginForm() {
  /** @param {SubmitEvent} event */
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(/** @type {HTMLFormElement} */ (event.target));
    const [user, password, token] = ['user', 'password', 'token'].map((name) => String(form.get(name) ?? ''));
    try {
      await logIn(token ? { token: token.trim() } : { user: (user ?? '').trim(), password: password ?? '' });
      loginTrouble = '';
      go();
    } catch (error) {
      loginTrouble = messageOf(error);
      draw();
    }
  };
  /** @param {string} name @param {string} label @param {Record<string, string>} more */
  const field = (name, label, more) =>
    el('div', { class: 'field' }, el('label', { for: name }, label), el('input', { id: name, name, ...more }));
  return el(
    'form',
    { class: 'login', onsubmit: submit },
    field('user', t('user'), { autocomplete: 'username' }),
    field('password', t('password'), { type: 'password', autocomplete: 'current-password' }),
    field('token', t('orToken'), { type: 'password', autocomplete: 'off' }),
    el('p', { class: 'trouble', role: 'alert' }, loginTrouble),
    el('button', { type: 'submit', class: 'primary' }, t('logIn')),
  );
}

whenEnded(() => {
  current?.stop.abort();
  for (const dialog of document.querySelectorAll('dialog')) dialog.close();
  loginTrouble = '';
  toast(t('sessionEnded'));
  draw();
});
addEventListener('hashchange', go);
document.addEventListener('keydown', (event) => {
  const isTyping = event.target instanceof Element && event.target.closest('input, select, textarea, dialog') !== null;
  if (event.key !== '/' || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const filter = document.getElementById('filter');
  if (filter === null) return;
  event.preventDefault();
  filter.focus();
});
// Ages grow by themselves.
setInterval(() => document.hidden || currentSession() === null || drawSoon(), 1000);

document.body.append(root);
try {
  await resume();
  go();
} catch (error) {
  patch(root, [el('p', { class: 'notice bad', role: 'alert' }, messageOf(error))]);
}
