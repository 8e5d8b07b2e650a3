/* Attention at one position: the conversation's tokens coloured by a head's weights, and a grid of all heads. */

import { make, roving } from "./dom.js";
import { t } from "./i18n.js";
import { percent, visible } from "./tokens.js";

/** The elements for what `/v1/look/attention` found. */
export function drawAttention({ tokens, shape: [layers, heads, n], weights }) {
  const bytes = Uint8Array.from(atob(weights), (char) => char.charCodeAt(0));
  const weight = (layer, head, token) => (bytes[(layer * heads + head) * n + token] / 255) ** 2;
  let layer = layers - 1, head = null, token = n - 1, skipFirst = n > 1; // head null: their mean

  const words = make("div", { class: "attended", role: "group", "aria-label": t("attention") }, ...tokens.map((text, i) =>
    make("span", { class: "token", role: "button", tabindex: i ? -1 : 0, "data-at": i }, text)));
  const says = make("p", { class: "quiet", "aria-live": "polite" });
  const grid = make("div", { class: "heads", role: "group" });
  grid.style.gridTemplateColumns = `repeat(${heads}, minmax(9px, 22px))`;
  for (let i = 0; i < layers * heads; i++) grid.append(make("button", { type: "button", tabindex: i ? -1 : 0, "data-at": i }));
  const onLayer = make("input", { type: "range", min: 0, max: layers - 1, value: layer, "aria-label": t("layer"), oninput: (event) => { layer = +event.target.value; head = null; draw(); } });
  const skip = make("input", { type: "checkbox", onchange: (event) => { skipFirst = event.target.checked; draw(); } });
  skip.checked = skipFirst;

  const share = (at) => {
    const mean = Array.from({ length: heads }, (_, h) => weight(layer, h, at)).reduce((a, b) => a + b) / heads;
    return head === null ? mean : weight(layer, head, at);
  };
  const tint = (element, much) => { element.style.backgroundColor = `color-mix(in srgb, var(--accent) ${Math.round(85 * Math.min(1, much))}%, transparent)`; };

  function draw() {
    const shares = tokens.map((_, at) => share(at));
    const most = Math.max(...shares.slice(skipFirst ? 1 : 0), 1e-6);
    [...words.children].forEach((span, at) => {
      tint(span, skipFirst && !at ? 0 : shares[at] / most);
      span.setAttribute("aria-label", t("tokenLabel", { token: visible(tokens[at]), share: percent(Math.log(shares[at])) }));
      span.title = span.getAttribute("aria-label");
      span.classList.toggle("open", at === token);
    });
    const name = visible(tokens[token]);
    grid.setAttribute("aria-label", t("gridLabel", { token: name }));
    [...grid.children].forEach((cell, i) => {
      const l = Math.floor(i / heads), h = i % heads, much = weight(l, h, token);
      tint(cell, Math.sqrt(much));
      cell.setAttribute("aria-label", t("headLabel", { layer: l, head: h, share: percent(Math.log(much)), token: name }));
      cell.title = cell.getAttribute("aria-label");
      cell.setAttribute("aria-pressed", l === layer && (head === null || h === head));
    });
    onLayer.value = layer;
    says.textContent = `${t("layer")} ${layer} · ${head === null ? t("allHeads") : `${t("head")} ${head}`} · ${visible(tokens[token])} ${percent(Math.log(share(token)))}`;
  }

  const pick = (root, selector, chosen) => {
    roving(root, selector);
    root.addEventListener("click", (event) => {
      const element = event.target.closest(selector);
      if (element) chosen(+element.dataset.at);
    });
  };
  pick(words, ".token", (at) => { token = at; draw(); });
  words.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") event.preventDefault(), event.target.click();
  });
  pick(grid, "button", (at) => { [layer, head] = [Math.floor(at / heads), at % heads]; draw(); });
  draw();
  queueMicrotask(() => { words.scrollTop = words.scrollHeight; });
  return [
    make("p", { class: "quiet" }, t("attentionText")),
    make("label", { class: "line" }, t("layer"), onLayer), says, words,
    make("label", { class: "line" }, skip, t("firstToken")),
    make("p", { class: "quiet" }, t("gridText")),
    make("div", { class: "scroll" }, grid),
  ];
}
