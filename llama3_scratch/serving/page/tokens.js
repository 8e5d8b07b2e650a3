/* An answer as its tokens, each coloured by how probable it was; arrows move between them, Enter or a click opens one. */

import { make, roving } from "./dom.js";
import { t } from "./i18n.js";

const SURPRISE = 6; // nats, at which the colour is full

export const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return `${share >= 9.95 ? share.toFixed(0) : share >= 0.001 ? share.toPrecision(2) : "< 0.001"} %`;
};

/** A token's text so that all of it can be seen. */
export const visible = (text) =>
  text === "" ? "∅" : text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));

/** Colour an element by a log-probability. */
export function paint(element, logprob) {
  const much = Math.min(1, -logprob / SURPRISE);
  element.style.backgroundColor = `color-mix(in srgb, var(--surprise) ${Math.round(70 * much)}%, transparent)`;
}

/** Show the tokens in `element`, from the first that isn't there yet; `open(index)` is called for a chosen one. */
export function render(tokens, element, open) {
  if (!element.dataset.tokens) {
    element.dataset.tokens = "0";
    element.replaceChildren();
    roving(element, ".token");
    const choose = (event) => {
      const token = event.target.closest(".token");
      if (token) open([...element.children].indexOf(token));
    };
    element.addEventListener("click", choose);
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(event);
    });
  }
  for (const { text, logprob } of tokens.slice(element.children.length)) {
    const label = t("tokenLabel", { token: visible(text), share: percent(logprob) });
    const first = !element.children.length;
    const token = make("span", { class: "token", role: "button", tabindex: first ? 0 : -1, "aria-label": label, title: label }, text);
    if (logprob !== null) paint(token, logprob);
    element.append(token);
  }
}
