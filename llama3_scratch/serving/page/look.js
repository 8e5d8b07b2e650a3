/* The panel beside the chat that shows why a token was said: its alternatives, the layers, the attention, the trace. */

import { ask } from "./api.js";
import { drawAttention } from "./attention.js";
import { announce, button, find, findAll, make, roving } from "./dom.js";
import { t } from "./i18n.js";
import { drawLens } from "./lens.js";
import { percent, visible } from "./tokens.js";

const panel = () => find("#look");
const VIEWS = ["lens", "attention", "trace"];
let view = "lens";
let returnTo = null; // who had the focus before

/**
 * Open the panel for a token. `asked` is the text up to it as the server wants it, {messages} or {prompt}; `branch(token)`
 * goes on from there with another one.
 */
export function open({ tokens, index, asked, branch }) {
  const token = tokens[index];
  if (panel().hidden) returnTo = document.activeElement;
  const title = make("h2", { tabindex: -1 }, make("span", { class: "token-name" }, visible(token.text)), ` ${percent(token.logprob)}`);
  const shown = make("div", { class: "look-view", role: "tabpanel", id: "look-view", tabindex: 0 });
  const tabs = make("div", { class: "tabs", role: "tablist", "aria-label": t("look") }, ...VIEWS.map((name) =>
    make("button", { type: "button", role: "tab", "aria-selected": name === view, "aria-controls": "look-view", tabindex: name === view ? 0 : -1, "data-view": name, onclick: () => choose(name) }, t(name))));
  roving(tabs, "button");
  const choose = (name) => {
    view = name;
    for (const tab of findAll("button", tabs)) tab.setAttribute("aria-selected", tab.dataset.view === name);
    fill(shown, { ...asked, said: token.bytes }, token);
  };
  panel().replaceChildren(
    make("header", {},
      make("p", { class: "quiet" }, t("tokenOf", { at: index + 1, all: tokens.length })),
      button("×", t("close"), close, { class: "plain" }), title),
    make("h3", {}, t("alternatives")),
    alternatives(token, branch),
    tabs, shown,
  );
  panel().hidden = false;
  document.body.classList.add("looking");
  choose(view);
  title.focus({ preventScroll: true });
}

export function close() {
  if (panel().hidden) return false;
  panel().hidden = true;
  document.body.classList.remove("looking");
  for (const token of findAll(".token.open")) token.classList.remove("open");
  if (returnTo?.isConnected) returnTo.focus();
  return true;
}

function alternatives(token, branch) {
  const rest = 1 - token.top.reduce((sum, { logprob }) => sum + Math.exp(logprob), 0);
  const rows = token.top.map((other) => {
    const said = String(other.bytes) === String(token.bytes);
    const sayable = other.text !== "" && !other.text.includes("\ufffd"); // half a character can't be sent as text
    const name = t("goOnWith", { token: visible(other.text) });
    const attributes = { class: "alternative", onclick: () => branch(other), disabled: said || !sayable, ...(said ? { "aria-current": "true" } : {}), "aria-label": `${name}, ${percent(other.logprob)}`, title: name };
    return make("li", {}, make("button", { type: "button", ...attributes },
      make("span", { class: "token-name" }, visible(other.text)), bar(Math.exp(other.logprob)), make("span", { class: "share" }, percent(other.logprob))));
  });
  const others = make("li", { class: "alternative quiet" }, make("span", {}, t("others")), bar(rest), make("span", { class: "share" }, percent(Math.log(Math.max(rest, 1e-9)))));
  return make("ol", { class: "alternatives" }, ...rows, others);
}

const bar = (share) => make("span", { class: "bar", "aria-hidden": "true" }, make("span", { style: { width: `${100 * Math.min(1, Math.max(0, share))}%` } }));

let asking = null; // what the last click asked for, which the next one calls off

async function fill(element, asked, token) {
  asking?.abort();
  const { signal } = (asking = new AbortController());
  if (view === "trace") return fillTrace(element, asked, signal);
  element.replaceChildren(make("p", { class: "quiet" }, t("computing")));
  try {
    const found = await ask("POST", `/v1/look/${view}`, asked, signal);
    element.replaceChildren(...(view === "lens" ? drawLens(found, token) : drawAttention(found)));
  } catch (error) {
    if (error.name !== "AbortError") element.replaceChildren(make("p", { class: "error", role: "alert" }, error.message));
  }
}

function fillTrace(element, asked, signal) {
  const made = make("div", {});
  const begin = button(t("traceMake"), t("traceMake"), async () => {
    made.replaceChildren(make("p", { class: "quiet" }, t("computing")));
    try {
      const { url, n_tokens: n, n_bytes: size } = await ask("POST", "/v1/look/trace", asked, signal);
      const words = t("traceOpen", { n, size: (size / 1e6).toFixed(1) });
      const link = make("a", { class: "button", href: url, target: "_blank", rel: "noopener" }, words);
      made.replaceChildren(link);
      link.focus();
      announce(words);
    } catch (error) {
      if (error.name !== "AbortError") made.replaceChildren(make("p", { class: "error", role: "alert" }, error.message));
    }
  });
  element.replaceChildren(make("p", { class: "quiet" }, t("traceText")), begin, made);
}
