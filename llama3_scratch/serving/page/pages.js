/* The pages of the cache as they are now: a square a page, a colour a request, stripes where several hold the same one. */

import { ask } from "./api.js";
import { find, make } from "./dom.js";
import { t } from "./i18n.js";

const EVERY = 700; // milliseconds
let timer = null;

/** Draw them again and again until `end`. */
export function begin() {
  end();
  look();
}

export function end() {
  clearTimeout(timer);
  timer = null;
}

async function look() {
  const mine = (timer = setTimeout(look, EVERY));
  try {
    const found = await ask("GET", "/v1/look/pages");
    if (timer === mine) draw(found);
  } catch (error) {
    find("#pages-sum").textContent = error.message;
    if (error.status === 403) end();
  }
}

const colour = (request) => `hsl(${(request * 137.5) % 360} 55% 52%)`;

function fillOf(held) {
  if (held.length === 1) return colour(held[0]);
  const width = 100 / Math.min(held.length, 5);
  const stripes = held.slice(0, 5).map((request, i) => `${colour(request)} ${i * width}% ${(i + 1) * width}%`);
  return `linear-gradient(90deg, ${stripes.join(", ")})`;
}

function draw({ page_tokens: size, n_pages: n, pages, requests }) {
  const grid = find("#pages"), used = new Map(pages.map(({ page, held_by: held }) => [page, held]));
  while (grid.children.length > n) grid.lastChild.remove();
  while (grid.children.length < n) grid.append(make("i"));
  [...grid.children].forEach((cell, page) => {
    const held = used.get(page), state = held ? held.join() || "cached" : "";
    if (cell.dataset.state === state) return;
    cell.dataset.state = state;
    cell.style.background = held?.length ? fillOf(held) : "";
    cell.title = held?.length ? held.map((request) => t("requestName", { n: request })).join(", ") : "";
  });
  const held = pages.filter((page) => page.held_by.length), shared = held.filter((page) => page.held_by.length > 1);
  find("#engine-text").textContent = t("engineText", { n: size });
  const sum = { n, held: held.length, shared: shared.length, cached: pages.length - held.length, free: n - pages.length };
  find("#pages-sum").textContent = t("pagesSum", sum);
  const rows = requests.map((request) => make("li", {},
    make("i", { style: { background: colour(request.request) } }),
    make("b", {}, t("requestName", { n: request.request })), ` ${t("requestText", { prompt: request.prompt_tokens, cached: request.cached_tokens })}`));
  find("#pages-requests").replaceChildren(...(rows.length ? rows : [make("li", { class: "quiet" }, t("idle"))]));
}
