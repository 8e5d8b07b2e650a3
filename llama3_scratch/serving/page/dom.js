/* Making elements: a tag, attributes, handlers, children; a text is always text, and never read as HTML. */

export const find = (selector, root = document) => root.querySelector(selector);
export const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element. `onclick` and its kin are handlers, `style` is an object, true is an attribute without a value. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** A button that does something; `label` is for people who don't see its sign. */
export function button(sign, label, onclick, attributes = {}) {
  const more = label === sign ? {} : { "aria-label": label, title: label };
  return make("button", { type: "button", onclick, ...more, ...attributes }, sign);
}

/** One of a row of elements is in the tab order, arrows move between them. */
export function roving(root, selector) {
  const all = () => findAll(selector, root);
  const enter = (element) => {
    for (const other of all()) other.tabIndex = other === element ? 0 : -1;
  };
  root.addEventListener("focusin", (event) => {
    const element = event.target.closest(selector);
    if (element) enter(element);
  });
  root.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const elements = all(), at = elements.indexOf(event.target.closest(selector));
    if (at < 0) return;
    const to = event.key === "Home" ? 0 : event.key === "End" ? elements.length - 1 : at + (steps[event.key] ?? 0);
    if (to === at || !elements[to]) return;
    event.preventDefault();
    enter(elements[to]);
    elements[to].focus();
  });
}

/** Have a screen reader say something, when it has time. */
export function announce(text) {
  find("#said").textContent = text;
}

/** Have the browser save a text as a file. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
