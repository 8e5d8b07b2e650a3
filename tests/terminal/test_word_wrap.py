"""Words on a narrow terminal: where lines break, and that nothing which has to stay whole is broken."""

from __future__ import annotations

import re
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from llama3_scratch.terminal.word_wrap import WordWrap

TEXT = (
    "The sky is blue because air scatters short waves of light more than long ones, as Rayleigh found in 1871; "
    "at dusk the way through the air is longer, and what is left of the light is red."
)


def wrapped(text: str, width: int = 20, pieces: int = 3) -> str:
    out: list[str] = []
    page = WordWrap(out.append, lambda: width)
    for begin in range(0, len(text), pieces):
        page.write(text[begin : begin + pieces])
    page.finish()
    return "".join(out)


def screen(written: str, width: int) -> list[str]:
    """The lines that a terminal of this width shows: it goes on in the next line where one is full."""
    lines, column = [""], 0
    for char in written:
        if char == "\n":
            lines.append("")
            column = 0
            continue
        if column + cell_len(char) > width:
            lines.append("")
            column = 0
        lines[-1] += char
        column += cell_len(char)
    return lines


@pytest.mark.parametrize("width", [11, 20, 40, 79])
@pytest.mark.parametrize("pieces", [1, 4, 1000])
def test_prose_is_wrapped_as_textwrap_does(width, pieces):
    want = textwrap.fill(TEXT, width, break_on_hyphens=False)
    assert wrapped(TEXT, width, pieces) == want
    assert screen(want, width) == want.split("\n"), "the terminal itself breaks nothing"


def test_a_word_that_fills_its_line_to_the_edge():
    assert wrapped("abcde fghij klmno\nx", 11) == "abcde fghij\nklmno\nx"
    assert wrapped("abcdefghij k", 10) == "abcdefghij\nk"
    assert wrapped("  - abcdefgh\n    abcdef", 8) == "  -\nabcdefgh\nabcdef", "a word rather than its indentation"
    assert wrapped("hard break  \nnext", 10) == "hard break\nnext", "blanks beyond the edge would be an empty line"


def test_what_is_longer_than_a_line_stays_whole():
    address = "https://example.org/" + "a/" * 30
    assert wrapped(f"see {address} there", 30) == f"see\n{address} there"


def test_a_word_is_shown_when_it_is_whole_and_a_long_one_as_it_comes():
    out: list[str] = []
    page = WordWrap(out.append, lambda: 20)
    page.write("one tw")
    assert "".join(out) == "one"
    page.write("o x")
    assert "".join(out) == "one two"
    page.write("y" * 40)
    assert "".join(out).endswith("y" * 40)


def test_blocks_of_code_are_not_touched():
    code = "```python\nprint('a long line of code that goes beyond the edge', 1,   2)\n```"
    assert wrapped(f"{code}\nand after it words are wrapped again", 20) == (
        f"{code}\nand after it words\nare wrapped again"
    )
    nested = "~~~~\n```\nother marks end nothing, and fewer don't either\n~~~\nstill code that is very long\n~~~~"
    assert wrapped(nested, 20) == nested
    assert wrapped("``` is `a` fence of three backticks ```", 20).count("\n") == 1, "inline code is prose"


def test_chinese_is_left_to_the_terminal_and_counted_by_columns():
    text = "天空是蓝色的，因为空气散射短波长的光比长波长的光更多。"
    assert wrapped(text, 20) == text, "copied as it was said"
    mixed = wrapped("天空是蓝色的，因为空气 scatters light 更多。", 24)
    assert mixed == "天空是蓝色的，因为空气\nscatters light 更多。"
    assert screen(mixed, 24) == mixed.split("\n")
    assert wrapped("🙂 🙂 🙂 🙂", 5) == "🙂 🙂\n🙂 🙂"
    assert wrapped("e\u0301e\u0301e\u0301 e\u0301", 5) == "e\u0301e\u0301e\u0301 e\u0301", "accents have no width"


def test_a_terminal_that_is_resized():
    for before in range(80):
        widths = iter([40] * before + [8] * 200)
        out: list[str] = []
        page = WordWrap(out.append, lambda: next(widths))  # noqa: B023
        page.write("aaaa bbbb cccc dddd eeee ffff\n")
        assert "".join(out).split() == ["aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff"]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab -`~\n\t中，é🙂", max_size=120), st.integers(4, 12), st.integers(1, 5))
def test_nothing_is_lost_and_breaks_stand_for_blanks(text, width, pieces):
    out = wrapped(text, width, pieces)
    assert re.sub(r"\s", "", out) == re.sub(r"\s", "", text)
    assert out == wrapped(text, width, 1), "however it comes"
    words = [word for word in re.findall(r"[^\s中，🙂]+", text) if cell_len(word) <= width]
    if not any(mark in text for mark in ("```", "~~~", "\t")):
        shown = re.findall(r"[^\s中，🙂]+", "\n".join(screen(out, width)))
        if len(words) == len(re.findall(r"[^\s中，🙂]+", text)):
            assert shown == words, "no word is broken"
