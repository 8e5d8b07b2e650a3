/* The form of the settings: a field for each, which takes effect as it is changed. */

import { find, make } from "./dom.js";
import { t } from "./i18n.js";
import * as settings from "./settings.js";

const STEPS = { temperature: 0.05, top_p: 0.01, min_p: 0.01, repeat_penalty: 0.05 };

/** Draw it; `models` are the server's. */
export function draw(models) {
  const system = make("textarea", { rows: 3, onchange: (event) => settings.set({ system: event.target.value }) });
  system.value = settings.get("system");
  const key = make("input", { type: "password", autocomplete: "off", onchange: (event) => settings.set({ key: event.target.value.trim() }) });
  key.value = settings.get("key");
  find("#settings-form").replaceChildren(
    field(t("system"), system, "wide"),
    ...(models.length > 1 ? [field(t("model"), select("model", models.map(({ id }) => [id, id])))] : []),
    ...Object.keys(settings.NUMBERS).map(number),
    field(t("language"), select("language", [["auto", t("auto")], ["en", "English"], ["zh", "中文"]])),
    field(t("theme"), select("theme", [["auto", t("auto")], ["light", t("light")], ["dark", t("dark")]])),
    field(t("key"), key, "wide"),
  );
}

const field = (words, input, kind = "") => make("label", { class: `field ${kind}` }, make("span", {}, words), input);

function select(name, choices) {
  const input = make("select", { onchange: () => settings.set({ [name]: input.value }) }, ...choices.map(([value, words]) => make("option", { value }, words)));
  input.value = settings.get(name) || choices[0][0];
  return input;
}

function number(name) {
  const [min, max] = settings.NUMBERS[name];
  const change = ({ target }) => settings.set({ [name]: target.value === "" ? null : target.valueAsNumber });
  const input = make("input", { type: "number", min, max, step: STEPS[name] ?? 1, name, onchange: change, placeholder: name === "max_tokens" ? t("asServed") : "" });
  input.value = settings.get(name) ?? "";
  return field(t(name === "seed" ? "seedSetting" : name), input);
}

/** Set what says how tokens are drawn to its defaults. */
export function defaults() {
  settings.set(Object.fromEntries(Object.entries(settings.NUMBERS).map(([name, [, , usual]]) => [name, usual])));
}
