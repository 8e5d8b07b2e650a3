/* Conversations, kept in this browser: each is a tree of messages, since an edit or a new answer is a branch.
 *
 * The tree is a list: a message names its parent by its place, which is always before its own. `leaf` is the end of the
 * branch that is shown. Stories of the studio are kept the same way, without branches.
 */

const PREFIX = { conversation: "llama3_scratch.conversation.", story: "llama3_scratch.story." };
const FILE = "llama3_scratch conversations";
const known = { conversation: new Map(), story: new Map() };
const listeners = [];

/** Call `listener` with the kind and the id of what has changed, and whether another tab changed it. */
export const listen = (listener) => listeners.push(listener);
const tell = (kind, id, elsewhere = false) => listeners.forEach((listener) => listener(kind, id, elsewhere));
const newId = () => `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;

// Trees

/** The messages from the first to the one at `leaf`, as their places in the tree. */
export function path({ nodes, leaf }) {
  const found = [];
  for (let at = leaf; at >= 0; at = nodes[at].parent) found.unshift(at);
  return found;
}

/** The messages that stand beside the one at `place`, itself among them. */
export const siblings = ({ nodes }, place) => [...nodes.keys()].filter((other) => nodes[other].parent === nodes[place].parent);

/** Add a message behind `parent` (-1: the first one) and show its branch; its place. */
export function add(conversation, parent, node) {
  conversation.nodes.push({ ...node, parent });
  conversation.leaf = conversation.nodes.length - 1;
  return conversation.leaf;
}

/** Show the branch of the message at `place`, down to the latest end that it has. */
export function show(conversation, place) {
  conversation.leaf = place;
  conversation.nodes.forEach((node, at) => {
    if (node.parent === conversation.leaf) conversation.leaf = at;
  });
}

// Keeping

export const newConversation = () => ({ id: newId(), title: "", changed: Date.now(), nodes: [], leaf: -1 });
export const newStory = (fields) => ({ id: newId(), changed: Date.now(), ...fields });

/** All of a kind, the latest first. */
export const all = (kind) => [...known[kind].values()].sort((a, b) => b.changed - a.changed);
export const get = (kind, id) => known[kind].get(id);

/** Keep it. Where the browser has no room, the tokens' alternatives of the others go first; false: still none. */
export function keep(kind, value) {
  known[kind].set(value.id, value);
  const write = () => localStorage.setItem(PREFIX[kind] + value.id, JSON.stringify(value));
  let kept = true;
  try {
    write();
  } catch {
    for (const other of known.conversation.values()) if (other !== value) withoutTokens(other);
    try {
      write();
    } catch {
      kept = false;
    }
  }
  tell(kind, value.id);
  return kept;
}

function withoutTokens(conversation) {
  for (const node of conversation.nodes) delete node.tokens;
  localStorage.setItem(PREFIX.conversation + conversation.id, JSON.stringify(conversation));
}

export function remove(kind, id) {
  known[kind].delete(id);
  localStorage.removeItem(PREFIX[kind] + id);
  tell(kind, id);
}

// Files

export const exported = () =>
  JSON.stringify({ file: FILE, version: 1, conversations: all("conversation"), stories: all("story") });

/** Take in a file that `exported` made, beside what is there. How many of each; raises Error for any other file. */
export function imported(text) {
  const file = JSON.parse(text);
  if (file?.file !== FILE || !Array.isArray(file.conversations) || !Array.isArray(file.stories)) throw new Error("file");
  const conversations = file.conversations.map(checkedConversation), stories = file.stories.map(checkedStory);
  for (const one of conversations) keep("conversation", one);
  for (const one of stories) keep("story", one);
  return { conversations: conversations.length, stories: stories.length };
}

// What comes from a file or from another version of the page: only what the page knows, and of the right kind.

const textOf = (value) => {
  if (typeof value !== "string") throw new Error("text");
  return value;
};
const idOf = (value) => (/^[a-z0-9]{6,40}$/.test(value) ? value : newId());
const timeOf = (value) => (Number.isFinite(value) ? value : Date.now());

function checkedConversation(value) {
  const nodes = value.nodes.map((node, place) => {
    if (!["user", "assistant"].includes(node.role)) throw new Error("role");
    if (!(Number.isInteger(node.parent) && node.parent >= -1 && node.parent < place)) throw new Error("parent");
    const found = { role: node.role, parent: node.parent, text: textOf(node.text) };
    for (const name of ["finish", "model", "system", "error"]) if (typeof node[name] === "string") found[name] = node[name];
    for (const name of ["seed", "count", "speed", "first", "cached"]) if (Number.isFinite(node[name])) found[name] = node[name];
    if (Array.isArray(node.tokens)) found.tokens = node.tokens.map((one) => ({ ...checkedToken(one), top: one.top.map(checkedToken) }));
    return found;
  });
  const leaf = Number.isInteger(value.leaf) && value.leaf >= -1 && value.leaf < nodes.length ? value.leaf : nodes.length - 1;
  return { id: idOf(value.id), title: textOf(value.title), changed: timeOf(value.changed), nodes, leaf };
}

function checkedToken({ text, bytes, logprob }) {
  if (!Array.isArray(bytes) || !bytes.every(Number.isInteger)) throw new Error("bytes");
  return { text: textOf(text), bytes, logprob: Number.isFinite(logprob) ? logprob : null };
}

function checkedStory(value) {
  const found = { id: idOf(value.id), changed: timeOf(value.changed), text: textOf(value.text) };
  for (const name of ["hero", "place", "mood", "words", "language"]) found[name] = textOf(value[name] ?? "");
  return found;
}

// Reading what is kept, now and when another tab writes.

function readOne(kind, key, text) {
  const checked = kind === "conversation" ? checkedConversation : checkedStory;
  try {
    const value = checked(JSON.parse(text));
    known[kind].set(key.slice(PREFIX[kind].length), value);
  } catch {
    // Unreadable: it's left where it is, and not shown.
  }
}

const kindOf = (key) => Object.keys(PREFIX).find((kind) => key.startsWith(PREFIX[kind]));

for (const key of Object.keys(localStorage)) {
  const kind = kindOf(key);
  if (kind) readOne(kind, key, localStorage.getItem(key));
}

window.addEventListener("storage", ({ key, newValue }) => {
  const kind = key && kindOf(key);
  if (!kind) return;
  const id = key.slice(PREFIX[kind].length);
  if (newValue === null) known[kind].delete(id);
  else readOne(kind, key, newValue);
  tell(kind, id, true);
});
