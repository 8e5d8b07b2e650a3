"""The trace's page in a real browser: what it shows is what was traced, by mouse, by keyboard, in both schemes."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import sync_playwright

from llama3_scratch import generate, model
from llama3_scratch.cache import Cache
from llama3_scratch.config import OFFICIAL
from llama3_scratch.inference import prefill, stream
from llama3_scratch.model import block, forward, fused_block
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer
from llama3_scratch.trace import page as page_module
from llama3_scratch.trace import tracer
from llama3_scratch.trace.page import TracePage, needs
from llama3_scratch.trace.tracer import watch
from llama3_scratch.trace.views import likeliest
from tests import tiny
from tests.house import PACKAGE
from tests.recipes import SCRIPTS, script

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

CONFIG = replace(tiny.CONFIG, vocab_size=272)
HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '" onfocus="window.hacked = 1" autofocus="',
    "\n\t \x1b[2J\x00",
    "\u202eabc שלום مرحبا",
    "👩‍👩‍👧 🦙",
]
IDS = [72, 105, 256, 257, 258, 259, 260, 261, 0xF0, 0x9F, 33, 10]  # 0xF0: the first byte of a character


def tokenizer() -> Tokenizer:
    words = [bytes([byte]) for byte in range(256)] + [text.encode() for text in HOSTILE]
    return Tokenizer(
        {word: id for id, word in enumerate(words)},
        pattern=PATTERN,
        special_tokens={"<|end|>": len(words)},
        bos_id=len(words),
        eos_id=len(words),
        stop_tokens=[len(words)],
        chat_format=None,
        add_bos=False,
    )


PARAMS = tiny.params(CONFIG)


def data_of(html: str) -> tuple[dict[str, Any], bytes]:
    """What a page says of its run, and the arrays behind it."""
    packed = max(re.findall(r"[A-Za-z0-9+/=]+", html), key=len)
    data = gzip.decompress(base64.b64decode(packed))
    end = 4 + int.from_bytes(data[:4], "little")
    return json.loads(data[4:end]), data[end:]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """The page of a prompt and of one more token, and the steps that it was made of, by their keys."""
    page = TracePage(PARAMS, CONFIG, tokenizer(), "a <b>title</b>", dict.fromkeys(PARAMS, "consolidated.00.pth"))
    cache = Cache(64)
    with (
        torch.inference_mode(),
        watch(keep=lambda step: True, costs=True, on_step=page.take) as steps,
    ):
        forward(torch.tensor([IDS]), PARAMS, CONFIG, cache=cache, block=block)
        forward(torch.tensor([[65]]), PARAMS, CONFIG, cache=cache, block=block)
    path = tmp_path_factory.mktemp("page") / "run.html"
    page.write(path)
    return path, {step.key: step for step in steps if step.call == 0}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page; at the end of the test nothing may have been complained about or fetched."""
    contexts, complaints, requests = [], [], []

    def visit(path, *, width=1280, height=860, scheme="light", touch=False):
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=touch, is_mobile=touch)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=20_000)
        return page

    visit.complaints = complaints
    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    assert len(requests) == len(contexts) and all(url.startswith("file://") for url in requests)


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("∞", "inf"))


def test_tokens_and_layers_are_all_there(visit, traced):
    page = visit(traced[0])
    rows = page.locator(".layers tbody th").all_inner_texts()
    assert rows == ["input", *(f"layer {layer}" for layer in range(CONFIG.n_layers)), "output"]
    assert page.locator(".layers tbody tr").nth(1).locator("td").count() == len(IDS)
    tokens = page.locator(".layers thead .token").all_text_contents()
    assert tokens[0] == "H" and tokens[2] == HOSTILE[0] and tokens[-2:] == ["!", "⏎"]
    assert tokens[8:10] == ["⟨F0⟩", "⟨9F⟩"], "half a character is shown as its bytes"
    assert tokens[5] == "⏎⇥ ␛[2J␀" and tokens[6].startswith("⟨202E⟩abc")
    norm = traced[1]["layers.2.block.return"].value[0, 4].norm().item()
    label = page.locator("tr[data-group='2'] td").nth(4).get_attribute("aria-label")
    assert number(label.split()[-1]) == pytest.approx(norm, rel=1e-3)


def written(path, n: int, asked: str = "", answered: str = ""):
    """The page of a prompt of n tokens, every tenth of them Chinese."""
    words = [bytes([byte]) for byte in range(256)] + ["名".encode(), "字。".encode(), "한".encode()]
    tokenizer = Tokenizer(
        {word: id for id, word in enumerate(words)}, pattern=PATTERN, special_tokens={}, bos_id=None, eos_id=None,
        stop_tokens=[], chat_format=None, add_bos=False,
    )  # fmt: skip
    page = TracePage(PARAMS, CONFIG, tokenizer, "a model")
    page.asked, page.answered, page.n_answered = asked, answered, 3
    ids = [256 + i // 10 % 3 if i % 10 == 0 else 65 + i % 26 for i in range(n)]
    with torch.inference_mode(), watch(keep=needs, on_step=page.take):
        forward(torch.tensor([ids]), PARAMS, CONFIG, block=block)
    page.write(path)
    return path


def test_prompt_and_answer_stand_on_top(visit, traced, tmp_path):
    hostile = "<img src=x onerror='window.hacked = 1'>\n  and  blanks"
    page = visit(written(tmp_path / "run.html", 5, hostile, "one\n" * 40))
    assert page.locator("#asked").inner_text() == hostile and page.locator("#answered").inner_text().startswith(
        "one\none"
    )
    assert "5 tokens in this pass, 3 answered" in page.locator("#about").inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("#answered").bounding_box()["y"] < 200
    page.wait_for_selector("#answered.cut", timeout=2000)
    assert "cut" not in (page.locator("#asked").get_attribute("class") or "")
    assert not visit(traced[0]).locator("#said").is_visible()


IN_SIGHT = """(view) => {
  const box = document.querySelector(`.${view}`).closest(".scroll").getBoundingClientRect();
  const label = document.querySelector(`.${view} tbody th`).getBoundingClientRect();
  const last = [...document.querySelectorAll(`.${view} tbody tr`)].at(1).lastElementChild.getBoundingClientRect();
  return label.left >= box.left - 1 && label.right <= box.right && last.right <= box.right + 1
    && last.right <= innerWidth && last.left >= label.right - 1;
}"""


@pytest.mark.parametrize("width", [1440, 1024, 390])
@pytest.mark.parametrize("n", [37, 120])
def test_the_token_that_answers_is_in_sight_and_what_is_hidden_is_said(visit, tmp_path, width, n):
    page = visit(written(tmp_path / "run.html", n, "what?", "that"), width=width, height=900)
    for key, view in (("1", "layers"), ("3", "lens")):
        page.keyboard.press(key)
        assert page.evaluate(IN_SIGHT, view), view
        sign = page.locator(".sign")
        page.wait_for_timeout(100)
        if (n, width, view) == (37, 1440, "layers"):
            assert not sign.is_visible(), "README's prompt fits"
            continue
        hidden = int(re.search(r"← (\d+) more tokens before these", sign.inner_text())[1])
        assert 0 < hidden < n
        page.evaluate("document.querySelector('main .scroll').scrollTo(0, 0)")
        page.wait_for_timeout(100)
        assert re.fullmatch(r"→ \d+ more tokens? behind these", sign.inner_text())


def test_a_token_opens_the_lens_behind_it(visit, tmp_path):
    page = visit(written(tmp_path / "run.html", 60), width=1024, height=900)
    for column, last in ((60, True), (7, False)):
        page.keyboard.press("1")
        page.locator(".layers thead th").nth(column).click()
        assert page.locator("#tab-lens").get_attribute("aria-selected") == "true"
        focused = page.evaluate("document.activeElement.cellIndex")
        assert focused == column and page.evaluate("document.activeElement.parentNode.rowIndex") == CONFIG.n_layers
        assert page.evaluate(IN_SIGHT, "lens") == last


def test_chinese_and_korean_stand_upright(visit, tmp_path):
    page = visit(written(tmp_path / "run.html", 21))
    labels = page.locator(".layers thead .token")
    for index, text in ((0, "名"), (10, "字。"), (20, "한")):
        assert labels.nth(index).inner_text() == text
        style = labels.nth(index).evaluate(
            "(e) => [getComputedStyle(e).transform, getComputedStyle(e).textOrientation]"
        )
        assert style == ["none", "upright"]
    assert labels.nth(1).evaluate("(e) => getComputedStyle(e).transform") != "none"
    page.evaluate("""() => {
      window.drawn = [];
      const fill = CanvasRenderingContext2D.prototype.fillText;
      CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
        window.drawn.push([text, Math.abs(this.getTransform().b) > 0.1]);
        return fill.call(this, text, x, y);
      };
    }""")
    page.keyboard.press("2")
    drawn = page.evaluate("window.drawn")
    assert ["名", False] in drawn and ["名", True] not in drawn and ["B", True] in drawn
    assert ["字", False] in drawn and ["。", False] in drawn, "one below the other"


def test_what_a_prompt_says_is_inert(visit, traced):
    page = visit(traced[0])
    assert page.locator("h1").inner_text() == "a <b>title</b>"
    for key in "123456":
        page.keyboard.press(key)
        assert page.locator("main img, main script, [onfocus], [onerror]").count() == 0
    assert page.evaluate("window.hacked") is None


def test_scripts_and_addresses_that_were_not_written_by_us_are_refused(visit, traced):
    page = visit(traced[0])
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))")
    page.evaluate("fetch('https://example.org/').catch(() => {})")
    assert page.evaluate("window.hacked") is None
    page.wait_for_function("true")
    assert len(visit.complaints) >= 2 and all("Content Security Policy" in text for text in visit.complaints)
    visit.complaints.clear()


def test_a_click_opens_a_layers_steps_in_their_order(visit, traced):
    page = visit(traced[0])
    page.click("tr[data-group='3'] th")
    steps = [s for s in traced[1].values() if s.layer == 3 and s.kind != "argument"]
    shown = page.locator("#steps .step")
    names = shown.evaluate_all("cards => cards.map((card) => card.dataset.name)")
    assert [name for name in names if name != "x_BTD"][:4] == [
        "wide_BTD", "mean_square_BT1", "normed_BTD", "return",
    ]  # fmt: skip
    # decode's x_BTD, which the layer hands on, stands at the layer's end.
    assert names == [step.name for step in steps] + ["x_BTD"]
    card = page.locator(".step[data-name=q_BTHK]").first
    text = card.inner_text()
    step = traced[1]["layers.3.attention.q_BTHK"]
    assert "q_BTHK [B=1 T=12 H=6 K=8] float32" in text and step.source in text
    assert "layers.3.attention.wq.weight [48 × 48] float32 from consolidated.00.pth" in text
    for name in ("min", "max", "mean", "std"):
        shown_value = number(re.search(rf"{name}\s*(\S+)", text)[1])
        assert shown_value == pytest.approx(getattr(step.statistics, name), rel=1e-3)
    masked = page.locator(".step[data-name=masked_BGRTS]").inner_text()
    assert re.search(rf"Inf\s*{traced[1]['layers.3.attention.attend.masked_BGRTS'].statistics.inf}\b", masked)
    assert page.locator("#steps .function math").count() == page.locator("#steps .function").count() > 6
    assert page.locator("#steps .step canvas").count() == page.locator("#steps .step svg").count() == len(names)


def test_a_heat_maps_cell_tells_the_tensors_value_and_where_it_is(visit, traced):
    page = visit(traced[0])
    page.click("tr[data-group='3'] th")
    canvas = page.locator(".step[data-name=q_BTHK] canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    tensor = traced[1]["layers.3.attention.q_BTHK"].value[0]
    T, (H, K) = len(IDS), tensor.shape[1:]
    t, h, k = 7, 2, 5
    page.mouse.move(
        box["x"] + (h * K + k + 0.5) / (H * K) * box["width"], box["y"] + (t + 0.5) / T * box["height"]
    )  # fmt: skip
    value, where = page.locator("#tip").inner_text().split("\n")
    assert number(value) == pytest.approx(tensor[t, h, k].item(), abs=0.01 * tensor.abs().max().item())
    assert where.startswith(f"T {t} ") and where.endswith(f"H {h} K {k}")


def test_the_keyboard_does_what_the_mouse_does(visit, traced):
    page = visit(traced[0])
    page.focus("main select")
    page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused).startswith("layer 2, token 1 ")
    page.keyboard.press("Enter")
    assert page.locator("#steps h2").inner_text().startswith("Layer 2")
    assert page.evaluate("document.activeElement.closest('#steps') !== null")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.name") == "wide_BTD"
    page.keyboard.press("]")
    assert page.locator("#steps h2").inner_text().startswith("Layer 3")
    page.keyboard.press("Escape")
    assert page.locator("#steps .step").count() == 0
    assert page.evaluate("document.activeElement.closest('.layers') !== null")
    for key, view in zip("123456", ("layers", "attention", "lens", "rope", "residual", "cost"), strict=True):
        page.keyboard.press(key)
        assert page.locator(f"#tab-{view}[aria-selected=true]").count() == 1
    page.keyboard.press("ArrowRight")
    assert page.locator("#tab-layers[aria-selected=true]").count() == 1
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_attention_tells_the_traced_value_before_the_mask_and_after_the_softmax(visit, traced):
    page = visit(traced[0])
    page.keyboard.press("2")
    page.locator("main select").nth(0).select_option("4")
    page.locator(".heads button").nth(5).click()
    for stage, name in (("weights", "weights_BGRTS"), ("scores", "scores_BGRTS")):
        page.click(f".choice button[data-key={stage}]")
        canvas = page.locator("canvas.matrix")
        cell, label = (int(canvas.get_attribute(f"data-{name}")) for name in ("cell", "label"))
        matrix_TS = traced[1][f"layers.4.attention.attend.{name}"].value[0].flatten(0, 1)[5]
        for row, column in ((7, 2), (11, 0), (3, 3), (2, 9)):
            canvas.hover(position={"x": label + (column + 0.5) * cell, "y": label + (row + 0.5) * cell})
            wanted = matrix_TS[row, column].item()
            room = 0.004 if stage == "weights" else (matrix_TS.max() - matrix_TS.min()).item() / 126
            shown = number(page.locator(".readout b").inner_text())
            assert shown == pytest.approx(wanted, abs=room + 0.005 * abs(wanted))
            assert ("masked" in page.locator(".readout").inner_text()) == (column > row)
    page.keyboard.press("Tab")
    canvas.focus()
    page.keyboard.press("End")
    assert "(11)" in page.locator(".readout").inner_text()


def test_every_head_is_found_by_where_it_looks(visit, traced):
    page = visit(traced[0])
    page.keyboard.press("2")
    weights_HTS = traced[1]["layers.3.attention.attend.weights_BGRTS"].value[0].flatten(0, 1)
    T = len(IDS)
    of = {
        "first": weights_HTS[:, :, 0].mean(1),
        "previous": weights_HTS[:, range(1, T), range(T - 1)].mean(1),
        "itself": weights_HTS[:, range(T), range(T)].mean(1),
    }
    for target, mean_H in of.items():
        page.click(f".all button[data-key={target}]")
        labels = page.locator(".every td[data-layer='3']").evaluate_all("cells => cells.map((cell) => cell.ariaLabel)")
        shown = [float(re.search(r"([\d.]+) %", label)[1]) / 100 for label in labels]
        assert shown == pytest.approx(mean_H.tolist(), abs=0.008), target
    page.click(".every td[data-layer='3'][data-head='4']")
    assert page.locator("main select").nth(0).input_value() == "3"
    assert page.locator(".heads button[aria-pressed=true]").get_attribute("data-head") == "4"


def test_the_lens_says_what_the_head_would(visit, traced):
    page = visit(traced[0])
    page.keyboard.press("3")
    for layer in (0, CONFIG.n_layers - 1):
        x_BTD = traced[1][f"layers.{layer}.block.return"].value
        ids, shares = likeliest(x_BTD, PARAMS, CONFIG, 5)
        cells = page.locator(".lens tbody tr").nth(layer).locator("td")
        page.locator(".lens tbody tr").nth(layer).locator("td").nth(9).hover()
        first, *top = page.locator("#tip").inner_text().split("\n")
        assert first.startswith(f"layer {layer}, after 9")
        assert [line.split()[0] for line in top] == [
            f"{share * 100:.{1 if share < 0.0995 else 0}f}" for share in shares[0, 9].tolist()
        ]
        seen = cells.all_text_contents()
        for text, id in zip(seen, ids[0, :, 0].tolist(), strict=True):
            if 33 <= id < 127:
                assert text == chr(id)
    logits_BTV = traced[1]["unembed.logits_BTV"].value
    assert ids[0, :, 0].tolist() == logits_BTV[0].argmax(-1).tolist(), "the last row is the model's own choice"


def test_rope_shows_the_traced_pair_before_and_after(visit, traced):
    page = visit(traced[0])
    page.keyboard.press("4")
    page.locator("main select").first.select_option("1")
    page.click(".choice button[data-key=k]")
    box = page.locator("input[type=range]").bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    for share in (0.9, 0.6, 0.34):
        page.mouse.move(box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2)
    page.mouse.up()
    assert page.locator("input[type=range]").input_value() == "1", "it follows the mouse"
    text = page.locator(".circles figure").nth(7).get_attribute("data-tip")
    x, y, angle, X, Y = (number(n) for n in re.findall(r"[−\d.e]*\d", text.split(": ", 1)[1]))
    before, after = (traced[1][f"layers.1.attention.k_BTGK{n}"].value[0, :, 0] for n in ("", ".2"))
    for found, tensor in (((x, y), before), ((X, Y), after)):
        assert found == pytest.approx(tensor[7, 2:4].tolist(), abs=0.01 * tensor.abs().max().item())
    assert angle == pytest.approx(traced[1]["rotations.angles_BTJ"].value[0, 7, 1].item(), rel=1e-3)
    assert complex(x, y) * complex(torch.polar(torch.tensor(1.0), torch.tensor(angle))) == pytest.approx(
        complex(X, Y), abs=0.02 * before.abs().max().item()
    )


def test_residual_stream_and_costs(visit, traced):
    page = visit(traced[0])
    page.keyboard.press("5")
    assert page.locator(".plot path").count() == len(IDS) + 1
    page.keyboard.press("6")
    page.click(".choice button[data-key=flops]")
    total = sum(step.cost.flops for step in traced[1].values())
    assert f"{total / 1e6:.3g} MFLOPs" in page.locator(".lead").inner_text()
    assert page.locator(".bars").nth(0).locator(".what").first.inner_text() in ("swiglu", "attention", "unembed")
    assert page.locator(".bars").nth(2).locator(".what").count() == CONFIG.n_layers + 2


def test_a_later_pass_is_chosen(visit, traced):
    page = visit(traced[0])
    assert page.locator("#pass option").all_text_contents() == ["0: 12 tokens", "1: 1 token A"]
    page.select_option("#pass", "1")
    assert page.locator("tr[data-group='0'] td").count() == 1
    page.click("tr[data-group='0'] th")
    assert "k_BSGK [B=1 S=13 G=2 K=8]" in page.locator(".step[data-name=k_BSGK]").inner_text()
    for key in "23456":
        page.keyboard.press(key)
        assert "was traced" not in page.locator("main").inner_text()


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_a_phone_scrolls_no_further_than_its_panels(visit, traced):
    page = visit(traced[0], width=375, height=700)
    assert page.evaluate(OVERFLOW) == 0
    page.click("tr[data-group='3'] th")
    assert page.locator("#steps").bounding_box()["width"] == 375, "the steps fill the screen"
    assert page.evaluate("document.querySelector('#steps').scrollWidth") <= 375
    page.click("#steps button[aria-label^=close]")
    for key in "123456":
        page.keyboard.press(key)
        assert page.evaluate(OVERFLOW) == 0, key
    page.keyboard.press("?")
    assert page.evaluate(OVERFLOW) == 0


def test_a_finger_reads_the_attention_map_and_the_residual_stream(visit, traced):
    page = visit(traced[0], width=390, height=800, touch=True)
    page.keyboard.press("2")
    canvas = page.locator("canvas.matrix")
    cell, label = (int(canvas.get_attribute(f"data-{name}")) for name in ("cell", "label"))
    assert "tap a cell" in page.locator(".readout").inner_text()
    canvas.tap(position={"x": label + 1.5 * cell, "y": label + 4.5 * cell})
    assert "(4) →" in page.locator(".readout").inner_text()
    page.keyboard.press("5")
    before = page.locator(".readout").inner_text()
    page.locator("svg.plot").tap(position={"x": 60, "y": 20})
    assert page.locator(".readout").inner_text() != before


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !e.checkVisibility() || e.closest("script, template, :disabled, option")) continue;
    const style = getComputedStyle(e), ink = rgb(e.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.tagName + "." + e.className + " " + e.textContent.slice(0, 30)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(visit, traced, scheme):
    page = visit(traced[0], scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    for key in "123456?":
        page.keyboard.press(key)
        if key == "1":
            page.click("tr[data-group='3'] th")
        found = page.evaluate(CONTRAST)
        assert len(found) > 10
        assert min(found)[0] >= 4.5, min(found)


def test_every_function_that_the_trace_sees_has_its_formula():
    template = (page_module.resources.files("llama3_scratch.trace") / "page.html").read_text(encoding="utf-8")
    has = set(re.findall(r'<template data-function="(\w+)"><math>', template))
    params = tiny.params()
    seen = set()
    for layer in (block, fused_block):
        with torch.inference_mode(), watch(statistics=False) as steps:
            forward(tiny.tokens(1, 3), params, tiny.CONFIG, block=layer)
        seen |= {step.function for step in steps}
    assert {"attend_fused", "scale_frequencies", "embed"} < seen <= has
    assert all(hasattr(model, name) for name in has)


def test_many_tokens_are_shown_by_their_first_and_last(monkeypatch, traced, visit, tmp_path):
    monkeypatch.setattr(page_module, "MAX_TOKENS", 20)
    page = TracePage(PARAMS, CONFIG, tokenizer(), "long")
    assert page.max_tokens == 20
    with torch.inference_mode(), watch(keep=needs, on_step=page.take):
        forward(torch.randint(256, (1, 300)), PARAMS, CONFIG, block=block)
    page.write(tmp_path / "long.html")
    shown = visit(tmp_path / "long.html")
    assert shown.locator(".layers thead .token").count() == 20
    assert "Of 300 tokens the first 8 and the last 12 are shown" in shown.locator(".lead").inner_text()
    assert shown.locator("tr[data-group='1'] td.gap").count() == 1
    shown.keyboard.press("2")
    canvas = shown.locator("canvas.matrix")
    cell, label = (int(canvas.get_attribute(f"data-{name}")) for name in ("cell", "label"))
    canvas.hover(position={"x": label + 8.5 * cell, "y": label + 19.5 * cell})
    assert "(299)" in shown.locator(".readout").inner_text() and "(288)" in shown.locator(".readout").inner_text()


def test_a_model_of_many_heads_shows_fewer_tokens():
    most = [
        TracePage({}, OFFICIAL[name], None, name).max_tokens for name in ("llama3.2-1b", "llama3-8b", "llama3.1-405b")
    ]
    assert most == sorted(most, reverse=True) and most[0] > 100 and most[-1] >= 32


def test_what_a_file_may_hold_is_shared_by_the_passes_of_a_long_prompt(monkeypatch):
    heads, kept, shown = CONFIG.n_layers * CONFIG.n_heads, {}, {}
    monkeypatch.setattr(page_module, "MAX_ATTENTION_BYTES", 2 * heads * 80 * 80)
    for pieces in (1, 4):
        page, cache, shown[pieces] = TracePage(PARAMS, CONFIG, tokenizer(), "long", pieces=pieces), Cache(500), []
        with torch.inference_mode(), watch(keep=needs, on_step=page.take):
            for _ in range(pieces):
                shown[pieces].append(page.max_tokens)
                forward(torch.randint(256, (1, 100)), PARAMS, CONFIG, cache=cache, block=block)
        kept[pieces] = len(data_of(page.html())[1])
    assert shown == {1: [80], 4: [40] * 4}, "the last piece shows as much as the first"
    assert kept[4] < 1.5 * kept[1]


def test_generate_says_in_how_many_pieces_a_prompt_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "HEAT_ROWS", 12)
    monkeypatch.setattr(prefill, "CHUNK", 10)
    monkeypatch.setitem(stream.stream.__wrapped__.__kwdefaults__, "chunk", 10)
    argv = ["hi", "--model", str(tiny.folder(tmp_path / "chats")), "--max-tokens", "1"]
    assert generate.main([*argv, "--trace-out", str(tmp_path / "run.html")]) == 0
    about, _ = data_of((tmp_path / "run.html").read_text("utf-8"))
    assert len(about["ids"]) == 21 and len(about["passes"]) == 3
    assert max(rows for _, _, rows, *_ in about["heats"]) == 12 // 3, "the pieces share the rows of a heat map"


def test_not_a_number_is_seen(tmp_path, visit):
    params = dict(PARAMS)
    params["layers.2.attention.wo.weight"] = params["layers.2.attention.wo.weight"].clone()
    params["layers.2.attention.wo.weight"][0, 0] = torch.nan
    page = TracePage(params, CONFIG, tokenizer(), "nan")
    with torch.inference_mode(), watch(keep=needs, on_step=page.take):
        forward(torch.tensor([IDS]), params, CONFIG, block=block)
    page.write(tmp_path / "nan.html")
    shown = visit(tmp_path / "nan.html")
    shown.click("tr[data-group='2'] th")
    assert shown.locator(".step[data-name=attended_BTD] .bad").inner_text() == "NaN12"
    for key in "23456":
        shown.keyboard.press(key)


def test_generate_writes_it_and_keeps_no_tensor(tmp_path, capsys, monkeypatch):
    chats = tiny.folder(tmp_path / "chats")
    left = []

    @contextlib.contextmanager
    def watching(**how):
        with watch(**how) as steps:
            yield steps
        left.extend(steps)

    monkeypatch.setattr(tracer, "watch", watching)
    assert generate.main(["hi", "--model", str(chats), "--max-tokens", "2", "--trace-out", f"{tmp_path}/a.html"]) == 0
    assert (tmp_path / "a.html").is_file() and len(left) > 250
    assert all(step.value is None for step in left)


def test_a_conversation_of_a_file_is_a_page_too(tmp_path, capsys):
    chats = tiny.folder(tmp_path / "chats")
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b>hi</b>"}]
    (tmp_path / "one.jsonl").write_text(json.dumps({"messages": said}) + "\n", encoding="utf-8")
    argv = ["--prompts-file", str(tmp_path / "one.jsonl"), "--model", str(chats), "--max-tokens", "2"]
    assert generate.main([*argv, "--trace-out", str(tmp_path / "run.html")]) == 0
    (tmp_path / "one.jsonl").write_text(2 * (json.dumps({"messages": said}) + "\n"), encoding="utf-8")
    assert generate.main([*argv, "--trace-out", str(tmp_path / "run.html")]) == 2
    assert "a page shows one prompt" in capsys.readouterr().err


BAD = {
    "no weights": (["--model", "llama3.2-1b", "--no-weights", "--length", "3"], "it holds values"),
    "two prompts": (["--prompt", "a", "--prompt", "b"], "a page shows one prompt"),
}


@pytest.mark.parametrize("argv, message", BAD.values(), ids=BAD)
def test_what_it_cannot_show_is_refused(argv, message, tmp_path, capsys):
    assert generate.main([*argv, "--trace-out", str(tmp_path / "run.html")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_fifty_tokens_of_the_real_model_fit_in_five_megabytes(smollm2, tmp_path, visit, capsys):
    """Fifty of the prompt's own, and thirty more of the chat's."""
    text = "The quick brown fox jumps over the lazy dog, and the dog, who had seen many foxes, went on sleeping. " * 2
    path = tmp_path / "run.html"
    argv = [text.strip() + " Why?", "--model", str(smollm2), "--max-tokens", "1", "--trace-out", str(path)]
    assert generate.main(argv) == 0
    tokens = int(re.search(r"prefill (\d+) tokens", capsys.readouterr().err)[1])
    assert tokens >= 80
    assert path.stat().st_size < 5e6
    page = visit(path)
    assert page.locator(".layers td").count() == tokens * 32
    page.click("tr[data-group='29'] th")
    assert page.locator("#steps .step").count() == 40


@pytest.mark.slow
def test_the_readmes_picture_can_be_taken_again(traced, tmp_path):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")

    def take(page: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own: two browsers can't be driven from one thread."""
        line = [sys.executable, str(SCRIPTS / "trace_picture.py"), str(page), "--out", str(out), *more]
        return subprocess.run(line, capture_output=True, text=True, timeout=120)

    seen = {}
    for layer, function in (("1", "attend"), ("1", "swiglu"), ("2", "attend")):
        out = tmp_path / f"{layer}-{function}.png"
        done = take(traced[0], out, "--layer", layer, "--function", function)
        assert (done.returncode, done.stderr) == (0, "")
        seen[layer, function] = out.read_bytes()
    assert len(set(seen.values())) == 3
    kept = (PACKAGE.parent / ".pictures" / "run.png").read_bytes()
    for picture in (kept, *seen.values()):
        assert picture.startswith(b"\x89PNG") and struct.unpack(">II", picture[16:24]) == (1800, 1200)
    other = tmp_path / "other.html"
    other.write_text("<p>Hi")
    for page, more, code, said in (
        (traced[0], ["--layer", "9"], 2, "--layer 9: the trace has no such layer"),
        (traced[0], ["--layer", "1", "--function", "attends"], 2, "--function attends: has no step in layer 1"),
        (other, [], 3, "no page of a trace"),
    ):
        done = take(page, tmp_path / "x.png", *more)
        assert done.returncode == code and said in done.stderr and not (tmp_path / "x.png").exists()


def test_without_chromium_no_picture_is_taken(traced, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert script("trace_picture")([str(traced[0]), "--out", str(tmp_path / "x.png")]) == 2
    assert "no Chromium is installed: apt-get install chromium" in capsys.readouterr().err
