/* What a person has chosen: how tokens are drawn, language, colours, the key. Kept in this browser, told to listeners. */

const PLACE = "llama3_scratch.settings";
// A number's least, greatest and default value. null: the server's own.
export const NUMBERS = {
  temperature: [0, 2, 0.6],
  top_p: [0, 1, 0.9],
  top_k: [0, 1000, 0],
  min_p: [0, 1, 0],
  repeat_penalty: [0.5, 2, 1.1],
  max_tokens: [1, 100_000, null],
  seed: [0, 2 ** 31 - 1, null],
};
const CHOICES = { language: ["auto", "en", "zh"], theme: ["auto", "light", "dark"] };
const TEXTS = ["system", "key", "model"];

const listeners = [];
let values = read();

/** What is kept, each value checked: another version of this page may have written it. */
function read() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(PLACE)) ?? {};
  } catch {
    // Unreadable settings are no settings.
  }
  return checked(kept);
}

function checked(kept) {
  const found = { look: kept.look === true };
  for (const [name, [least, most, usual]] of Object.entries(NUMBERS)) {
    const value = kept[name];
    found[name] = typeof value === "number" && value >= least && value <= most ? value : usual;
  }
  for (const [name, choices] of Object.entries(CHOICES)) found[name] = choices.includes(kept[name]) ? kept[name] : choices[0];
  for (const name of TEXTS) found[name] = typeof kept[name] === "string" ? kept[name] : "";
  return found;
}

export const get = (name) => values[name];

export function set(changed) {
  values = checked({ ...values, ...changed });
  try {
    localStorage.setItem(PLACE, JSON.stringify(values));
  } catch {
    // Without room they hold until the page is closed.
  }
  for (const listener of listeners) listener(Object.keys(changed));
}

/** Call `listener` with the names of what has changed. */
export const listen = (listener) => listeners.push(listener);

/** The fields of a request that say how tokens are drawn; a seed is chosen here, so that it can be told and used again. */
export function sampling() {
  const fields = {};
  for (const name of Object.keys(NUMBERS)) if (values[name] != null) fields[name] = values[name];
  fields.seed ??= Math.floor(Math.random() * 2 ** 31);
  if (values.model) fields.model = values.model;
  return fields;
}

window.addEventListener("storage", (event) => {
  if (event.key !== PLACE) return;
  values = read();
  for (const listener of listeners) listener(Object.keys(values));
});
