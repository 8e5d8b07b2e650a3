/* The proof that anybody can see: one request alone, the same among four others, and whether a single bit differs. */

import { stream } from "./api.js";
import { announce, find, make } from "./dom.js";
import { t } from "./i18n.js";

const TOKENS = 64, SEED = 2026;
const COMPANY = ["Write a poem about the sea.", "Count from one to fifty.", "What is bread made of?", "Tell me a story about a fox and a crow."];

// What all five begin with is longer than a page, so that they share some.
const SYSTEM = "You are one of many who are answered at once. All of you begin with these same words, so that the pages of the cache that hold them are computed a single time and shared by everybody, while nobody sees what another says. Answer in plain words, as well as you can, in a few sentences, and go on for as long as you are let.";

const request = (model, text, fields) => ({
  model: model.id,
  ...(model.meta.chat === false
    ? { prompt: `${SYSTEM} ${text}` }
    : { messages: [{ role: "system", content: SYSTEM }, { role: "user", content: text }] }),
  ...fields,
});

/** Run it with `model`, and show what came of it. */
export async function prove(model) {
  const out = find("#proof"), start = find("#proof-run");
  start.disabled = true;
  const alone = column("proofAlone"), company = column("proofCompany"), verdict = make("p", { class: "verdict" }, t("computing"));
  out.replaceChildren(verdict, make("div", { class: "columns" }, alone, company));
  const others = new AbortController();
  try {
    const first = await collect(model, alone);
    const begun = COMPANY.map((text, i) => keepBusy(model, text, i, others.signal));
    await Promise.all(begun.map(({ started }) => started));
    const second = await collect(model, company);
    verdict.textContent = compare(first, second);
    verdict.classList.add(first.text === second.text ? "same" : "different");
  } catch (error) {
    verdict.textContent = error.message;
  }
  others.abort();
  start.disabled = false;
  announce(verdict.textContent);
}

const column = (name) => make("div", {}, make("h3", {}, t(name)), make("p", { class: "proof-text" }));

async function collect(model, shown) {
  const tokens = [];
  let text = "";
  for await (const part of stream(request(model, t("proofPrompt"), { seed: SEED, temperature: 0.8, max_tokens: TOKENS, ignore_eos: true }))) {
    if (part.usage) continue;
    text += part.text;
    tokens.push(...part.tokens);
    find("p", shown).textContent = text;
  }
  return { text, tokens };
}

/** Somebody else, who talks until nobody listens; `started` when the first word is there. */
function keepBusy(model, text, seed, signal) {
  let begun;
  const started = new Promise((resolve) => (begun = resolve));
  (async () => {
    try {
      for await (const _ of stream(request(model, text, { seed, max_tokens: 8 * TOKENS, ignore_eos: true }), signal)) begun();
    } catch {
      // Called off when the proof is done.
    }
    begun();
  })();
  return { started };
}

function compare(first, second) {
  const n = first.tokens.length;
  const differs = first.tokens.findIndex((token, i) => String(token.bytes) !== String(second.tokens[i]?.bytes));
  if (differs >= 0 || second.tokens.length !== n) return t("proofOther", { n: differs < 0 ? n : differs });
  const shares = ({ tokens }) => tokens.flatMap(({ logprob, top }) => [logprob, ...top.map((one) => one.logprob)]);
  const [a, b] = [shares(first), shares(second)];
  const apart = a.filter((value, i) => value !== b[i]).length;
  return apart ? t("proofNearly", { n, p: a.length, d: apart }) : t("proofSame", { n, p: a.length });
}
