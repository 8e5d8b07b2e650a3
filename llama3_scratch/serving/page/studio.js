/* The storyteller's studio: a story from a hero, a place, a mood and three words, told, changed sentence by sentence. */

import { ask, stream } from "./api.js";
import { announce, button, find, findAll, make, roving } from "./dom.js";
import { language, t } from "./i18n.js";
import * as settings from "./settings.js";
import * as store from "./store.js";

const TOKENS = 320; // of a story, or of what follows a changed sentence
const SENTENCE = /[^.!?。！？]*[.!?。！？]+["”’」』)]*\s*|[^.!?。！？]+$/g;
const FIELDS = ["hero", "place", "mood", "words"];
// What a model that chats is asked, and how a story begins for one that only goes on with text.
const ASK = {
  en: ({ hero, place, mood, words }) => `Write a short ${mood} story for a small child. The hero is ${hero}. It happens here: ${place}. Use these words: ${words}. Write only the story.`,
  zh: ({ hero, place, mood, words }) => `给小朋友写一个短故事，气氛是${mood}。主角：${hero}。地点：${place}。必须用到这些词：${words}。只写故事。`,
};
const BEGIN = {
  en: ({ hero, place, words }) => `Once upon a time there was ${hero}. The story takes place here: ${place}. There was something about ${words}.`,
  zh: ({ hero, place, words }) => `从前，在${place}，有${hero}。这个故事里有${words}。`,
};

let models = [];
let story = null;
let controller = null; // of what is being told

const model = () => models.find(({ id }) => id === settings.get("model")) ?? models[0];
const painter = () => models.find(({ meta }) => meta.images); // a model that makes pictures

export function begin() {
  find("#story-form").addEventListener("submit", (event) => {
    event.preventDefault();
    tell(event.submitter?.value === "3" ? 3 : 1);
  });
  find("#story-stop").addEventListener("click", () => controller?.abort());
  find("#story-print").addEventListener("click", () => print());
  find("#story-illustrate").addEventListener("click", illustrate);
  roving(find("#story"), ".sentence");
  find("#story").addEventListener("click", (event) => openSentence(event.target.closest(".sentence")));
  find("#story").addEventListener("keydown", (event) => {
    if ((event.key !== "Enter" && event.key !== " ") || !event.target.matches(".sentence")) return;
    event.preventDefault();
    openSentence(event.target);
  });
  store.listen((kind) => kind === "story" && drawKept());
  settings.listen((names) => names.includes("language") && draw());
  draw();
}

export function useModels(found) {
  models = found;
  drawTools();
}

export function open(id) {
  if (controller || story?.id === id) return;
  story = store.get("story", id) ?? null;
  if (story) for (const name of FIELDS) find(`#story-${name}`).value = story[name];
  draw();
}

/** Where what is shown is found again. */
export const address = () => (store.get("story", story?.id) ? `studio/${story.id}` : "studio");

// What is seen

function draw() {
  for (const [list, name] of [["heroes", "hero"], ["places", "place"], ["moods", "mood"]]) {
    const choices = t(list).split("|");
    find(`#list-${list}`).replaceChildren(...choices.map((value) => make("option", { value })));
    find(`#story-${name}`).placeholder = choices[0];
  }
  find("#story-words").placeholder = t("someWords");
  drawStory();
  drawKept();
}

function drawStory() {
  const text = story?.text ?? "", sentences = text.match(SENTENCE) ?? [];
  const shown = sentences.map((sentence, i) =>
    make("span", { class: "sentence", role: "button", tabindex: i ? -1 : 0, title: t("change"), "aria-label": `${sentence.trim()} ${t("change")}` }, sentence));
  find("#story").replaceChildren(...shown);
  find("#story-title").textContent = story ? `${story.hero}, ${story.place}` : "";
  const words = (story?.words ?? "").split(/[,，、]\s*/).filter(Boolean);
  const came = (word) => text.toLowerCase().includes(word.trim().toLowerCase());
  find("#story-chips").replaceChildren(...words.map((word) => make("li", { class: came(word) ? "came" : "" }, `${came(word) ? "✓" : "○"} ${word}`)));
  drawTools();
}

function drawTools() {
  const telling = Boolean(controller);
  find("#story-stop").hidden = !telling;
  for (const teller of findAll("#story-form [type=submit]")) teller.disabled = telling;
  find("#story-print").hidden = telling || !story?.text;
  find("#story-illustrate").hidden = telling || !story?.text || !painter();
  find("#story-hint").hidden = telling || !story?.text;
}

function drawKept() {
  const stories = store.all("story");
  const items = stories.map((one) => make("li", {},
    make("a", { href: `#studio/${one.id}`, ...(one.id === story?.id ? { "aria-current": "page" } : {}) }, `${one.hero}, ${one.place}`),
    button("×", `${t("delete")}: ${one.hero}`, () => confirm(t("reallyDelete", { name: one.hero })) && store.remove("story", one.id), { class: "plain" })));
  find("#stories").replaceChildren(...(items.length ? items : [make("li", { class: "quiet" }, t("noStories"))]));
}

// Telling

function tell(n) {
  if (!models.length || controller) return;
  const fields = { language: language() };
  for (const name of FIELDS) {
    const box = find(`#story-${name}`);
    fields[name] = box.value = box.value.trim() || box.placeholder;
  }
  story = store.newStory({ ...fields, text: model().meta.chat === false ? BEGIN[fields.language](fields) : "" });
  goOn(n);
}

/** Let the story go on behind its text, in one way, or in several to choose from. */
async function goOn(n) {
  const begun = story.text, mine = story, boxes = n > 1 ? choices(n) : [];
  const ways = Array.from({ length: n }, () => "");
  find("#story-pictures").replaceChildren();
  controller = new AbortController();
  drawStory();
  announce(t("answering"));
  try {
    for await (const { index, text } of stream({ ...request(begun), n, max_tokens: TOKENS }, controller.signal)) {
      if (!text) continue;
      ways[index] += text;
      if (n === 1) {
        mine.text = begun + ways[0];
        drawStory();
      } else find("p", boxes[index]).textContent = ways[index];
    }
  } catch (error) {
    if (error.name !== "AbortError") find("#notice").textContent = error.message;
  }
  controller = null;
  if (n > 1) return offer(boxes, begun, ways);
  keep(mine);
}

function request(begun) {
  const fields = settings.sampling();
  const of = { ...fields, model: model().id };
  if (model().meta.chat === false) return { ...of, prompt: begun };
  const messages = [{ role: "user", content: ASK[story.language === "zh" ? "zh" : "en"](story) }];
  if (begun) messages.push({ role: "assistant", content: begun });
  return { ...of, messages };
}

function keep(told) {
  told.text = told.text.trimStart();
  told.changed = Date.now();
  if (!store.keep("story", told)) find("#notice").textContent = t("noRoom");
  history.replaceState(null, "", `#studio/${told.id}`);
  drawStory();
  announce(t("answered"));
}

function choices(n) {
  const boxes = Array.from({ length: n }, (_, i) => make("article", { class: "way", "aria-label": `${i + 1}` }, make("p")));
  find("#ways").replaceChildren(...boxes);
  return boxes;
}

function offer(boxes, begun, ways) {
  boxes.forEach((box, i) => box.append(button(t("choose"), t("choose"), () => {
    find("#ways").replaceChildren();
    story.text = begun + ways[i];
    keep(story);
    find(".sentence")?.focus();
  }, { class: "primary" })));
  drawTools();
  find("button", boxes[0]).focus();
}

// Changing

function openSentence(sentence) {
  if (!sentence || controller) return;
  const all = findAll(".sentence"), at = all.indexOf(sentence);
  const before = all.slice(0, at).map((one) => one.textContent).join(""), old = sentence.textContent;
  const box = make("textarea", { "aria-label": t("change"), rows: 2 });
  box.value = old.trim();
  const from = (n) => {
    find("#ways").replaceChildren();
    story.text = before + old.replace(old.trim(), () => box.value.trim());
    goOn(n);
  };
  const close = () => {
    drawStory();
    findAll(".sentence")[at]?.focus();
  };
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });
  sentence.replaceWith(make("span", { class: "changing" }, box,
    make("span", { class: "acts" },
      button(t("changeGoOn"), t("changeGoOn"), () => from(1), { class: "primary" }),
      button(t("another"), t("another"), () => from(3)),
      button(t("cancel"), t("cancel"), close)),
    make("span", { class: "quiet" }, t("dropRest"))));
  box.focus();
}

// Pictures, where a served model makes them

async function illustrate() {
  const what = `${story.hero}, ${story.place}, ${story.mood}`;
  const pictures = find("#story-pictures");
  pictures.replaceChildren(make("p", { class: "quiet" }, t("computing")));
  try {
    const { data } = await ask("POST", "/v1/images/generations", { model: painter().id, prompt: what, response_format: "b64_json" });
    pictures.replaceChildren(...data.map(({ b64_json: picture }) => make("img", { src: `data:image/png;base64,${picture}`, alt: t("pictureOf", { what }) })));
  } catch (error) {
    pictures.replaceChildren(make("p", { class: "error", role: "alert" }, error.message));
  }
}
