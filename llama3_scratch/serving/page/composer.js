/* The box that messages are written in: Enter sends, but on a phone it's a new line; what isn't sent survives a reload. */

import { find } from "./dom.js";

const PLACE = "llama3_scratch.draft";
const onPhone = () => matchMedia("(pointer: coarse)").matches;
const box = () => find("#write");

/** `send(text)` is called with what was written; `previous()` when there's nothing in the box and ↑ is pressed. */
export function begin({ send, previous }) {
  const write = box();
  write.value = localStorage.getItem(PLACE) ?? "";
  fit();
  write.addEventListener("input", () => {
    keep();
    fit();
  });
  write.addEventListener("keydown", (event) => {
    if (event.isComposing) return; // Enter ends a word of Chinese there
    if (event.key === "Enter" && !event.shiftKey && !onPhone()) {
      event.preventDefault();
      find("#composer").requestSubmit();
    }
    if (event.key === "ArrowUp" && !write.value) {
      event.preventDefault();
      previous();
    }
  });
  find("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = write.value.trim();
    if (!text || !send(text)) return;
    write.value = "";
    keep();
    fit();
  });
}

function keep() {
  try {
    localStorage.setItem(PLACE, box().value);
  } catch {
    // Without room it lasts until the page is closed.
  }
}

/** As high as its text, up to what the style sheet allows. */
function fit() {
  box().style.height = "auto";
  box().style.height = `${box().scrollHeight + 2}px`;
}

export const focus = () => box().focus();
