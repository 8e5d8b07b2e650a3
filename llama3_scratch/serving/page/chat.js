/* The chat: the branch of a conversation that is shown, what its buttons do, and answers that grow in it. */

import { answer, asked, withoutTokens } from "./answer.js";
import * as composer from "./composer.js";
import { announce, button, find, findAll, make } from "./dom.js";
import { t } from "./i18n.js";
import * as look from "./look.js";
import { editor, messageElement, update } from "./message.js";
import * as settings from "./settings.js";
import * as sidebar from "./sidebar.js";
import * as store from "./store.js";

const NEAR = 40; // pixels from the end within which the view goes along with a growing answer
const thread = () => find("#thread");

let models = []; // the server's
let current = store.newConversation(); // what is shown; kept once it has a message
const running = new Map(); // conversation id → {place, controller}: an answer goes on while another conversation is read
let follows = true; // whether the view goes along

const model = () => models.find(({ id }) => id === settings.get("model")) ?? models[0];
const isRunning = (place) => running.get(current.id)?.place === place;

export function begin() {
  composer.begin({ send, previous: editLast });
  sidebar.begin();
  find("#stop").addEventListener("click", stop);
  find("#new").addEventListener("click", () => open());
  find("#look-toggle").addEventListener("change", (event) => settings.set({ look: event.target.checked }));
  thread().addEventListener("scroll", () => {
    follows = thread().scrollHeight - thread().scrollTop - thread().clientHeight < NEAR;
    find("#to-end").hidden = follows;
  });
  find("#to-end").addEventListener("click", () => toEnd());
  store.listen((kind, id, elsewhere) => {
    if (kind !== "conversation") return;
    sidebar.draw(current.id, open);
    if (elsewhere && id === current.id && !running.has(id)) {
      current = store.get("conversation", id) ?? store.newConversation();
      draw();
    }
  });
  settings.listen((names) => {
    if (names.some((name) => ["look", "language", "model"].includes(name))) draw();
    if (names.includes("look") && !settings.get("look")) look.close();
  });
  window.addEventListener("pagehide", () => {
    for (const id of running.keys()) store.keep("conversation", store.get("conversation", id));
  });
}

export function useModels(found) {
  models = found;
  draw();
}

/** Show a conversation, or begin a new one. */
export function open(id) {
  look.close();
  current = store.get("conversation", id) ?? store.newConversation();
  if (location.hash !== `#${address()}`) history.pushState(null, "", `#${address()}`);
  document.body.classList.remove("listing");
  draw();
  toEnd();
  composer.focus();
}

/** Where what is shown is found again. */
export const address = () => (store.get("conversation", current.id) ? `chat/${current.id}` : "chat");

export function draw() {
  sidebar.draw(current.id, open);
  find("#look-toggle").checked = settings.get("look");
  find("#legend").hidden = !settings.get("look");
  const places = store.path(current);
  thread().replaceChildren(...(places.length ? places.map(element) : [greeting()]));
  places.forEach(refresh);
  drawRunning();
}

function greeting() {
  const chats = model()?.meta.chat !== false;
  const examples = chats ? ["example1", "example2", "example3"].map((name) => button(t(name), t(name), () => send(t(name)))) : [];
  const words = !models.length ? "" : chats ? t("greetingText", { model: model().id }) : t("completes");
  return make("div", { class: "greeting" }, make("h2", {}, t("greeting")), make("p", { class: "quiet" }, words), make("div", { class: "examples" }, ...examples));
}

function element(place) {
  const act = {
    edit: () => edit(place),
    again: () => again(place),
    goOn: () => goOn(place),
    show: (other) => showVersion(place, other),
    openToken: (index) => openToken(place, index),
  };
  const made = messageElement(current.nodes[place], place, store.siblings(current, place), act);
  made.act = act;
  return made;
}

function refresh(place) {
  const shown = find(`[data-place="${place}"]`, thread());
  if (shown && !find(".editing", shown)) {
    update(shown, current.nodes[place], { look: settings.get("look"), running: isRunning(place), act: shown.act });
  }
}

function drawRunning() {
  const busy = running.has(current.id);
  find("#stop").hidden = !busy;
  find("#send").hidden = busy;
  thread().setAttribute("aria-busy", busy);
}

function toEnd() {
  thread().scrollTop = thread().scrollHeight;
}

// What people do

/** Whether it was sent: not while an answer is under way. */
function send(text) {
  if (running.has(current.id) || !models.length) return false;
  const place = store.add(current, current.leaf, { role: "user", text });
  begun(place);
  return true;
}

/** A message of the user's is there: have it answered. */
function begun(place) {
  current.changed = Date.now();
  store.keep("conversation", current);
  history.replaceState(null, "", `#chat/${current.id}`);
  run(store.add(current, place, { role: "assistant", text: "", system: settings.get("system") }));
}

function again(place) {
  if (running.has(current.id)) return;
  run(store.add(current, current.nodes[place].parent, { role: "assistant", text: "", system: settings.get("system") }));
}

/** Continue an answer; one that more was said behind stays as it is, and a copy of it is continued. */
function goOn(place) {
  const followed = current.nodes.some(({ parent }) => parent === place), { parent, ...node } = current.nodes[place];
  if (!running.has(current.id)) run(followed ? store.add(current, parent, { ...node, tokens: [...(node.tokens ?? [])] }) : place);
}

function edit(place) {
  if (running.has(current.id)) return;
  const node = current.nodes[place], user = node.role === "user";
  const back = () => {
    draw();
    find(`[data-place="${place}"] [data-act="edit"]`)?.focus();
  };
  editor(find(`[data-place="${place}"]`, thread()), node.text, user ? t("saveSend") : t("save"), {
    cancel: back,
    save: (text) => {
      if (user && !text.trim()) return;
      if (user) return begun(store.add(current, node.parent, { role: "user", text }));
      store.add(current, node.parent, { role: "assistant", text, finish: "stop", system: node.system });
      store.keep("conversation", current);
      back();
    },
  });
}

function editLast() {
  const mine = store.path(current).filter((place) => current.nodes[place].role === "user");
  if (mine.length) edit(mine.at(-1));
}

function showVersion(place, other) {
  look.close();
  const forward = other > place;
  store.show(current, other);
  store.keep("conversation", current);
  draw();
  const acts = findAll(`[data-place="${other}"] .versions button`, thread());
  (forward ? acts.reverse() : acts).find((act) => !act.disabled)?.focus();
}

export function stop() {
  const under = running.get(current.id);
  under?.controller.abort();
  return Boolean(under);
}

// Answers

async function run(place) {
  const conversation = current, node = conversation.nodes[place];
  if (running.has(conversation.id) || !models.length) return;
  const controller = new AbortController();
  running.set(conversation.id, { place, controller });
  conversation.leaf = place;
  draw();
  toEnd();
  announce(t("answering"));
  const said = speaker(node.text.length);
  let waiting = false;
  const changed = () => {
    if (waiting || conversation !== current) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (conversation !== current) return;
      refresh(place);
      if (follows) toEnd();
      said(node.text);
    });
  };
  const room = await answer(model(), conversation, place, { signal: controller.signal, changed });
  running.delete(conversation.id);
  if (conversation !== current) return;
  refresh(place);
  drawRunning();
  if (follows) toEnd();
  said(node.text, true);
  if (!room) find("#notice").textContent = t("noRoom");
}

/** Have a screen reader say a growing text, whole sentences at a time. */
function speaker(begin) {
  return (text, ended = false) => {
    const rest = text.slice(begin);
    const end = ended ? rest.length : Math.max(...[...rest.matchAll(/[.!?]\s|[。！？\n]/g)].map((found) => found.index + 1), 0);
    if (end) announce(rest.slice(0, end));
    else if (ended) announce(t("answered"));
    begin += end;
  };
}

// Look inside

function openToken(place, index) {
  const node = current.nodes[place];
  const begun = withoutTokens(node) + node.tokens.slice(0, index).map(({ text }) => text).join("");
  for (const token of findAll(".token.open", thread())) token.classList.remove("open");
  findAll(`[data-place="${place}"] .token`, thread())[index].classList.add("open");
  look.open({
    tokens: node.tokens,
    index,
    asked: asked(model(), current, place, begun),
    branch: (other) => {
      if (running.has(current.id)) return;
      const token = { ...node.tokens[index], ...other, top: node.tokens[index].top };
      const fields = { role: "assistant", text: begun + other.text, tokens: [...node.tokens.slice(0, index), token], system: node.system };
      look.close();
      run(store.add(current, node.parent, fields));
    },
  });
}
