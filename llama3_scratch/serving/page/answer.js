/* One answer of a conversation: what the server is asked for it, and the message that grows as it comes. */

import { ApiError, stream } from "./api.js";
import * as settings from "./settings.js";
import * as store from "./store.js";

const KEEP = 1000; // milliseconds between two times that a growing answer is kept

/** What the server has to read so that the text it says next stands behind `begun` in the message at `place`. */
export function asked(model, { nodes, ...tree }, place, begun) {
  const { parent, system } = nodes[place];
  const before = store.path({ nodes, ...tree, leaf: parent }).map((at) => nodes[at]);
  if (model.meta.chat === false) return { model: model.id, prompt: before.map(({ text }) => text).join("") + begun };
  const messages = before.map(({ role, text }) => ({ role, content: text }));
  if (system) messages.unshift({ role: "system", content: system });
  if (begun) messages.push({ role: "assistant", content: begun });
  return { model: model.id, messages };
}

/** Which of a message's text its tokens are: all of it, or the end where the beginning was written by a person. */
export function withoutTokens({ text, tokens = [] }) {
  const said = tokens.map((token) => token.text).join("");
  return text.endsWith(said) ? text.slice(0, text.length - said.length) : null;
}

/**
 * Have the message at `place` answered, or gone on with where it has text; `changed()` hears whenever it has grown. Ends
 * with the node's `finish`: the server's reason, "stopped" by the signal, "left" unfinished, or "error". Whether the
 * browser had room to keep it.
 */
export async function answer(model, conversation, place, { signal, changed }) {
  const node = conversation.nodes[place], fields = settings.sampling();
  const began = performance.now();
  let first = 0, last = began, kept = began, count = 0;
  delete node.finish;
  delete node.error;
  if (withoutTokens(node) === null) delete node.tokens;
  node.tokens ??= [];
  Object.assign(node, { seed: fields.seed, model: model.id });
  try {
    for await (const part of stream({ ...fields, ...asked(model, conversation, place, node.text) }, signal)) {
      if (part.usage) {
        node.cached = part.usage.prompt_tokens_details?.cached_tokens ?? 0;
        count = part.usage.completion_tokens;
        continue;
      }
      last = performance.now();
      if (part.text) first ||= last;
      count += part.tokens.length;
      node.text += part.text;
      node.tokens.push(...part.tokens);
      if (part.finish) node.finish = part.finish;
      if (last - kept > KEEP) {
        kept = last;
        store.keep("conversation", conversation);
      }
      changed();
    }
    node.finish ??= "left";
  } catch (error) {
    // A connection that breaks while there is an answer leaves it unfinished: the page may be closing.
    const broken = !(error instanceof ApiError) && first;
    node.finish = error.name === "AbortError" ? "stopped" : broken ? "left" : "error";
    if (node.finish === "error") node.error = error.message;
  }
  if (first) {
    node.count = count;
    node.first = Math.round(first - began) / 1000;
    node.speed = last > first ? Math.round((10_000 * (count - 1)) / (last - first)) / 10 : 0;
  }
  conversation.changed = Date.now();
  const room = store.keep("conversation", conversation);
  changed();
  return room;
}
