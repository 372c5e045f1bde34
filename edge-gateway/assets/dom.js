/**
 * Making and changing elements.
 *
 * Invariant: whatever comes from the server enters the page as text, never as markup; nothing here can pass markup.
 * Knows nothing of jobs.
 */

const SVG = 'http://www.w3.org/2000/svg';
const SVG_TAGS = new Set(['svg', 'polyline']);

export const $ = (id) => document.getElementById(id);

/**
 * Makes an element. Attributes are set as such, except that `onclick` and its like are listeners, `true` stands for an
 * empty attribute, and `undefined` and `false` for none; children are nodes or text, and absent ones are left out.
 */
export function make(tag, attributes = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

/** Sets text only when it differs, so that selections and live regions are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Says something to screen readers. */
export function announce(text) {
  $('announcer').textContent = text;
}
