/** Dialogs: questions before something is done, with fields; dangerous ones want a name typed. Errors stay in the dialog. */
import { Problem } from './api.js';
import { el } from './dom.js';
import { t } from './text.js';

/**
 * @typedef {object} Field
 * @property {string} name
 * @property {string} label
 * @property {'text' | 'password' | 'number' | 'checkbox' | 'select' | 'datetime-local'} [type]
 * @property {string | number | boolean} [value]
 * @property {{ value: string, label: string }[]} [options] of a select; of a text: suggestions
 * @property {string} [hint]
 * @property {boolean} [optional]
 * @property {string} [autocomplete]
 * @property {(values: Record<string, any>) => boolean} [when] shown and sent only then
 * @property {(values: Record<string, any>, dialog: HTMLDialogElement) => void} [changed]
 */

/**
 * @param {object} ask
 * @param {string} ask.title
 * @param {string} [ask.about] what it does
 * @param {Field[]} [ask.fields]
 * @param {string} [ask.typed] has to be typed before it can be done
 * @param {string} ask.verb on the button
 * @param {(values: Record<string, any>) => Promise<unknown>} ask.run closes when it resolves
 */
export function openDialog({ title, about, fields = [], typed, verb, run }) {
  const all = typed === undefined ? fields : [...fields, { name: 'typed', label: t('typeName', { name: typed }) }];
  const before = document.activeElement;
  const trouble = el('p', { class: 'trouble', role: 'alert' });
  const form = /** @type {HTMLFormElement} */ (
    el(
      'form',
      { onsubmit: submit, oninput: refresh, autocomplete: 'off' },
      el('h2', { id: 'dialog-title' }, title),
      about === undefined ? null : el('p', {}, about),
      ...all.map(fieldOf),
      trouble,
      el(
        'div',
        { class: 'buttons' },
        el('button', { type: 'button', onclick: () => dialog.close() }, t('cancelDialog')),
        el('button', { type: 'submit', class: typed === undefined ? 'primary' : 'danger' }, verb),
      ),
    )
  );
  const dialog = /** @type {HTMLDialogElement} */ (el('dialog', { 'aria-labelledby': 'dialog-title' }, form));
  dialog.addEventListener('close', () => {
    dialog.remove();
    if (before instanceof HTMLElement && before.isConnected) before.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
  refresh();
  return dialog;

  function refresh() {
    const given = values();
    for (const field of all) {
      const row = form.querySelector(`[data-field="${field.name}"]`);
      if (row instanceof HTMLElement) row.hidden = field.when !== undefined && !field.when(given);
    }
    const button = /** @type {HTMLButtonElement} */ (form.querySelector('[type=submit]'));
    button.disabled = typed !== undefined && given['typed'] !== typed;
  }
  function values() {
    /** @type {Record<string, any>} */
    const given = {};
    for (const { name, type } of all) {
      const control = /** @type {HTMLInputElement} */ (form.elements.namedItem(name));
      given[name] =
        type === 'checkbox' ? control.checked : type === 'number' ? control.valueAsNumber : control.value.trim();
    }
    return given;
  }
  /** @param {SubmitEvent} event */
  async function submit(event) {
    event.preventDefault();
    const given = values();
    const button = /** @type {HTMLButtonElement} */ (form.querySelector('[type=submit]'));
    if (button.disabled) return;
    button.disabled = true;
    try {
      await run(given);
      dialog.close();
    } catch (error) {
      trouble.textContent = messageOf(error);
      refresh();
    }
  }
  /** @param {Field} field */
  function fieldOf(field) {
    const id = `field-${field.name}`;
    return el(
      'div',
      { class: field.type === 'checkbox' ? 'field check' : 'field', 'data-field': field.name },
      el('label', { for: id }, field.label),
      controlOf(field, id),
      field.hint === undefined ? null : el('small', { id: `${id}-hint` }, field.hint),
    );
  }
  /** @param {Field} field @param {string} id */
  function controlOf(field, id) {
    const { name, type = 'text', value, options = [], hint, changed } = field;
    const described = hint === undefined ? {} : { 'aria-describedby': `${id}-hint` };
    const onchange = changed === undefined ? undefined : () => changed(values(), dialog);
    if (type === 'select')
      return el(
        'select',
        { id, name, onchange, ...described },
        ...options.map((one) => el('option', { value: one.value, selected: one.value === value }, one.label)),
      );
    const shared = { id, name, type, onchange, autocomplete: field.autocomplete ?? 'off', ...described };
    if (type === 'checkbox') return el('input', { ...shared, checked: value === true });
    const least = type === 'number' ? { min: 1, step: 1 } : type === 'datetime-local' ? { step: 1 } : {};
    const list = options.length === 0 ? {} : { list: `${id}-list` };
    const required = field.optional !== true && field.when === undefined;
    const input = el('input', { ...shared, ...least, ...list, value: value ?? '', required });
    if (options.length === 0) return input;
    return el('span', {}, input, el('datalist', { id: `${id}-list` }, ...options.map((one) => el('option', one))));
  }
}

/** @param {unknown} error */
export function messageOf(error) {
  if (error instanceof Problem) return error.message;
  if (error instanceof TypeError) return t('noReach');
  return error instanceof Error ? error.message : String(error);
}

/** Tells at the foot of the page, to eyes and to screen readers. @param {string} text @param {boolean} [isBad] */
export function toast(text, isBad = false) {
  let place = document.getElementById('toasts');
  if (place === null) {
    place = el('div', { id: 'toasts', role: 'status' });
    document.body.append(place);
  }
  const one = el('p', { class: isBad ? 'toast bad' : 'toast' }, text);
  place.append(one);
  setTimeout(() => one.remove(), isBad ? 12_000 : 5000);
}

/** Runs an action that needs no question, and says how it went. @param {string} what @param {() => Promise<unknown>} run */
export async function act(what, run) {
  try {
    await run();
    toast(t('done', { what }));
  } catch (error) {
    toast(t('refused', { what, why: messageOf(error) }), true);
  }
}
