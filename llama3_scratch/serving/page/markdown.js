/* Markdown as elements: built by the DOM from texts, so that nothing a model writes can be anything but text.
 *
 * No raw HTML, no pictures from elsewhere, links to http and https alone. While a text grows only its last block is
 * made anew: what was read stays selected and in its place.
 */

import { button, make } from "./dom.js";
import { t } from "./i18n.js";

const MAX_DEPTH = 8; // of lists, quotes and emphasis within each other
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const TABLE_RULE = /^\s*\|?(\s*:?-+:?\s*\|)+\s*(:?-+:?)?\s*$/;

const shown = new WeakMap(); // element → the sources of its blocks

/** Show `text` in `element`, whose blocks that haven't changed stay as they are. */
export function render(text, element) {
  const before = shown.get(element) ?? [], now = blocks(text);
  let same = 0;
  while (same < before.length && before[same] === now[same]) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(...now.slice(same).map((source) => block(source, 0)));
  shown.set(element, now);
}

/** The sources of a text's blocks. */
function blocks(text) {
  const found = [], lines = text.split("\n");
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const end = endOf(lines, at);
    found.push(lines.slice(at, end).join("\n"));
    at = end;
  }
  return found;
}

/** Behind the block that begins at line `at`. */
function endOf(lines, at) {
  const fence = FENCE.exec(lines[at]);
  let end = at + 1;
  if (fence) {
    while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end++;
    return Math.min(end + 1, lines.length);
  }
  if (HEADING.test(lines[at]) || RULE.test(lines[at])) return end;
  if (ITEM.test(lines[at])) {
    // Items and what is indented beneath them; a blank line ends the list unless more of it follows.
    while (end < lines.length) {
      const blank = !lines[end].trim(), next = blank ? lines[end + 1] ?? "" : lines[end];
      if (blank ? !(ITEM.test(next) || /^\s{2,}\S/.test(next)) : begins(next) && !/^\s{2,}/.test(next)) break;
      end++;
    }
    return end;
  }
  const quoted = QUOTE.test(lines[at]);
  while (end < lines.length && lines[end].trim() && (quoted ? QUOTE.test(lines[end]) : !begins(lines[end]) && !ITEM.test(lines[end]))) end++;
  return end;
}

const begins = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);

function block(source, depth) {
  const lines = source.split("\n"), first = lines[0];
  const fence = FENCE.exec(first), heading = HEADING.exec(first);
  if (fence) {
    const closed = lines.length > 1 && lines.at(-1).trim().startsWith(fence[1]);
    return code(lines.slice(1, closed ? -1 : undefined).join("\n"), fence[2]);
  }
  if (heading) return make(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2], depth));
  if (RULE.test(first)) return make("hr");
  if (depth < MAX_DEPTH && ITEM.test(first)) return list(lines, depth);
  if (depth < MAX_DEPTH && QUOTE.test(first)) {
    const inner = lines.map((line) => line.replace(QUOTE, "")).join("\n");
    return make("blockquote", {}, ...blocks(inner).map((one) => block(one, depth + 1)));
  }
  if (lines.length > 1 && first.includes("|") && TABLE_RULE.test(lines[1])) return table(lines, depth);
  return make("p", {}, ...inline(source, depth));
}

function code(text, language) {
  const copy = navigator.clipboard && button(t("copy"), t("copyCode"), () => navigator.clipboard.writeText(text));
  const bar = make("div", { class: "code-bar" }, make("span", {}, language), copy);
  return make("div", { class: "code" }, bar, make("pre", { tabindex: 0 }, make("code", {}, text)));
}

function list(lines, depth) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const ordered = /\d/.test(mark), items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent.length + 1) items.push([item[3]]);
    else items.at(-1).push(line.slice(Math.min(line.search(/\S|$/), indent.length + 2)));
  }
  const start = ordered && parseInt(mark, 10) !== 1 ? { start: parseInt(mark, 10) } : {};
  return make(ordered ? "ol" : "ul", start, ...items.map(([text, ...rest]) => {
    const inner = rest.length ? blocks(rest.join("\n")) : [];
    // Lines that begin no block of their own go on with the item's.
    while (inner.length && !ITEM.test(inner[0]) && !begins(inner[0])) text += `\n${inner.shift()}`;
    return make("li", {}, ...inline(text, depth), ...inner.map((one) => block(one, depth + 1)));
  }));
}

function table(lines, depth) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (tag, line) => make("tr", {}, ...cells(line).map((cell) => make(tag, {}, ...inline(cell, depth))));
  const body = make("tbody", {}, ...lines.slice(2).map((line) => row("td", line)));
  return make("div", { class: "scroll", tabindex: 0 }, make("table", {}, make("thead", {}, row("th", lines[0])), body));
}

const EMPHASIS = [["***", "strong", "em"], ["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];
const WORD = /[\p{L}\p{N}_]/u;

/** A line's texts and elements. */
function inline(text, depth) {
  const found = [], missing = new Set(); // marks that nothing closes
  let plain = "", at = 0;
  const flush = () => {
    plain.split("\n").forEach((line, i) => found.push(...(i ? [make("br"), line] : [line])));
    plain = "";
  };
  const take = (element, end) => {
    flush();
    found.push(element);
    at = end;
  };
  while (at < text.length) {
    const rest = text[at];
    if (rest === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
      continue;
    }
    const made = depth < MAX_DEPTH && (span(text, at, missing) ?? emphasis(text, at, depth, missing));
    if (made) take(...made);
    else {
      plain += rest;
      at++;
    }
  }
  flush();
  return found;
}

/** Code, a picture's words, a link, at `at`: [element, where it ends], or nothing. */
function span(text, at, missing) {
  if (text[at] === "`") {
    const mark = /^`+/.exec(text.slice(at, at + 20))[0];
    const end = missing.has(mark) ? -1 : text.indexOf(mark, at + mark.length);
    if (end < 0) missing.add(mark);
    else return [make("code", {}, text.slice(at + mark.length, end).trim()), end + mark.length];
  }
  if (text[at] === "[" || (text[at] === "!" && text[at + 1] === "[")) {
    const named = /^!?\[([^[\]\n]{0,500})\]\(\s*<?([^\s()<>]{1,2000}(?:\([^\s()<>]{0,200}\)[^\s()<>]{0,200})?)>?(?:\s+"[^"\n]{0,200}")?\s*\)/.exec(text.slice(at, at + 3000));
    if (named) return [link(named[2], named[1] || named[2]), at + named[0].length];
  }
  if (text[at] === "h" && !WORD.test(text[at - 1] ?? "")) {
    const address = /^https?:\/\/[^\s<>"'`\]}]{1,2000}/.exec(text.slice(at, at + 2100))?.[0].replace(/[.,;:!?)*_。，；：！？）]+$/, "");
    if (address) return [link(address, address), at + address.length];
  }
  return null;
}

function link(address, words) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    // No address: words alone.
  }
  if (!url || !["http:", "https:"].includes(url.protocol)) return make("span", {}, words);
  return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, words);
}

function emphasis(text, at, depth, missing) {
  for (const [mark, tag, inner] of EMPHASIS) {
    if (!text.startsWith(mark, at) || missing.has(mark)) continue;
    const begin = at + mark.length, inWord = mark.includes("_") && WORD.test(text[at - 1] ?? "");
    if (inWord || /\s|^$/.test(text[begin] ?? "")) continue;
    let end = text.indexOf(mark, begin + 1);
    while (end >= 0 && (/\s/.test(text[end - 1]) || (mark.length === 1 && text[end + 1] === mark))) {
      end = text.indexOf(mark, text[end + 1] === mark ? end + 2 : end + 1);
    }
    if (end < 0) {
      missing.add(mark);
      continue;
    }
    const children = inline(text.slice(begin, end), depth + 1);
    return [make(tag, {}, ...(inner ? [make(inner, {}, ...children)] : children)), end + mark.length];
  }
  return null;
}
