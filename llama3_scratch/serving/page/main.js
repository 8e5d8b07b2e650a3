/* The page as a whole: its three views by the address's hash, dialogs, keys, colours, and the models of the server. */

import { models } from "./api.js";
import * as chat from "./chat.js";
import { find, findAll, roving } from "./dom.js";
import { t, translate } from "./i18n.js";
import * as look from "./look.js";
import * as pages from "./pages.js";
import { prove } from "./proof.js";
import * as settings from "./settings.js";
import * as form from "./settings_form.js";
import * as studio from "./studio.js";

const VIEWS = ["chat", "studio", "engine"];
const addresses = { chat: chat.address, studio: studio.address }; // of what is open there
let found = []; // the server's models

/** Show the view that the address names: `#chat/ID`, `#studio/ID`, `#engine`. */
function route() {
  const [name, id] = location.hash.slice(1).split("/");
  const view = VIEWS.includes(name) ? name : "chat";
  for (const other of VIEWS) {
    find(`#view-${other}`).hidden = other !== view;
    const tab = find(`#tab-${other}`);
    tab.setAttribute("aria-selected", other === view);
    tab.tabIndex = other === view ? 0 : -1;
  }
  document.body.dataset.view = view;
  if (view === "engine") pages.begin();
  else pages.end();
  if (view === "chat") chat.open(id);
  else look.close();
  if (view === "studio") studio.open(id);
}

function paint() {
  const chosen = settings.get("theme");
  const dark = chosen === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : chosen === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

async function connect() {
  const notice = find("#notice");
  try {
    found = await models();
    notice.textContent = "";
  } catch (error) {
    found = [];
    notice.textContent = error.status === 401 ? t("wantsKey") : t("failed", { why: error.message });
    if (error.status === 401) openSettings();
  }
  chat.useModels(found);
  studio.useModels(found);
  form.draw(found);
}

function openSettings() {
  form.draw(found);
  if (!find("#settings").open) find("#settings").showModal();
}

function keys(event) {
  const typing = event.target.matches("input, textarea, select");
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (look.close() || chat.stop()) event.preventDefault();
    document.body.classList.remove("listing");
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?") find("#help").showModal();
  if (event.key === "n" && document.body.dataset.view === "chat") {
    event.preventDefault();
    chat.open();
  }
  if (event.key === "/" && document.body.dataset.view === "chat") {
    event.preventDefault();
    find("#write").focus();
  }
}

paint();
translate();
chat.begin();
studio.begin();
roving(find("#views"), "[role=tab]");
for (const view of VIEWS) find(`#tab-${view}`).addEventListener("click", () => (location.hash = addresses[view]?.() ?? view));
for (const close of findAll("dialog .close")) close.addEventListener("click", () => close.closest("dialog").close());
find("#settings-open").addEventListener("click", openSettings);
find("#help-open").addEventListener("click", () => find("#help").showModal());
find("#menu").addEventListener("click", () => document.body.classList.toggle("listing"));
find("#defaults").addEventListener("click", () => (form.defaults(), form.draw(found)));
find("#proof-run").addEventListener("click", () => found.length && prove(found.find(({ id }) => id === settings.get("model")) ?? found[0]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
document.addEventListener("keydown", keys);
window.addEventListener("hashchange", route);
settings.listen((names) => {
  if (names.includes("theme")) paint();
  if (names.includes("key")) connect();
  if (names.includes("language")) {
    translate();
    form.draw(found);
  }
});
route();
await connect();
document.documentElement.dataset.ready = "";
