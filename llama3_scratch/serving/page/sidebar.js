/* The list of conversations: open, rename, delete; all of them out to a file and in from one. */

import { announce, button, download, find, make } from "./dom.js";
import { t } from "./i18n.js";
import * as store from "./store.js";

export const titleOf = ({ title, nodes }) => title || nodes.find(({ role }) => role === "user")?.text.slice(0, 60) || t("untitled");

/** Draw the list; `current` is the id of the one that is open, `open(id)` opens another, or a new one without an id. */
export function draw(current, open) {
  find("#conversations").replaceChildren(...store.all("conversation").map((conversation) => {
    const name = titleOf(conversation), { id } = conversation;
    const rename = () => {
      const given = prompt(t("newName"), name);
      if (given === null) return;
      conversation.title = given.trim().slice(0, 100);
      store.keep("conversation", conversation);
    };
    const remove = () => {
      if (!confirm(t("reallyDelete", { name }))) return;
      store.remove("conversation", id);
      if (id === current) open();
    };
    return make("li", {},
      make("a", { href: `#chat/${id}`, ...(id === current ? { "aria-current": "page" } : {}) }, name),
      button("✎", `${t("rename")}: ${name}`, rename, { class: "plain" }),
      button("×", `${t("delete")}: ${name}`, remove, { class: "plain" }));
  }));
}

/** Make the buttons beneath the list work. */
export function begin() {
  find("#export").addEventListener("click", () => download("llama3_scratch.json", store.exported()));
  const file = find("#file");
  find("#import").addEventListener("click", () => file.click());
  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    file.value = "";
    if (!chosen) return;
    let said;
    try {
      said = t("imported", store.imported(await chosen.text()));
    } catch {
      said = t("notImported");
    }
    find("#file-said").textContent = said;
    announce(said);
  });
}
