"""A token on a line for people: everything in it can be seen, and what is half a character is shown as its bytes."""

from __future__ import annotations

import pytest

from llama3_scratch.text.detokenizer import label
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer

LABELS = [
    (b"Paris", "Paris"),
    (b"  two ", "␣␣two␣"),
    (b"   ", "␣␣␣"),
    (b"", "∅"),
    (b"a b\n\t\r", "a b⏎⇥␍"),
    ("名字。".encode(), "名字。"),
    (b"\xe4\xbd", "⟨E4 BD⟩"),
    (b" \xe4\xbd", "␣⟨E4 BD⟩"),
    (b"a\x80\xff", "a⟨80⟩⟨FF⟩"),
    ("\x7f\x9f\u200b\u202e\u3000\xa0".encode(), "⟨7F⟩⟨9F⟩⟨200B⟩⟨202E⟩⟨3000⟩⟨A0⟩"),
    ("e\u0301👍🏽".encode(), "e\u0301👍🏽"),
    (rb"\xe4", r"\xe4"),
]


@pytest.mark.parametrize(("data", "wanted"), LABELS)
def test_every_token_has_a_label_that_can_be_seen(data, wanted):
    words = {bytes([byte]): byte for byte in range(256)} | ({data: 256} if data else {})
    tokenizer = Tokenizer(
        words,
        pattern=PATTERN,
        special_tokens={},
        bos_id=None,
        eos_id=None,
        stop_tokens=[],
        chat_format=None,
        add_bos=False,
    )
    found = label(words[data] if data else 999, tokenizer)  # an id past the vocabulary only pads the embedding
    assert found == wanted and "�" not in found
