/* A message on the page: its text as Markdown or as coloured tokens, what can be done with it, and how it came about. */

import { button, find, make } from "./dom.js";
import { t } from "./i18n.js";
import * as markdown from "./markdown.js";
import * as tokens from "./tokens.js";
import { withoutTokens } from "./answer.js";

/**
 * The element of a message. `versions` are the messages in its place, itself among them; `act` are the functions that its
 * buttons call: copy, edit, again, goOn, show(place), openToken(index).
 */
export function messageElement(node, place, versions, act) {
  const name = node.role === "user" ? t("you") : t("model");
  const element = make("article", { class: `message ${node.role}`, "data-place": place, "aria-label": name },
    make("div", { class: "body" }), make("footer", {}));
  const at = versions.indexOf(place);
  const turn = versions.length > 1 && make("span", { class: "versions", role: "group", "aria-label": t("version", { at: at + 1, all: versions.length }) },
    button("‹", t("before"), () => act.show(versions[at - 1]), { disabled: at === 0, "data-act": "before" }),
    make("span", {}, `${at + 1}/${versions.length}`),
    button("›", t("after"), () => act.show(versions[at + 1]), { disabled: at === versions.length - 1, "data-act": "after" }));
  const buttons = [
    turn,
    navigator.clipboard && button(t("copy"), t("copyText"), () => navigator.clipboard.writeText(node.text), { "data-act": "copy" }),
    button(t("edit"), t("editText"), act.edit, { "data-act": "edit" }),
    node.role === "assistant" && button(t("again"), t("againText"), act.again, { "data-act": "again" }),
    node.role === "assistant" && button(t("goOn"), t("goOnText"), act.goOn, { "data-act": "goOn" }),
  ].filter(Boolean);
  find("footer", element).append(make("div", { class: "acts" }, ...buttons), make("p", { class: "figures" }));
  return element;
}

/** Bring the element up to its message: as it grows, and when it has come to its end. */
export function update(element, node, { look, running, act }) {
  const body = find(".body", element);
  element.classList.toggle("running", running);
  element.setAttribute("aria-busy", running);
  const before = look && node.tokens?.length ? withoutTokens(node) : null;
  if (before === null) {
    body.classList.remove("as-tokens");
    markdown.render(node.text, body);
  } else {
    if (!body.classList.contains("as-tokens")) {
      markdown.render("", body);
      body.classList.add("as-tokens");
      body.replaceChildren(make("span", {}, before), make("span", { role: "group", "aria-label": t("lookText") }));
    }
    tokens.render(node.tokens, body.lastChild, act.openToken);
  }
  find(".figures", element).textContent = running ? "" : figures(node);
  const wrong = find(".error", element);
  if (wrong) wrong.remove();
  if (node.error) body.after(make("p", { class: "error", role: "alert" }, node.error));
}

function figures(node) {
  if (node.role === "user") return "";
  const why = { stopped: t("stopped"), length: t("cut"), left: t("left"), undefined: node.text ? t("left") : "" }[node.finish];
  return [
    node.count && t("figures", { count: node.count, speed: node.speed, first: node.first.toFixed(2) }),
    node.cached && t("cached", { n: node.cached }),
    node.seed !== undefined && t("seed", { seed: node.seed }),
    why,
  ].filter(Boolean).join(" · ");
}

/** Replace a message's text by a box to change it in. `save(text)` and `cancel()` are called once. */
export function editor(element, text, words, { save, cancel }) {
  const box = make("textarea", { "aria-label": t("editText"), rows: Math.min(14, text.split("\n").length + 1) });
  box.value = text;
  const done = () => save(box.value);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done();
  });
  const bar = make("div", { class: "acts" }, button(words, words, done, { class: "primary" }), button(t("cancel"), t("cancel"), cancel));
  find(".body", element).replaceWith(make("div", { class: "body editing" }, box, bar));
  find("footer", element).hidden = true;
  box.focus();
}
