/* The logit lens as a table: a row a layer, the last on top, its likeliest next tokens and the share of the one said. */

import { make } from "./dom.js";
import { t } from "./i18n.js";
import { percent, visible } from "./tokens.js";

/** The elements for what `/v1/look/lens` found; `token` is the one that was said. */
export function drawLens({ layers }, token) {
  const name = visible(token.text), known = layers[0].said !== undefined;
  const head = make("tr", {}, make("th", { scope: "col" }, t("layer")),
    known ? make("th", { scope: "col", class: "number" }, t("saidShare", { token: name })) : null,
    ...layers[0].top.map((_, i) => make("th", { scope: "col" }, `${i + 1}.`)));
  const rows = [...layers].reverse().map(({ layer, top, said }) =>
    make("tr", {}, make("th", { scope: "row" }, String(layer)),
      known ? make("td", { class: "number" }, percent(Math.log(said))) : null,
      ...top.map((one) => cell(one, one.token === token.text))));
  const table = make("table", { class: "lens" }, make("thead", {}, head), make("tbody", {}, ...rows));
  return [make("p", { class: "quiet" }, t("lensText")), make("div", { class: "scroll", tabindex: 0 }, table)];
}

function cell({ token, probability }, isSaid) {
  const share = percent(Math.log(probability));
  const td = make("td", { class: isSaid ? "is-said" : "", title: `${visible(token)} ${share}` }, visible(token));
  td.style.backgroundColor = `color-mix(in srgb, var(--accent) ${Math.round(75 * probability)}%, transparent)`;
  return td;
}
