"""Conversations: what is read, what of it is learnt, and how rows are filled."""

from __future__ import annotations

import json

import pytest
import torch

from llama3_scratch.data.batches import IGNORE
from llama3_scratch.data.conversation_batches import Conversations, encode
from llama3_scratch.data.conversations import read_conversations, split
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.chat_format import format_template
from llama3_scratch.text.dialog import encode_dialog, encode_message
from llama3_scratch.text.tokenizer import ChatTemplate
from tests import tiny

ASKED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you"}]
LONGER = [
    {"role": "system", "content": "Be kind"},
    *ASKED,
    {"role": "user", "content": "Bye <|eot_id|>"},
    {"role": "assistant", "content": "See you"},
]


def tokenizers():
    return {name: tiny.tokenizer(name) for name in ("llama3", "chatml")}


def read(tmp_path, text, name="a.jsonl"):
    (tmp_path / name).write_text(text)
    return read_conversations(tmp_path / name)


def test_rows_of_either_kind(tmp_path):
    rows = [
        {"messages": LONGER},
        {"instruction": "Add", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hi", "input": "", "output": "hi"},
    ]
    wanted = [
        LONGER,
        [{"role": "user", "content": "Add\n\n1 and 2"}, {"role": "assistant", "content": "3"}],
        [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "hi"}],
    ]
    assert read(tmp_path, "\n".join(map(json.dumps, rows))) == wanted
    assert read(tmp_path, json.dumps(rows), "a.json") == wanted


@pytest.mark.parametrize(
    ("row", "said"),
    [
        pytest.param({"instruction": "a"}, "output is missing or no text", id="F226"),
        pytest.param({"output": "a"}, "instruction is missing or no text", id="F226 too"),
        pytest.param({"messages": [{"role": "user"}]}, "objects with a role and a content", id="F226 content"),
        pytest.param(
            {"messages": [*ASKED[:1], {"role": "assistant", "content": " "}]}, "answer .* is empty", id="F230"
        ),
        pytest.param({"messages": ASKED[:1]}, "no message is the assistant's", id="F231"),
        pytest.param({"messages": [{"role": "bot", "content": "a"}, *ASKED]}, "role must be one of", id="role"),
    ],
)
def test_rows_that_cant_be_learnt(tmp_path, row, said):
    with pytest.raises(FileError, match=rf"a\.jsonl:2: .*{said}"):
        read(tmp_path, json.dumps({"messages": ASKED}) + "\n" + json.dumps(row))
    with pytest.raises(FileError, match=rf"a\.json: row 1: .*{said}"):
        read(tmp_path, json.dumps([row]), "a.json")


def test_json_lists_that_arent(tmp_path):
    with pytest.raises(FileError, match="row 1: expected a JSON object as each row, got int"):
        read(tmp_path, "[1]", "a.json")
    with pytest.raises(FileError, match=r"a\.json:1:4: not valid JSON"):
        read(tmp_path, "[1,", "a.json")


def test_f237_what_stands_twice_is_counted(tmp_path, caplog):
    read(tmp_path, "\n".join([json.dumps({"messages": ASKED})] * 3))
    assert "2 of 3 conversations stand there before already" in caplog.text


@pytest.mark.parametrize("name", ["llama3", "chatml"])
def test_only_answers_are_learnt_and_all_is_as_the_model_meets_it(name):
    tokenizer = tokenizers()[name]
    encoded = encode(LONGER, tokenizer)
    prompt = encode_dialog(LONGER[:2], tokenizer)
    assert encoded.ids[: len(prompt)] == prompt and not any(encoded.is_target[: len(prompt)])
    again = encode_dialog(LONGER[:4], tokenizer)
    assert encoded.ids[: len(again)] == again, "the second turn stands behind what a chat would hold"
    end = encode_message(LONGER[-1], tokenizer)[-1 if name == "llama3" else -2]
    learnt = [id for id, is_learnt in zip(encoded.ids, encoded.is_target, strict=True) if is_learnt]
    assert learnt.count(end) == 2 and encoded.ids[-1] == end
    assert tokenizer.decode(learnt) == tokenizer.decode([end]).join(["Hello you", "See you", ""])
    assert all(encode(LONGER, tokenizer, mask_prompt=False).is_target)


def test_f234_special_tokens_in_a_text_are_text():
    tokenizer = tokenizers()["llama3"]
    end = tokenizer.special("<|eot_id|>")
    assert encode(LONGER, tokenizer).ids.count(end) == 5 and encode(ASKED, tokenizer).ids.count(end) == 2


def conversations(count=9):
    return [
        [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n} " * (n + 1)}]
        for n in range(count)
    ]


def test_rows_are_filled_and_know_their_documents():
    tokenizer = tokenizers()["llama3"]
    some = conversations()
    batches = Conversations(some, tokenizer, size=2, length=80, seed=1)
    encoded = [encode(one, tokenizer) for one in some]
    seen = []
    for index in range(len(batches)):
        batch = batches.batch(index)
        for tokens_T, targets_T, documents_T in zip(batch.tokens_BT, batch.targets_BT, batch.documents_BT, strict=True):
            for number in range(int(documents_T.max()) + 1):
                at = documents_T == number
                one = next(i for i, e in enumerate(encoded) if e.ids[:-1] == tokens_T[at].tolist())
                wanted = [
                    id if learnt else IGNORE
                    for id, learnt in zip(encoded[one].ids, encoded[one].is_target, strict=True)
                ]
                assert targets_T[at].tolist() == wanted[1:]
                seen.append(one)
            assert (targets_T[documents_T == -1] == IGNORE).all()
    assert sorted(seen) == list(range(9)) and len(batches) < 9
    assert batches.answer_tokens == sum(sum(e.is_target[1:]) for e in encoded)


def test_an_epoch_is_decided_by_its_number_alone():
    tokenizer = tokenizers()["llama3"]
    one, two = (Conversations(conversations(), tokenizer, size=2, length=80, seed=1) for _ in range(2))
    later = len(one) + 1
    assert torch.equal(one.batch(later).tokens_BT, two.batch(later).tokens_BT)
    first = [row for i in range(len(one)) for row in one.batch(i).tokens_BT.tolist()]
    second = [row for i in range(len(one), 2 * len(one)) for row in one.batch(i).tokens_BT.tolist()]
    assert first != second and one.fingerprint == two.fingerprint
    assert Conversations(conversations(), tokenizer, size=2, length=80, seed=2).fingerprint != one.fingerprint


def test_f232_f233_what_is_too_long(caplog):
    tokenizer = tokenizers()["llama3"]
    long = [{"role": "user", "content": "x " * 60}, {"role": "assistant", "content": "yes"}]
    batches = Conversations([ASKED, long], tokenizer, size=1, length=40, seed=0)
    assert "1 of 2 conversations are longer than 40 tokens and were cut" in caplog.text
    assert "1 conversations have no answer left" in caplog.text and len(batches) == 1
    left = Conversations([long], tokenizer, size=1, length=40, seed=0, truncate="left").batch(0)
    assert left.tokens_BT.shape == (1, 40) and (left.targets_BT != IGNORE).any()
    with pytest.raises(FileError, match="none of 1 conversations has an answer within 40 tokens"):
        Conversations([long], tokenizer, size=1, length=40, seed=0)
    with pytest.raises(UsageError, match="`truncate`: expected right or left, got 'middle'"):
        Conversations([ASKED], tokenizer, size=1, length=40, seed=0, truncate="middle")


def test_parts_are_shuffled_once():
    parts = split(conversations(20), seed=3)
    assert [len(part) for part in parts] == [17, 1, 2]
    assert sorted(json.dumps(one) for part in parts for one in part) == sorted(map(json.dumps, conversations(20)))
    assert split(conversations(20), seed=3) == parts != split(conversations(20), seed=4)


def test_any_order_that_the_frame_takes_is_learnt(tmp_path):
    asked, answered = ASKED
    for messages in ([answered, *ASKED], [*ASKED, answered], [asked, *ASKED, asked]):
        assert read(tmp_path, json.dumps({"messages": messages})) == [messages]
        for tokenizer in tokenizers().values():
            encoded = encode(messages, tokenizer)
            text = tokenizer.decode(id for id, learnt in zip(encoded.ids, encoded.is_target, strict=True) if learnt)
            assert text.count("Hello you<|") == messages.count(answered)
            assert tokenizer.decode(encoded.ids).count("Hi") == messages.count(asked)


def test_a_conversation_that_a_template_refuses_is_named():
    tokenizer = tokenizers()["chatml"]
    tokenizer.chat_template = ChatTemplate("{{ raise_exception('no system role') }}")
    tokenizer.set_chat_format("template")
    with pytest.raises(
        FileError, match=r"conversation that begins 'Be kind': .* doesn't take this chat: no system role"
    ):
        Conversations([LONGER], tokenizer, size=1, length=80, seed=1)


def test_answers_of_a_template_are_learnt_as_those_of_the_frame():
    framed, templated = tokenizers()["chatml"], tokenizers()["chatml"]
    templated.chat_template = ChatTemplate(format_template(framed))
    templated.set_chat_format("template")
    for messages in (ASKED, LONGER, [*LONGER, *ASKED], [*LONGER, *ASKED[:1]]):
        for mask_prompt in (True, False):
            wanted = encode(messages, framed, mask_prompt=mask_prompt)
            got = encode(messages, templated, mask_prompt=mask_prompt)
            assert (got.ids, got.is_target) == (wanted.ids, wanted.is_target)
