/**
 * Elements, and how what is shown is brought up to date in place: focus, scrolling and what is typed stay where they are.
 * Text goes in as text only; nothing is ever parsed as HTML.
 */
const svgNames = new Set(['svg', 'g', 'path', 'line', 'rect', 'circle', 'text', 'title']);
const handlers = ['onclick', 'onsubmit', 'oninput', 'onchange', 'onkeydown'];
const svgSpace = 'http://www.w3.org/2000/svg';

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 * @typedef {Record<string, unknown> & { key?: string }} Props `key` tells siblings apart when their order changes
 */

/**
 * @param {string} tag `svg:title` is the title of a drawing, `title` would be that of the page
 * @param {Props} [props] handlers begin with `on`; false, null and undefined leave an attribute out
 * @param {...(Child | Child[] | (Child | Child[])[])} children
 * @returns {HTMLElement}
 */
export function el(tag, props = {}, ...children) {
  const name = tag.replace(/^svg:/, '');
  const node = svgNames.has(name) ? document.createElementNS(svgSpace, name) : document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === 'key') node.dataset.key = String(value);
    else if (key.startsWith('on')) /** @type {any} */ (node)[key] = value;
    else node.setAttribute(key, value === true ? '' : String(value));
  }
  node.append(...nodesOf(children));
  return /** @type {HTMLElement} */ (node);
}

/**
 * @param {(Child | Child[] | (Child | Child[])[])[]} children
 * @returns {(Node | string)[]}
 */
export function nodesOf(children) {
  return children
    .flat(2)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/**
 * Makes the children of `parent` look like `wanted`, keeping the nodes that are there.
 * @param {Node} parent
 * @param {(Node | string)[]} wanted
 */
export function patch(parent, wanted) {
  const nodes = wanted.map((child) => (child instanceof Node ? child : document.createTextNode(child)));
  const keys = new Set(nodes.map(keyOf));
  const keyed = new Map();
  for (const child of parent.childNodes) if (keyOf(child) !== undefined) keyed.set(keyOf(child), child);
  let at = parent.firstChild;
  for (const node of nodes) {
    const key = keyOf(node);
    while (at !== null && keyOf(at) !== undefined && !keys.has(keyOf(at))) at = removed(at);
    const match = key === undefined ? (at !== null && keyOf(at) === undefined ? at : undefined) : keyed.get(key); // prettier-ignore
    if (match === undefined || !isLike(match, node)) {
      parent.insertBefore(node, at);
      continue;
    }
    if (match === at) at = match.nextSibling;
    else parent.insertBefore(match, at);
    update(match, node);
  }
  while (at !== null) at = removed(at);
}

/** @param {ChildNode} node */
function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}
/** @param {Node} node */
function keyOf(node) {
  return node instanceof HTMLElement || node instanceof SVGElement ? node.dataset.key : undefined;
}
/** @param {Node} a @param {Node} b */
function isLike(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName;
}

/** @param {Node} old @param {Node} now */
function update(old, now) {
  if (!(old instanceof Element && now instanceof Element)) {
    if (old.nodeValue !== now.nodeValue) old.nodeValue = now.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // What a person has opened stays open.
    if (!now.hasAttribute(name) && !(name === 'open' && old.nodeName === 'DETAILS')) old.removeAttribute(name);
  }
  for (const { name, value } of now.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of handlers) /** @type {any} */ (old)[name] = /** @type {any} */ (now)[name];
  patch(old, [...now.childNodes]);
}
