"use strict";

// ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────
const TYPES = [Int8Array, Uint8Array, Uint32Array, Float32Array];
const STEP = ["group", "kind", "path", "func", "source", "name", "letters", "dtype", "line", "nth", "shape", "numbers",
  "weights", "flops", "bytes", "seconds", "heat"];
const NUMBERS = ["min", "max", "mean", "std", "nan", "inf"];
let run, blobs;

async function unpack() {
  const packed = Uint8Array.from(atob(find("#data").textContent.trim()), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(stream).arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  run = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  blobs = bytes.slice(4 + length);
  for (const pass of run.passes) {
    pass.steps = pass.steps.map((row) => {
      const step = Object.fromEntries(STEP.map((key, i) => [key, row[i]]));
      for (const key of ["path", "func", "source", "name", "letters", "dtype"]) step[key] = run.strings[step[key]];
      return step;
    });
  }
}

function array([type, offset, length]) {
  const bytes = blobs.slice(offset, offset + length * TYPES[type].BYTES_PER_ELEMENT);
  return new TYPES[type](bytes);
}

// ── words and numbers ─────────────────────────────────────────────────────────────────────────────────────────────
function visible(text) {
  if (!text) return "∅";
  return text
    .replace(/[\u0000-\u001f\u007f-\u00a0\u00ad\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u2069\u3000\ufeff]/g, (char) =>
      char === "\n" ? "⏎" : char === "\t" ? "⇥" : char < " " ? String.fromCharCode(0x2400 + char.charCodeAt(0))
        : `⟨${char.charCodeAt(0).toString(16).toUpperCase()}⟩`)
    .replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));
}

function number(value, digits = 4) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text = size && (size < 1e-3 || size >= 1e6) ? value.toExponential(digits - 2) : (+value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
  return text.replace("-", "−").replace("e+", "e").replace("e-", "e−");
}

const percent = (share) => `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)} %`;

function amount(value, unit) {
  if (unit === "s") return value < 1e-3 ? `${number(value * 1e6, 3)} µs` : value < 1 ? `${number(value * 1e3, 3)} ms` : `${number(value, 3)} s`;
  const power = Math.min(5, Math.max(0, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
  return `${number(value / 1000 ** power, 3)} ${["", "k", "M", "G", "T", "P"][power]}${unit}`;
}

const token = (position) => visible(run.tokens[position] ?? "");
/** Whether the text has characters that stand upright in a line that runs down: Chinese, Japanese, Korean, emoji. */
const upright = (text) => /[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Hang}\p{Extended_Pictographic}\u3000-\u303f\uff01-\uff60]/u.test(text);
const groupName = (group) => (group < 0 ? "input" : group === run.config.layers ? "output" : `layer ${group}`);

// ── making elements ───────────────────────────────────────────────────────────────────────────────────────────────
const find = (selector, root = document) => root.querySelector(selector);

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const bdi = (text) => make("bdi", {}, text);

function selector(label, options, value, change) {
  const select = make("select", { onchange: () => change(+select.value) },
    ...options.map((text, i) => make("option", { value: i }, text)));
  select.value = value;
  return make("label", {}, label, select);
}

function choice(label, options, value, change) {
  const buttons = Object.entries(options).map(([key, text]) =>
    make("button", { type: "button", "aria-pressed": key === value, "data-key": key, onclick: () => change(key) }, text));
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.key === value));
  return make("div", { class: "choice", role: "group", "aria-label": label }, ...buttons);
}

// ── colours ───────────────────────────────────────────────────────────────────────────────────────────────────────
let palettes = {};

function readPalettes() {
  const style = getComputedStyle(document.documentElement);
  palettes = Object.fromEntries(["sequence", "diverging"].map((name) => {
    const stops = style.getPropertyValue(`--${name}`).trim().split(/\s+/)
      .map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    const table = Array.from({ length: 256 }, (_, i) => {
      const at = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
      return stops[low].map((value, k) => Math.round(value + (stops[low + 1][k] - value) * (at - low)));
    });
    return [name, table];
  }));
  palettes.bad = style.getPropertyValue("--bad").trim().slice(1).match(/../g).map((hex) => parseInt(hex, 16));
  palettes.ink = style.getPropertyValue("--ink").trim();
  palettes.quiet = style.getPropertyValue("--quiet").trim();
  palettes.paper = style.getPropertyValue("--paper").trim();
}

const colour = (name, share) =>
  Number.isNaN(share) ? palettes.bad : palettes[name][Math.round(Math.min(1, Math.max(0, share)) * 255)];
const css = (rgb) => `rgb(${rgb.join(" ")})`;

function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => (value /= 255, value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
const inkOn = (rgb) => (luminance(rgb) > 0.179 ? "#000" : "#fff"); // the better of the two, 4.5 : 1 at least

/** Paint `at(row, column)` → rgb or null (transparent) into a canvas, a pixel a cell. */
function paint(canvas, rows, columns, at) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const rgb = at(row, column);
      if (rgb) image.data.set([...rgb, 255], 4 * (row * columns + column));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function scale(name, low, high) {
  const bar = paint(make("canvas", { "aria-hidden": "true" }), 1, 64, (_, i) => colour(name, i / 63));
  return make("span", { class: "scale" }, low, bar, high);
}

// ── tip ───────────────────────────────────────────────────────────────────────────────────────────────────────────
const tip = () => find("#tip");

function showTip(text, x, y) {
  const box = tip();
  box.textContent = text;
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  box.style.top = `${y + 18 + height > innerHeight - 8 ? Math.max(8, y - height - 12) : y + 18}px`;
}

const hideTip = () => { tip().hidden = true; };

/** Tips for pointer and keyboard over all of `root`; `of(element)` is an element's text or nothing. */
function tips(root, of) {
  root.addEventListener("pointermove", (event) => {
    const text = of(event.target, event);
    if (text) showTip(text, event.clientX, event.clientY);
    else hideTip();
  });
  root.addEventListener("pointerdown", (event) => {
    const text = of(event.target, event);
    if (text) showTip(text, event.clientX, event.clientY);
  });
  root.addEventListener("pointerleave", hideTip);
  root.addEventListener("focusin", (event) => {
    if (!event.target.matches(":focus-visible")) return;
    const box = event.target.getBoundingClientRect(), text = of(event.target, event);
    if (text) showTip(text, box.right, box.bottom - 12);
  });
  root.addEventListener("focusout", hideTip);
}

// ── a grid that arrows move in ────────────────────────────────────────────────────────────────────────────────────
function roving(table, open, begin = [0, 0]) {
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells]);
  let at = begin;
  for (const row of rows) for (const cell of row) cell.tabIndex = -1;
  rows[at[0]][at[1]].tabIndex = 0;
  const focus = (row, column) => {
    rows[at[0]][at[1]].tabIndex = -1;
    at = [Math.max(0, Math.min(row, rows.length - 1)), Math.max(0, Math.min(column, rows[0].length - 1))];
    const cell = rows[at[0]][at[1]];
    cell.tabIndex = 0;
    cell.focus();
  };
  table.addEventListener("focusin", (event) => {
    const cell = event.target.closest("td, th");
    if (!cell?.closest("tbody")) return;
    rows[at[0]][at[1]].tabIndex = -1;
    at = [cell.parentNode.sectionRowIndex, cell.cellIndex];
    cell.tabIndex = 0;
  });
  table.addEventListener("keydown", (event) => {
    const [row, column] = at;
    const moves = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1], Home: [row, 0], End: [row, Infinity], PageUp: [row - 8, column],
      PageDown: [row + 8, column],
    };
    if (moves[event.key]) focus(...moves[event.key]);
    else if (open && (event.key === "Enter" || event.key === " ")) open(row, column);
    else return;
    event.preventDefault();
  });
  return focus;
}

/** A box that a table of tokens may be wider than: it begins at the last token, and a line above says what is hidden. */
function scroller(table, positions, tall = "") {
  const sign = make("p", { class: "sign", hidden: true }), box = make("div", { class: `scroll ${tall}` }, table);
  const tell = () => {
    const [first, ...heads] = table.tHead.rows[0].cells, { left, right } = box.getBoundingClientRect();
    const seen = heads.flatMap((head, i) => {
      const at = head.getBoundingClientRect();
      return at.left >= left + first.offsetWidth - 2 && at.right <= right + 2 ? [i] : [];
    });
    sign.hidden = box.scrollWidth <= box.clientWidth + 1;
    const hidden = [[seen[0], "←"], [heads.length - 1 - seen[seen.length - 1], "→"]];
    sign.textContent = !seen.length ? "More tokens to the side: scroll." : hidden.filter(([n]) => n > 0)
      .map(([n, way]) => `${way} ${n} more token${n === 1 ? "" : "s"} ${way === "←" ? "before" : "behind"} these`).join(" · ");
  };
  box.addEventListener("scroll", tell);
  new ResizeObserver(tell).observe(box);
  box.toEnd = () => box.scrollTo(box.scrollWidth, 0);
  return make("div", { class: "scroller" }, sign, box);
}

// ── state ─────────────────────────────────────────────────────────────────────────────────────────────────────────
const VIEWS = {
  layers: ["Layers", layersView], attention: ["Attention", attentionView], lens: ["Logit lens", lensView],
  rope: ["RoPE", ropeView], residual: ["Residual stream", residualView], cost: ["Time and FLOPs", costView],
};
const STATISTICS = {
  norm: "norm ‖x‖", change: "change ‖Δx‖ ∕ ‖x‖", attended: "attention’s part", fed: "feed-forward’s part",
  largest: "largest |x|",
};
const state = { pass: 0, view: "layers", group: null, statistic: "norm", layer: 0, head: 0, stage: "weights", pair: 0,
  side: "q", measure: "seconds", target: "first" };
const pass = () => run.passes[state.pass];

function set(changes) {
  const focused = document.activeElement?.closest?.(".choice, .heads, .controls label");
  const nth = focused ? [...document.querySelectorAll(".choice, .heads, .controls label")].indexOf(focused) : -1;
  Object.assign(state, changes);
  render();
  if (nth >= 0) {
    const again = document.querySelectorAll(".choice, .heads, .controls label")[nth];
    (find('[aria-pressed="true"], select, input', again) ?? again)?.focus({ preventScroll: true });
  }
}

function render() {
  hideTip();
  for (const tab of find("#views").children) {
    const chosen = tab.dataset.view === state.view;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  }
  const scrolled = [...document.querySelectorAll("main .scroll")].map((box) => [box.scrollLeft, box.scrollTop]);
  const panel = make("div", { role: "tabpanel", id: "panel", "aria-labelledby": `tab-${state.view}` });
  find("#main").replaceChildren(panel);
  VIEWS[state.view][1](panel);
  document.querySelectorAll("main .scroll").forEach((box, i) => (scrolled[i] ? box.scrollTo(...scrolled[i]) : box.toEnd?.()));
}

function choose(view, focus = false) {
  state.view = view;
  find("#main").replaceChildren();
  render();
  if (focus) find(`#tab-${view}`).focus();
}

/** Whether tokens that aren't shown stand before the i-th of these. */
const gap = (positions, i) => i > 0 && positions[i] !== positions[i - 1] + 1;
const lead = (text) => make("p", { class: "lead" }, text);
const cut = (shown, all, what) =>
  shown.length < all ? ` Of ${all} ${what} the first 8 and the last ${shown.length - 8} are shown.` : "";

// ── layers ────────────────────────────────────────────────────────────────────────────────────────────────────────
/** The chosen statistic after each row of the grid: the embedding, then every layer. */
function residual(name) {
  const R = pass().rows.length, nth = Object.keys(STATISTICS).indexOf(name);
  return pass().residual.map((ref) => array(ref).subarray(nth * R, (nth + 1) * R));
}

function layersView(panel) {
  const { rows, positions } = pass(), values = residual(state.statistic);
  const drawn = state.statistic === "norm" || state.statistic === "largest" ? values : values.slice(1);
  const logs = drawn.flatMap((row) => [...row]).filter((value) => value > 0 && value < Infinity).map(Math.log).sort((a, b) => a - b);
  // A first token whose norm is a hundred times the others' would leave those a single colour.
  const low = logs[Math.floor(0.04 * logs.length)] ?? 0, high = logs[Math.floor(0.92 * logs.length)] ?? 1;
  const share = (value) => (Number.isNaN(value) ? NaN : value > 0 && high > low ? (Math.log(value) - low) / (high - low) : 0);
  const groups = [-1, ...Array.from({ length: run.config.layers }, (_, i) => i), run.config.layers];
  const body = groups.map((group) => {
    const line = group < run.config.layers ? values[group + 1] : null;
    const blank = !line || (group < 0 && drawn !== values);
    const row = make("tr", { role: "row", "data-group": group, "aria-selected": String(group === state.group) },
      make("th", { scope: "row", role: "rowheader" }, groupName(group)),
      ...rows.map((_, i) => {
        const cell = make("td", { role: "gridcell", class: gap(positions, i) && "gap" });
        if (blank) {
          cell.setAttribute("aria-label", `${groupName(group)}, ${token(positions[i])}`);
          return cell;
        }
        cell.style.backgroundColor = css(colour("sequence", share(line[i])));
        cell.setAttribute("aria-label",
          `${groupName(group)}, token ${positions[i]} ${token(positions[i])}: ${STATISTICS[state.statistic]} ${number(line[i])}`);
        return cell;
      }));
    return row;
  });
  const table = make("table", { class: "grid layers", role: "grid", "aria-label": "Tokens across, layers down" },
    tokenHeads(rows.map((_, i) => positions[i])), make("tbody", {}, ...body));
  const room = (innerWidth < 1000 ? innerWidth : innerWidth * 0.54) - 90;
  table.style.setProperty("--cell", `${Math.max(15, Math.min(34, Math.floor(room / rows.length) - 2))}px`);
  const split = make("div", { class: "split" },
    make("div", {}, scroller(table, positions)), make("section", { id: "steps", tabindex: -1 }));
  panel.append(
    lead(`The residual stream after each layer, at each token. Choose a layer to see its steps, a token to see what each layer would say behind it.${cut(rows, pass().rowsOf, "tokens")}`),
    make("div", { class: "controls" },
      selector("colour", Object.values(STATISTICS), Object.keys(STATISTICS).indexOf(state.statistic),
        (i) => set({ statistic: Object.keys(STATISTICS)[i] })),
      scale("sequence", `≤ ${number(Math.exp(low), 3)}`, `≥ ${number(Math.exp(high), 3)} (logarithmic)`)),
    split);
  const open = (row) => openGroup(groups[row], true);
  const focus = roving(table, open);
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr"), head = event.target.closest("thead th");
    if (row) open(row.sectionRowIndex);
    else if (head?.cellIndex) openLens(head.cellIndex - 1);
  });
  tips(table, (target) => target.closest("td")?.getAttribute("aria-label"));
  layersView.back = () => focus(Math.max(0, groups.indexOf(state.group)), 0);
  stepsPanel();
}

function tokenHeads(positions) {
  return make("thead", {}, make("tr", { role: "row" }, make("th", {}),
    ...positions.map((position) => make("th", { scope: "col", role: "columnheader", title: `${position}  ${token(position)}` },
      make("span", { class: upright(token(position)) ? "token upright" : "token" }, bdi(token(position)))))));
}

function openGroup(group, focus) {
  state.group = group;
  if (group !== null && group >= 0 && group < run.config.layers) state.layer = group;
  for (const row of document.querySelectorAll(".layers tbody tr")) {
    row.setAttribute("aria-selected", String(+row.dataset.group === group));
  }
  stepsPanel();
  find("#steps").scrollTop = 0;
  if (focus) find("#steps h2").focus({ preventScroll: true });
}

function closeGroup() {
  openGroup(null, false);
  layersView.back?.();
}

function stepsPanel() {
  const box = find("#steps"), group = state.group;
  box.className = group === null ? "empty" : "open";
  if (group === null) {
    box.setAttribute("aria-label", "Steps");
    box.replaceChildren(make("p", { class: "hint" },
      "Click a layer, or move to it with the arrows and press Enter: its steps appear here, in the order in which its lines of code ran."));
    return;
  }
  box.setAttribute("aria-label", `Steps of ${groupName(group)}`);
  const go = (by) => () => openGroup(Math.max(-1, Math.min(group + by, run.config.layers)), true);
  const steps = pass().steps.filter((step) => step.group === group);
  box.replaceChildren(
    make("div", { class: "bar" },
      make("h2", { tabindex: -1 }, `${groupName(group)[0].toUpperCase()}${groupName(group).slice(1)} `,
        make("span", { class: "quiet" }, `${steps.filter((step) => step.kind).length} steps`)),
      make("button", { type: "button", "aria-label": "the layer before ([)", onclick: go(-1), disabled: group < 0 }, "↑"),
      make("button", { type: "button", "aria-label": "the next layer (])", onclick: go(1), disabled: group === run.config.layers }, "↓"),
      make("button", { type: "button", "aria-label": "close (Esc)", onclick: closeGroup }, "×")),
    ...stepCards(steps));
}

/** Function by function as they were entered and come back to: a heading, what it took, then a card a step. */
function stepCards(steps) {
  const out = [];
  let current = null, taken = null;
  for (const step of steps) {
    const where = `${step.path} ${step.func}`;
    if (where !== current) {
      current = where;
      taken = null;
      out.push(functionHead(step));
    }
    if (step.kind === 0) {
      if (!taken) out.push(taken = make("div", { class: "taken" }, "takes "));
      taken.append(make("span", {}, make("code", {}, step.name), ` [${axes(step)}]`));
    } else {
      taken = null;
      out.push(stepCard(step));
    }
  }
  return out;
}

function formula(name) {
  const template = find(`template[data-function="${CSS.escape(name)}"]`);
  return template ? make("div", { class: "formula" }, template.content.cloneNode(true)) : null;
}

function functionHead(step) {
  const path = step.path.replace(/^layers\.\d+\.?/, "");
  return make("div", { class: "function" },
    make("h3", {}, step.func, path && path !== step.func ? make("span", {}, ` ${path}`) : null), formula(step.func));
}

const axes = (step) => step.letters.length === step.shape.length
  ? step.shape.map((size, i) => (step.letters[i] === "1" ? "1" : `${step.letters[i]}=${size}`)).join(" ") : step.shape.join(" ");

function stepCard(step) {
  const name = step.kind === 2 ? "returned" : step.name;
  const source = make("code", {});
  const bound = step.kind === 1 ? step.source.search(new RegExp(`\\b${step.name}\\b`)) : -1;
  if (bound >= 0) {
    source.append(step.source.slice(0, bound), make("span", { class: "bound" }, step.name),
      step.source.slice(bound + step.name.length));
  } else source.append(step.source);
  const letters = make("span", { class: "axes" }, "[");
  step.shape.forEach((size, i) => {
    const letter = step.letters.length === step.shape.length ? step.letters[i] : "";
    letters.append(i ? " " : "", ...(letter && letter !== "1" ? [make("i", {}, letter), `=${size}`] : [String(size)]));
  });
  letters.append("]");
  const cost = [
    step.flops && amount(step.flops, "FLOPs"), step.bytes && amount(step.bytes, "B"), step.seconds && amount(step.seconds, "s"),
  ].filter(Boolean).join(" · ");
  const numbers = step.numbers && make("div", { class: "numbers" },
    ...step.numbers.slice(0, 4).map((value, i) => make("span", {}, make("i", {}, NUMBERS[i]), number(value))),
    ...[4, 5].map((i) => make("span", { class: step.numbers[i] ? "bad" : "" },
      make("i", {}, i === 4 ? "NaN" : "Inf"), step.numbers[i].toLocaleString("en"))));
  return make("article", { class: "step", tabindex: 0, "data-name": step.name, "aria-label": `${name} of ${step.func}` },
    make("div", { class: "source" }, make("span", {}, String(step.line)), source),
    make("div", { class: "shape" }, make("b", {}, name), " ", letters, ` ${step.dtype}`),
    numbers,
    ...step.weights.map((key) => make("div", { class: "weights" }, "← ", make("b", {}, key),
      ` [${run.weights[key][0].join(" × ")}] ${run.weights[key][1]}${run.weights[key][2] && ` from ${run.weights[key][2]}`}`)),
    step.source.includes(`${run.names.linear}(`) ? make("div", { class: "linear" }, formula(run.names.linear)) : null,
    cost ? make("div", { class: "numbers quiet" }, cost) : null,
    step.heat >= 0 ? pictures(step) : null);
}

function readHeat(nth) {
  const [cells, histogram, rows, columns, tall, wide, rowAxis, columnAxes, head, most] = run.heats[nth];
  return { cells: array(cells), histogram: array(histogram), rows, columns, tall, wide, rowAxis, columnAxes, head, most };
}

const heatValue = (heat, i) => {
  const code = heat.cells[i];
  return code === -128 ? NaN : Math.sign(code) * (code / 127) ** 2 * heat.most;
};

function pictures(step) {
  const heat = readHeat(step.heat), { rows, columns } = heat;
  const canvas = paint(make("canvas", { class: "heat", role: "img", "aria-label": `heat map of ${step.name}` }), rows, columns, (row, column) => {
    const code = heat.cells[row * columns + column];
    return code === -128 ? null : colour("diverging", 0.5 + code / 254);
  });
  canvas.style.height = `${Math.max(16, rows * Math.min(24, Math.max(3, Math.floor(150 / rows))))}px`;
  canvas.style.backgroundColor = "var(--line)";
  tips(canvas, (target, event) => heatTip(step, heat, canvas, event));
  const bars = draw("svg", { viewBox: "0 0 32 20", preserveAspectRatio: "none", role: "img", "aria-label": "histogram" },
    ...[...heat.histogram].map((count, i) => draw("rect",
      { x: i, width: 0.86, y: 20 - (20 * count) / 255, height: (20 * count) / 255, fill: "var(--accent)" })));
  const reduced = heat.tall * heat.wide > 1
    ? `each cell the largest by magnitude of ${[heat.tall > 1 ? `${heat.tall} rows` : "", heat.wide > 1 ? `${heat.wide} columns` : ""].filter(Boolean).join(" × ")}`
    : "each cell a value";
  const across = heat.columnAxes.map(([axis, size]) => axisText(axis, size)).join(" · ");
  const [low, high] = step.numbers ?? ["", ""];
  return make("div", { class: "pictures" },
    make("figure", {}, bars, make("figcaption", {}, step.numbers ? `${number(low, 3)} … ${number(high, 3)}` : "")),
    make("figure", {}, canvas, make("figcaption", {},
      `${axisText(...heat.rowAxis)} down, ${across} across; ${reduced}${heat.head ? "; head 0, all in Attention" : ""}`)));
}

const axisText = (axis, size) => (axis === "c" ? "re, im" : axis === "1" || axis === "?" ? String(size) : `${axis}=${size}`);

function place(axesOf, index) {
  const out = [];
  for (const [axis, size] of [...axesOf].reverse()) {
    const at = index % size;
    index = Math.floor(index / size);
    if (axis !== "1") out.unshift(axis === "c" ? ["re", "im"][at] : axis === "?" ? String(at) : `${axis} ${at}`);
  }
  return out.join(" ");
}

function heatTip(step, heat, canvas, event) {
  if (event.clientX === undefined) return null;
  const box = canvas.getBoundingClientRect();
  const row = Math.min(heat.rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * heat.rows)));
  const column = Math.min(heat.columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * heat.columns)));
  const value = heatValue(heat, row * heat.columns + column);
  const [axis, size] = heat.rowAxis;
  const first = row * heat.tall, last = Math.min(size, first + heat.tall) - 1;
  const start = pass().start;
  const words = (axis === "T" || axis === "S") && first === last ? ` ${token(axis === "T" ? start + first : first)}` : "";
  const down = axis === "1" ? "" : `${axis} ${first}${last > first ? `–${last}` : ""}${words}`;
  const total = heat.columnAxes.reduce((product, [, n]) => product * n, 1);
  const left = column * heat.wide, right = Math.min(total, left + heat.wide) - 1;
  const across = place(heat.columnAxes, left) + (right > left ? ` – ${place(heat.columnAxes, right)}` : "");
  return `${Number.isNaN(value) ? "not finite" : number(value, 3)}\n${[down, across].filter(Boolean).join(" · ")}`;
}

// ── attention ─────────────────────────────────────────────────────────────────────────────────────────────────────
/** A head's scores or weights over the tokens shown: `at(row, column)`, and `masked` where the query may not look. */
function headMatrix(layer, head, stage) {
  const { rows, columns, positions, layers } = pass(), of = layers[layer];
  const n = rows.length * columns.length;
  const masked = (row, column) => columns[column] > positions[row];
  if (stage === "weights") {
    const cells = array(of.weights).subarray(head * n, (head + 1) * n);
    return { masked, low: 0, high: 1, at: (row, column) => (cells[row * columns.length + column] / 255) ** 2 };
  }
  const [ref, lows, highs] = of.scores, cells = array(ref).subarray(head * n, (head + 1) * n);
  const low = lows[head], high = highs[head];
  return { masked, low, high, at: (row, column) => low + (cells[row * columns.length + column] / 63) * (high - low) };
}

function attentionColour(matrix, stage) {
  const most = Math.max(Math.abs(matrix.low), Math.abs(matrix.high)) || 1;
  return (row, column) => {
    if (stage === "weights") return matrix.masked(row, column) ? null : colour("sequence", Math.sqrt(matrix.at(row, column)));
    return colour("diverging", 0.5 + matrix.at(row, column) / most / 2);
  };
}

function attentionView(panel) {
  const { rows, columns, positions, layers } = pass();
  if (!layers[state.layer]?.weights) return panel.append(lead("No attention was traced in this pass."));
  const { layer, head, stage } = state;
  const matrix = headMatrix(layer, head, stage);
  const readout = make("p", { class: "readout", "aria-live": "polite" }, "Hover over or tap a cell, or move with the arrows in the map.");
  const bad = pass().steps.find((step) => step.group === layer && step.name === run.names[stage])?.numbers?.[4];
  const map = attentionMap(matrix, stage, readout);
  const G = run.config.kv_heads, R = run.config.heads / G;
  const heads = Array.from({ length: run.config.heads }, (_, h) => {
    const small = headMatrix(layer, h, stage), weights = stage === "weights" ? small : headMatrix(layer, h, "weights");
    const canvas = paint(make("canvas", { "aria-hidden": "true" }), rows.length, columns.length, attentionColour(small, stage));
    let first = 0;
    for (let row = 0; row < rows.length; row++) first += weights.at(row, 0) / rows.length;
    return make("button", { type: "button", "aria-pressed": String(h === head), "data-head": h, onclick: () => set({ head: h }) },
      canvas, `head ${h}`, make("small", {}, `first token ${percent(first)}`), make("small", {}, `key head ${Math.floor(h / R)}`));
  });
  panel.append(
    lead(`Each row is a token that asks, each column one that it may look at.${cut(columns, pass().span, "tokens")}${bad ? ` ${bad} of this layer’s values are NaN, drawn as 0.` : ""}`),
    make("div", { class: "controls" },
      selector("layer", Array.from({ length: run.config.layers }, (_, i) => String(i)), layer, (i) => set({ layer: i })),
      selector("head", heads.map((_, i) => String(i)), head, (i) => set({ head: i })),
      choice("stage", { scores: "scores, before the mask", weights: "weights, after the softmax" }, stage, (key) => set({ stage: key })),
      stage === "weights" ? scale("sequence", "0", "1 (square root)")
        : scale("diverging", number(-Math.max(Math.abs(matrix.low), Math.abs(matrix.high)), 3), number(Math.max(Math.abs(matrix.low), Math.abs(matrix.high)), 3))),
    make("div", { class: "attention" },
      make("div", {}, readout, mapBox(map)),
      make("div", {}, make("h2", { class: "heads-title" }, `All heads of layer ${layer}`),
        make("p", { class: "lead" }, "“First token” is the mean weight that a head gives it."),
        make("div", { class: "heads" }, ...heads), everyHead())));
}

const TARGETS = { first: "the first token", previous: "the one before", itself: "itself" };

/** Layers down, heads across: the mean weight that each head gives to one kind of token. */
function everyHead() {
  const { rows, columns, positions, layers } = pass(), { target } = state;
  const wanted = rows.map((_, row) => columns.indexOf({ first: 0, previous: positions[row] - 1, itself: positions[row] }[target]));
  const body = Object.keys(layers).filter((layer) => layers[layer].weights).map((layer) => {
    const cells = array(layers[layer].weights), n = rows.length * columns.length;
    return make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }, layer), ...Array.from({ length: run.config.heads }, (_, head) => {
      const seen = wanted.map((column, row) => (column < 0 ? null : (cells[head * n + row * columns.length + column] / 255) ** 2)).filter((value) => value !== null);
      const mean = seen.length ? seen.reduce((sum, value) => sum + value, 0) / seen.length : 0;
      const chosen = +layer === state.layer && head === state.head;
      const cell = make("td", { role: "gridcell", "aria-selected": String(chosen), "data-layer": layer, "data-head": head,
        "aria-label": `layer ${layer}, head ${head}: ${percent(mean)} on ${TARGETS[target]}` });
      cell.style.backgroundColor = css(colour("sequence", mean));
      return cell;
    }));
  });
  const table = make("table", { class: "grid every", role: "grid", "aria-label": "Layers down, heads across" }, make("tbody", {}, ...body));
  const open = (row, column) => {
    const cell = table.tBodies[0].rows[row].cells[Math.max(1, column)], { layer, head } = cell.dataset;
    const again = document.activeElement?.closest(".every");
    set({ layer: +layer, head: +head });
    if (again) find(`.every td[data-layer="${layer}"][data-head="${head}"]`).focus({ preventScroll: true });
  };
  roving(table, open);
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    if (cell) open(cell.parentNode.sectionRowIndex, cell.cellIndex);
  });
  tips(table, (on) => on.closest("td")?.getAttribute("aria-label"));
  return make("div", { class: "all" }, make("h2", {}, "Every layer and head"),
    make("div", { class: "controls" }, "mean weight on", choice("mean weight on", TARGETS, target, (key) => set({ target: key })), scale("sequence", "0 %", "100 %")),
    make("div", { class: "scroll" }, table));
}

/** The box of the map, and a line that says so where it is larger. */
function mapBox(map) {
  const sign = make("p", { class: "sign", hidden: true }, "The map goes on: scroll. Its last row is the token that answers."),
    box = make("div", { class: "scroll tall" }, map);
  new ResizeObserver(() => {
    sign.hidden = box.scrollHeight <= box.clientHeight + 1 && box.scrollWidth <= box.clientWidth + 1;
  }).observe(box);
  return make("div", {}, sign, box);
}

function attentionMap(matrix, stage, readout) {
  const { rows, columns, positions } = pass();
  const room = Math.min(720, Math.max(240, innerWidth - 150));
  const cell = Math.max(9, Math.min(26, Math.floor(room / Math.max(columns.length, 8))));
  const font = Math.min(12, cell), label = innerWidth < 560 ? 72 : 98, width = label + cell * columns.length, height = label + cell * rows.length;
  const canvas = make("canvas", { class: "matrix", tabindex: 0, role: "img", "data-cell": cell, "data-label": label,
    "aria-label": `attention ${stage} of layer ${state.layer}, head ${state.head}; arrows move, the text above tells the value` });
  const ratio = Math.max(1, devicePixelRatio);
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d"), of = attentionColour(matrix, stage);
  let at = null;
  const redraw = () => {
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `${font}px ${getComputedStyle(document.documentElement).getPropertyValue("--mono")}`;
    context.textBaseline = "middle";
    const clip = (text) => {
      while (context.measureText(text).width > label - 10) text = `${[...text].slice(0, text.endsWith("…") ? -2 : -1).join("")}…`;
      return text;
    };
    rows.forEach((_, row) => {
      context.fillStyle = at?.[0] === row ? palettes.ink : palettes.quiet;
      context.textAlign = "right";
      context.fillText(clip(token(positions[row])), label - 6, label + (row + 0.5) * cell);
      columns.forEach((_, column) => {
        const rgb = of(row, column);
        context.fillStyle = rgb ? css(rgb) : palettes.paper;
        context.fillRect(label + column * cell, label + row * cell, cell - 1, cell - 1);
      });
    });
    columns.forEach((position, column) => {
      context.save();
      context.translate(label + (column + 0.5) * cell, label - 6);
      context.fillStyle = at?.[1] === column ? palettes.ink : palettes.quiet;
      if (upright(token(position))) { // one character below the other
        const characters = [...token(position)], most = Math.floor((label - 10) / (font * 1.1));
        const shown = characters.length > most ? [...characters.slice(0, most - 1), "⋮"] : characters;
        context.textAlign = "center";
        shown.forEach((char, i) => context.fillText(char, 0, (i - shown.length + 0.5) * font * 1.1));
      } else {
        context.rotate(-Math.PI / 2);
        context.textAlign = "left";
        context.fillText(clip(token(position)), 0, 0);
      }
      context.restore();
    });
    context.fillStyle = palettes.ink;
    rows.forEach((_, row) => gap(positions, row) && context.fillRect(label, label + row * cell - 1.5, cell * columns.length, 2));
    columns.forEach((_, column) => gap(columns, column) && context.fillRect(label + column * cell - 1.5, label, 2, cell * rows.length));
    if (at) {
      context.strokeStyle = palettes.ink;
      context.lineWidth = 1.5;
      context.strokeRect(label + at[1] * cell - 1, label + at[0] * cell - 1, cell + 1, cell + 1);
    }
  };
  const go = (row, column) => {
    at = [Math.max(0, Math.min(row, rows.length - 1)), Math.max(0, Math.min(column, columns.length - 1))];
    const value = matrix.at(...at), hidden = matrix.masked(...at);
    readout.replaceChildren(bdi(token(positions[at[0]])), ` (${positions[at[0]]}) → `, bdi(token(columns[at[1]])),
      ` (${columns[at[1]]}): `, make("b", {}, hidden && stage === "weights" ? "0" : number(value, 3)),
      hidden ? " — masked: it comes later" : "");
    redraw();
  };
  for (const kind of ["pointermove", "pointerdown"]) canvas.addEventListener(kind, (event) => { // a finger only taps
    const box = canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top - label) / cell), column = Math.floor((event.clientX - box.left - label) / cell);
    if (row >= 0 && column >= 0 && (at?.[0] !== row || at?.[1] !== column)) go(row, column);
  });
  canvas.addEventListener("keydown", (event) => {
    const [row, column] = at ?? [0, 0];
    const moves = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1], Home: [row, 0], End: [row, Infinity] };
    if (!moves[event.key]) return;
    event.preventDefault();
    go(...(at ? moves[event.key] : [0, 0]));
  });
  redraw();
  return canvas;
}

// ── logit lens ────────────────────────────────────────────────────────────────────────────────────────────────────
function lensView(panel) {
  const { rows, positions, layers } = pass();
  const body = Object.keys(layers).map((layer) => {
    if (!layers[layer].lens) return null;
    const ids = array(layers[layer].lens[0]), shares = array(layers[layer].lens[1]), top = ids.length / rows.length;
    return make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }, `layer ${layer}`), ...rows.map((_, i) => {
      const rgb = colour("sequence", shares[i * top]);
      const cell = make("td", { role: "gridcell", class: gap(positions, i) && "gap", "aria-label":
        `layer ${layer}, after ${token(positions[i])}: ${visible(run.vocabulary[ids[i * top]])} ${percent(shares[i * top])}` },
        bdi(visible(run.vocabulary[ids[i * top]])));
      cell.style.backgroundColor = css(rgb);
      cell.style.color = inkOn(rgb);
      cell.tip = () => [`layer ${layer}, after ${positions[i]} \u2068${token(positions[i])}\u2069`,
        ...Array.from({ length: top }, (_, k) => `${percent(shares[i * top + k]).padStart(6)}  \u2068${visible(run.vocabulary[ids[i * top + k]])}\u2069`)].join("\n");
      return cell;
    }));
  }).filter(Boolean);
  if (!body.length) return panel.append(lead("No layer was traced in this pass."));
  const table = make("table", { class: "grid lens", role: "grid", "aria-label": "Likeliest next token by layer and position" },
    make("thead", {}, make("tr", { role: "row" }, make("th", {}), ...positions.map((position) =>
      make("th", { scope: "col", role: "columnheader", title: `${position}  ${token(position)}` }, bdi(token(position)))))),
    make("tbody", {}, ...body));
  const box = scroller(table, positions, "tall");
  panel.append(
    lead(`What the head would say behind each token, were each layer the last. The last layer’s row is the model’s own choice.${cut(rows, pass().rowsOf, "tokens")}`),
    make("div", { class: "controls" }, scale("sequence", "0 %", "100 %")), box);
  roving(table, null, [body.length - 1, (state.token ?? rows.length - 1) + 1]);
  tips(table, (target) => target.closest("td")?.tip());
}

/** The lens, with the column of the i-th token that is shown in sight. */
function openLens(i) {
  state.token = i;
  choose("lens");
  state.token = null;
  const cell = find('.lens [tabindex="0"]');
  cell.scrollIntoView({ block: "nearest", inline: "center" });
  cell.focus({ preventScroll: true });
}

// ── RoPE ──────────────────────────────────────────────────────────────────────────────────────────────────────────
function ropeView(panel) {
  const { rows, positions, angles, layers } = pass(), J = run.config.head_dim / 2, of = layers[state.layer];
  if (!of?.q_after || !angles) return panel.append(lead("No rotation was traced in this pass."));
  const turns = array(angles);
  const read = (when) => {
    const [ref, most] = of[`${state.side}_${when}`], values = array(ref);
    return rows.map((_, row) => [0, 1].map((k) => (values[row * 2 * J + 2 * state.pair + k] / 127) * most));
  };
  const readout = make("p", { class: "readout" }), grid = make("div", { class: "circles" }), which = make("span");
  // In place, so that the slider stays under the finger that drags it.
  const refresh = () => {
    const { pair } = state, before = read("before"), after = read("after"), last = rows.length - 1;
    const longest = Math.max(...[...before, ...after].map((point) => Math.hypot(...point))) || 1;
    const perToken = last ? (turns[J * last + pair] - turns[pair]) / (positions[last] - positions[0]) : turns[pair] / positions[0];
    which.textContent = `pair ${pair} of ${J - 1}`;
    readout.textContent = Number.isFinite(perToken)
      ? `Pair ${pair} turns by ${number(perToken)} rad a token: once round in ${number((2 * Math.PI) / perToken)} tokens.` : "";
    grid.replaceChildren(...rows.map((_, i) => circle(positions[i], turns[i * J + pair], before[i], after[i], longest)));
  };
  const slider = make("input", { type: "range", min: 0, max: J - 1, value: state.pair, "aria-label": "pair",
    oninput: () => {
      state.pair = +slider.value;
      refresh();
    } });
  panel.append(
    lead(`RoPE takes neighbouring numbers of each head as a point and turns it by its position’s angle. All heads and layers turn alike; shown is head 0 of the chosen layer.${cut(rows, pass().rowsOf, "tokens")}`),
    make("div", { class: "controls" },
      selector("layer", Array.from({ length: run.config.layers }, (_, i) => String(i)), state.layer, (i) => set({ layer: i })),
      make("label", { class: "pair" }, which, slider),
      choice("query or key", { q: "query", k: "key" }, state.side, (key) => set({ side: key })),
      make("span", { class: "legend" }, legend("var(--second)", "before", true), legend("var(--accent)", "after"))),
    readout, grid);
  refresh();
  tips(grid, (target) => target.closest("figure")?.dataset.tip);
}

/** One position's pair: where it pointed before, the angle, where it points after. */
function circle(position, angle, before, after, longest) {
  const arrow = ([x, y], kind) => {
    const [X, Y] = [(40 * x) / longest, (-40 * y) / longest], at = Math.atan2(Y, X);
    const wing = (by) => `${X - 6 * Math.cos(at + by)},${Y - 6 * Math.sin(at + by)}`;
    const stroke = kind === "after" ? "var(--accent)" : "var(--second)";
    return draw("g", { class: kind },
      draw("line", { x1: 0, y1: 0, x2: X, y2: Y, stroke, "stroke-width": kind === "after" ? 2.4 : 1.6, "stroke-dasharray": kind === "after" ? null : "3 2.5" }),
      Math.hypot(X, Y) > 5 ? draw("polygon", { points: `${X},${Y} ${wing(0.45)} ${wing(-0.45)}`, fill: stroke }) : null);
  };
  const from = Math.atan2(before[1], before[0]), turn = angle % (2 * Math.PI);
  const end = (at) => `${(14 * Math.cos(at)).toFixed(2)} ${(-14 * Math.sin(at)).toFixed(2)}`;
  const arc = draw("path", { d: `M${end(from)}A14 14 0 ${turn > Math.PI ? 1 : 0} 0 ${end(from + turn)}`, fill: "none", stroke: "var(--quiet)", "stroke-width": 1.2 });
  const point = (of) => `(${of.map((value) => number(value, 3)).join(", ")})`;
  const label = `${token(position)}, position ${position}: ${point(before)} turned by ${number(angle)} rad to ${point(after)}`;
  return make("figure", { "data-tip": label },
    draw("svg", { viewBox: "-46 -46 92 92", role: "img", "aria-label": label },
      draw("circle", { r: 42, fill: "var(--surface)", stroke: "var(--line)" }),
      draw("path", { d: "M-42 0H42M0-42V42", stroke: "var(--line)", "stroke-width": 0.7 }),
      turn ? arc : null, arrow(before, "before"), arrow(after, "after")),
    make("figcaption", {}, bdi(token(position)), `${position} · ${number(((angle * 180) / Math.PI) % 360, 3)}°`));
}

function legend(shade, text, dashed) {
  const line = make("i");
  line.style.borderTopColor = shade;
  if (dashed) line.style.borderTopStyle = "dashed";
  return make("span", {}, line, text);
}

// ── residual stream ───────────────────────────────────────────────────────────────────────────────────────────────
function residualView(panel) {
  const { rows, positions } = pass(), all = residual(state.statistic);
  const first = state.statistic === "norm" || state.statistic === "largest" ? 0 : 1;
  const values = all.slice(first);
  const positive = values.flatMap((row) => [...row]).filter((value) => value > 0 && value < Infinity);
  if (!positive.length) positive.push(1);
  const low = Math.floor(Math.log10(Math.min(...positive)) * 4) / 4, high = Math.ceil(Math.log10(Math.max(...positive)) * 4) / 4;
  const W = Math.max(300, Math.min(1180, find("#main").clientWidth - 28)), H = W < 560 ? 300 : 460;
  const left = 56, right = 14, top = 14, bottom = 42;
  const x = (depth) => left + (depth / Math.max(1, values.length - 1)) * (W - left - right);
  const y = (value) => top + (1 - (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low || 1)) * (H - top - bottom);
  const path = (of) => values.map((row, depth) => [x(depth), y(of(row))]).filter((point) => Number.isFinite(point[1]))
    .map((point, i) => `${i ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}`).join("");
  const svg = draw("svg", { class: "plot", viewBox: `0 0 ${W} ${H}`, role: "img",
    "aria-label": `${STATISTICS[state.statistic]} by depth, a line for each token and one for their mean` });
  for (let power = Math.ceil(low); power <= Math.floor(high); power++) {
    for (const digit of high - low < 1.6 ? [1, 2, 5] : [1]) {
      const value = digit * 10 ** power;
      if (Math.log10(value) > high + 1e-9) continue;
      svg.append(draw("line", { class: "axis", x1: left, x2: W - right, y1: y(value), y2: y(value) }),
        draw("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, number(value, 3)));
    }
  }
  const every = Math.max(1, Math.ceil(values.length / (W / 60)));
  values.forEach((_, depth) => {
    const layer = depth + first - 1;
    if (layer < 0 || (layer % every === 0 && (layer > 0 || every === 1 || first))) {
      svg.append(draw("text", { x: x(depth), y: H - bottom + 20, "text-anchor": layer < 0 ? "start" : "middle" }, layer < 0 ? "in" : String(layer)));
    }
  });
  svg.append(draw("text", { x: (left + W - right) / 2, y: H - 4, "text-anchor": "middle" }, "after layer"));
  const lines = rows.map((_, i) => draw("path", { d: path((row) => row[i]) }));
  const mean = (row) => row.reduce((sum, value) => sum + value, 0) / row.length;
  svg.append(...lines, draw("path", { class: "mean", d: path(mean) }));
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  let chosen = -1;
  const pick = (i, depth) => {
    lines[chosen]?.classList.remove("chosen");
    lines[chosen = i].classList.add("chosen");
    svg.append(lines[i]);
    readout.replaceChildren(bdi(token(positions[i])), ` (${positions[i]}), ${groupName(depth + first - 1)}: `,
      make("b", {}, number(values[depth][i])), ` · mean of the tokens ${number(mean(values[depth]))}`);
    slider.value = i;
  };
  const slider = make("input", { type: "range", min: 0, max: rows.length - 1, value: 0, "aria-label": "token",
    oninput: () => pick(+slider.value, values.length - 1) });
  for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, (event) => {
    const box = svg.getBoundingClientRect(), scaleX = W / box.width;
    const depth = Math.max(0, Math.min(values.length - 1, Math.round((((event.clientX - box.left) * scaleX - left) / (W - left - right)) * (values.length - 1))));
    const height = (event.clientY - box.top) * scaleX;
    pick(rows.reduce((best, _, i) => (Math.abs(y(values[depth][i]) - height) < Math.abs(y(values[depth][best]) - height) ? i : best), 0), depth);
  });
  panel.append(
    lead(`How the residual stream grows through the depth; a line for each token, on a logarithmic scale.${cut(rows, pass().rowsOf, "tokens")}`),
    make("div", { class: "controls" },
      selector("show", Object.values(STATISTICS), Object.keys(STATISTICS).indexOf(state.statistic),
        (i) => set({ statistic: Object.keys(STATISTICS)[i] })),
      make("label", {}, "token", slider),
      make("span", { class: "legend" }, legend("var(--accent)", "mean"), legend("var(--second)", "chosen token"))),
    readout, svg);
  pick(rows.length - 1, values.length - 1);
}

// ── cost ──────────────────────────────────────────────────────────────────────────────────────────────────────────
function costView(panel) {
  const { steps } = pass(), measure = state.measure, unit = { seconds: "s", flops: "FLOPs", bytes: "B" }[measure];
  const total = steps.reduce((sum, step) => sum + step[measure], 0);
  const sums = (key) => {
    const found = new Map();
    for (const step of steps) found.set(key(step), (found.get(key(step)) ?? 0) + step[measure]);
    return found;
  };
  const bars = (title, about, entries, openOf) => {
    const most = Math.max(...entries.map(([, value]) => value), 1e-12);
    return make("section", {}, make("h2", {}, title), make("p", { class: "quiet" }, about),
      make("div", { class: "bars" }, ...entries.flatMap(([name, value]) => {
        const bar = make("div");
        bar.style.width = `${(100 * value) / most}%`;
        return [make("div", { class: "what", title: name }, name), make("div", { class: "track", "aria-hidden": "true" }, bar),
          make("div", { class: "much" }, value ? amount(value, unit) : "0", " ", make("i", {}, percent(total ? value / total : 0)))];
      })));
  };
  const byFunction = [...sums((step) => step.func)].filter(([, value]) => value).sort((a, b) => b[1] - a[1]);
  const byLayer = [...sums((step) => step.group)].map(([group, value]) => [groupName(group), value]);
  const here = state.group ?? state.layer;
  const ofLayer = steps.filter((step) => step.group === here && step.kind && step[measure])
    .map((step) => [`${step.func} · ${step.kind === 2 ? "returned" : step.name}`, step[measure]]);
  const groups = [-1, ...Array.from({ length: run.config.layers }, (_, i) => i), run.config.layers];
  panel.append(
    lead(`This pass took ${amount(steps.reduce((sum, step) => sum + step.seconds, 0), "s")} within its operations, ${amount(steps.reduce((sum, step) => sum + step.flops, 0), "FLOPs")} in matrix products and ${amount(steps.reduce((sum, step) => sum + step.bytes, 0), "B")} read and written, as if nothing stayed in a cache.`),
    make("div", { class: "controls" },
      choice("measure", { seconds: "time", flops: "FLOPs", bytes: "bytes" }, measure, (key) => set({ measure: key })),
      selector("steps of", groups.map(groupName), groups.indexOf(here), (i) => set({ group: groups[i], layer: Math.max(0, Math.min(groups[i], run.config.layers - 1)) }))),
    make("div", { class: "costs" },
      make("div", {}, bars("By function", "All layers together; a function’s own lines, without those that it calls.", byFunction), make("br"),
        bars(`By step of ${groupName(here)}`, "In order; a function’s call is counted within it.", ofLayer)),
      bars("By layer", "From the embedding to the head.", byLayer)));
}

// ── start ─────────────────────────────────────────────────────────────────────────────────────────────────────────
function theme(name) {
  document.documentElement.dataset.theme = name;
  find("#theme").textContent = name === "dark" ? "light" : "dark";
  readPalettes();
}

function toggleTheme() {
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  theme.chosen = true;
  render();
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || find("#help").open || event.target.matches?.("input, select")) return;
  const views = Object.keys(VIEWS), layers = run.config.layers;
  const card = event.target.closest?.(".step");
  if (views[event.key - 1]) choose(views[event.key - 1], true);
  else if (event.key === "?") find("#help").showModal();
  else if (event.key === "t") toggleTheme();
  else if (event.key === "Escape" && state.view === "layers" && state.group !== null) closeGroup();
  else if ((event.key === "[" || event.key === "]") && ["layers", "attention", "rope"].includes(state.view)) {
    const by = event.key === "]" ? 1 : -1;
    if (state.view === "layers") openGroup(Math.max(-1, Math.min((state.group ?? -1) + by, layers)), true);
    else set({ layer: Math.max(0, Math.min(state.layer + by, layers - 1)) });
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && (card || event.target.closest?.("#steps"))) {
    const cards = [...document.querySelectorAll(".step")], next = cards.indexOf(card) + (event.key === "ArrowDown" ? 1 : -1);
    cards[next]?.focus({ preventScroll: true });
    cards[next]?.scrollIntoView({ block: "nearest" });
  } else return;
  event.preventDefault();
}

function tabs() {
  const list = find("#views"), names = Object.keys(VIEWS);
  list.append(...names.map((name) => make("button", { type: "button", role: "tab", id: `tab-${name}`, "data-view": name,
    "aria-controls": "panel", onclick: () => choose(name) }, VIEWS[name][0])));
  list.addEventListener("keydown", (event) => {
    const at = names.indexOf(state.view);
    const to = { ArrowRight: (at + 1) % names.length, ArrowLeft: (at + names.length - 1) % names.length, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(names[to], true);
  });
}

function describe() {
  const c = run.config, { rows, rowsOf } = pass();
  document.title = `${run.title}: every step`;
  find("#title").textContent = run.title;
  const [asked, answered, n] = run.said;
  find("#said").hidden = !asked && !answered;
  for (const [id, text] of [["asked", asked], ["answered", answered || "∅"]]) {
    const box = find(`#${id}`);
    box.textContent = text;
    new ResizeObserver(() => box.classList.toggle("cut", box.scrollHeight > box.clientHeight + 2)).observe(box);
  }
  find("#about").textContent = `${rowsOf} token${rowsOf === 1 ? "" : "s"}${n ? ` in this pass, ${n} answered` : ""} · ${c.layers} layers · ${c.heads} query and ${c.kv_heads} key heads of ${c.head_dim} · width ${c.width}`;
  find("#limits").textContent = rows.length < rowsOf ? `Of ${rowsOf} tokens the views show ${rows.length}.` : "";
}

async function start() {
  await unpack();
  const night = matchMedia("(prefers-color-scheme: dark)");
  theme(night.matches ? "dark" : "light");
  night.addEventListener("change", () => {
    if (theme.chosen) return;
    theme(night.matches ? "dark" : "light");
    render();
  });
  tabs();
  const passes = find("#pass");
  passes.append(...run.passes.map((of, i) => make("option", { value: i },
    `${i}: ${of.rowsOf} token${of.rowsOf === 1 ? ` ${token(of.start)}` : "s"}`)));
  find("#pass-label").hidden = run.passes.length < 2;
  passes.addEventListener("change", () => { describe(set({ pass: +passes.value })); });
  find("#theme").addEventListener("click", toggleTheme);
  find("#help-button").addEventListener("click", () => find("#help").showModal());
  document.addEventListener("keydown", keys);
  addEventListener("scroll", hideTip, true);
  describe();
  render();
  document.documentElement.dataset.ready = "";
}

start().catch((error) => {
  find("#main").textContent = `This page can't be shown: ${error.message}. It needs a browser of 2023 or later.`;
  throw error;
});
