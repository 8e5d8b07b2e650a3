/* The server, as the page needs it: questions with one answer, and answers that stream in, with their tokens. */

import * as settings from "./settings.js";

export class ApiError extends Error {
  constructor(status, { message, code } = {}) {
    super(message || `HTTP ${status}`);
    this.status = status;
    this.code = code;
  }
}

const RETRIES = 3;
const TOP = 6; // likeliest tokens that come beside each one

async function request(method, path, body, signal) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (settings.get("key")) headers.Authorization = `Bearer ${settings.get("key")}`;
  for (let attempt = 0; ; attempt++) {
    const response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
    if (response.ok) return response;
    const failed = new ApiError(response.status, (await response.json().catch(() => ({}))).error);
    if (response.status !== 503 || attempt === RETRIES) throw failed;
    await pause(1000 * (Number(response.headers.get("Retry-After")) || 1), signal);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/** Ask, and get the whole JSON. Raises ApiError. */
export const ask = async (method, path, body, signal) => (await request(method, path, body, signal)).json();

/** The server's models; the first is what is asked unless the settings name another. */
export async function models() {
  const { data } = await ask("GET", "/v1/models");
  return data;
}

/**
 * An answer as it comes: {index, text, tokens, finish} for each part of it, then {usage}. `messages` are a chat whose last
 * message may be the beginning of the answer; `prompt` is a text for a model that doesn't chat. Raises ApiError.
 */
export async function* stream({ messages, prompt, ...fields }, signal) {
  const chat = messages !== undefined;
  const body = {
    ...fields,
    ...(chat ? { messages, logprobs: true, top_logprobs: TOP } : { prompt, logprobs: TOP }),
    stream: true,
    stream_options: { include_usage: true },
  };
  const response = await request("POST", chat ? "/v1/chat/completions" : "/v1/completions", body, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const { error, choices, usage } = JSON.parse(data);
    if (error) throw new ApiError(200, error);
    for (const choice of choices ?? []) {
      const text = (chat ? choice.delta.content : choice.text) ?? "";
      const tokens = chat ? ofChat(choice.logprobs) : ofCompletion(choice.logprobs);
      yield { index: choice.index, text, tokens, finish: choice.finish_reason };
    }
    if (usage) yield { usage };
  }
}

/** The data of server-sent events, each a frame's. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const frames = (rest + value).split("\n\n");
      rest = frames.pop();
      for (const frame of frames) if (frame.startsWith("data: ")) yield frame.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// A token as the page keeps it: {text, bytes, logprob, top: [{text, bytes, logprob}]}.
const ofChat = (logprobs) =>
  (logprobs?.content ?? []).map(({ token, bytes, logprob, top_logprobs }) => ({
    text: token,
    bytes,
    logprob,
    top: top_logprobs.map((one) => ({ text: one.token, bytes: one.bytes, logprob: one.logprob })),
  }));

const bytesOf = (text) => [...new TextEncoder().encode(text)];

const ofCompletion = (logprobs) =>
  (logprobs?.tokens ?? []).map((text, i) => ({
    text,
    bytes: bytesOf(text),
    logprob: logprobs.token_logprobs[i],
    top: Object.entries(logprobs.top_logprobs[i] ?? {}).map(([other, logprob]) => ({ text: other, bytes: bytesOf(other), logprob })),
  }));
