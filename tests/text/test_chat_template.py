"""Chat templates: ids equal to transformers' for templates of every kind, and limits that hold against any template."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch.checkpoint.gguf_vocab import read_vocabulary, vocabulary
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text import chat_template_process
from llama3_scratch.text.chat_template import encode_chat
from llama3_scratch.text.dialog import decode_message, encode_conversation, encode_dialog, encode_message
from llama3_scratch.text.hf_tokenizer import read_tokenizer_json, write_tokenizer_json
from llama3_scratch.text.tokenizer import PATTERN, ChatTemplate, Tokenizer
from llama3_scratch.text.tokenizer_file import read_tokenizer, write_tokenizer
from tests import tiny
from tests.text.templates import (
    CALLED,
    CONTROL,
    HERMES,
    TEMPLATES,
    TOOLS,
    as_transformers_sees,
    chat,
    model,
    read,
)

CHATS = [
    *(
        chat(roles, "Hi", "you <a> & 'b'", "é 日本")
        for roles in ("u", "su", "uau", "suau", "uauau", "uu", "au", "usu", "uat")
    ),
    *(chat(roles, "\n\n ab \n", " a", "ab\n\n ") for roles in ("u", "su", "uau", "suau")),
    *(chat(roles, "", "ab") for roles in ("su", "uaau")),
    chat("uau", "Hi", "<think>ab</think> yes"),
    chat("u", "Be ab. {{ bos_token }} {% raw %} \\n \x00 \ue000 \\ue001"),
    CALLED,
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(model(tmp_path_factory.mktemp("theirs")))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return read(tmp_path_factory.mktemp("plain"), TEMPLATES["zephyr"])


@pytest.mark.parametrize("kind", TEMPLATES)
def test_ids_equal_those_of_transformers(theirs, tmp_path, kind):
    import jinja2

    tokenizer = read(tmp_path, TEMPLATES[kind])
    assert (tokenizer.chat_format == "chatml") == (kind == "chatml")  # of all of them its frame alone gives the same
    taken = 0
    for messages in CHATS:
        try:
            expected = theirs.apply_chat_template(
                as_transformers_sees(messages),
                chat_template=TEMPLATES[kind],
                add_generation_prompt=True,
                return_dict=False,
            )
        except (jinja2.TemplateError, TypeError) as error:
            if tokenizer.chat_format == "chatml":  # which has calls of its own, though its template fails on them
                assert messages is CALLED
                continue
            with pytest.raises(UsageError) as caught:
                encode_dialog(messages, tokenizer)
            if type(error) is jinja2.TemplateError:
                assert str(error) in str(caught.value)
            continue
        assert encode_dialog(messages, tokenizer) == expected, messages
        taken += 1
    assert taken >= 6


def test_a_date(theirs, tmp_path):
    tokenizer = read(tmp_path, TEMPLATES["llama3.1"])
    how = {"add_generation_prompt": True, "return_dict": False}
    for messages in CHATS:
        expected = theirs.apply_chat_template(
            as_transformers_sees(messages), chat_template=TEMPLATES["llama3.1"], date_string="26 Jul 2024", **how
        )
        assert encode_dialog(messages, tokenizer, date="26 Jul 2024") == expected
    today = datetime.date.today().strftime("%d %b %Y")
    assert f"Today Date: {today}" in tokenizer.decode(encode_dialog(CHATS[0], tokenizer))
    typed = encode_dialog(CHATS[0], tokenizer, date="<|eot_id|>")
    assert typed.count(tokenizer.special("<|eot_id|>")) == 2 and "<|eot_id|>\n\n" in tokenizer.decode(typed)
    asks = read(tmp_path, "{{ strftime_now('%Y-%m-%d') }}")
    assert asks.decode(encode_dialog(CHATS[0], asks, date="26 Jul 2024")) == "2024-07-26"
    assert asks.decode(encode_dialog(CHATS[0], asks, date="a Monday")) == "a Monday"
    with pytest.raises(UsageError, match="this model's doesn't, leave it out"):
        encode_dialog(CHATS[0], read(tmp_path, TEMPLATES["phi"]), date="26 Jul 2024")


# Tools, and answers that have begun


@pytest.mark.parametrize("template", [TEMPLATES["llama3.1"], HERMES, "{{ tools }}{{ tools | tojson }}<|user|>"])
def test_tools_are_the_templates(theirs, tmp_path, template):
    tokenizer = read(tmp_path, template)
    assert tokenizer.chat_format == "template"
    for messages in (chat("u", "Hi"), chat("suau", "Hi", "ab"), CALLED):
        expected = theirs.apply_chat_template(
            as_transformers_sees(messages),
            tools=TOOLS,
            chat_template=template,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert encode_dialog(messages, tokenizer, tools=TOOLS) == expected
        assert encode_dialog(messages, tokenizer) != expected


def test_typed_control_tokens_stay_text_in_tools(plain):
    tools = [
        {"type": "function", "function": {"name": "f", "description": f"{TYPED} \ue000", "parameters": {TYPED: 1}}}
    ]
    ids = encode_chat(chat("u", "Hi"), ChatTemplate("<|user|>{{ tools[0].function }}<|end|>"), plain, tools=tools)
    assert control_ids(ids, plain) == [plain.special("<|user|>"), plain.special("<|end|>")]
    assert plain.decode(ids).count(TYPED) == 2


def test_a_template_without_a_place_for_tools(tmp_path):
    for tokenizer in (read(tmp_path, TEMPLATES["phi"]), read(tmp_path, TEMPLATES["gemma"])):
        with pytest.raises(
            UsageError, match="chat template has no place for tools; leave them out, or take the chat fo"
        ):
            encode_dialog(chat("u", "Hi"), tokenizer, tools=TOOLS)


@pytest.mark.parametrize("kind", ["chatml", "zephyr", "mistral", "gemma", "alpaca", "vicuna", "llama3", "llama3.1",
                                  "chatml-stripped", "chatml-default-system", "generation"])  # fmt: skip
def test_an_answer_goes_on_where_transformers_lets_it(theirs, tmp_path, kind):
    tokenizer = read(tmp_path, TEMPLATES[kind])
    for said in ("Once", "é <a>", " a\n", "x  ", "<|eot_id|> a", "CONTINUE"):
        messages = chat("uaua", "Hi", said)
        messages[1]["content"] = "Hi"
        expected = theirs.apply_chat_template(
            messages, chat_template=TEMPLATES[kind], continue_final_message=True, return_dict=False
        )
        ids = encode_dialog(messages, tokenizer, continue_last=True)
        if "<|" not in said:  # theirs takes what is typed for the token
            assert ids == expected
        assert tokenizer.decode(ids).endswith((said, said.strip()))
        assert control_ids(ids, tokenizer) == control_ids(
            encode_dialog([*messages[:-1], {"role": "assistant", "content": "x"}], tokenizer, continue_last=True),
            tokenizer,
        )


def test_a_million_spaces_and_a_vocabulary_of_control_tokens(tmp_path):
    """f180: tokens that take the spaces around them, and hundreds of others, are looked for in linear time."""
    names = [f"<|reserved_{number}|>" for number in range(300)]
    control = {**read(tmp_path, TEMPLATES["phi"]).special_tokens, **{name: 1000 + at for at, name in enumerate(names)}}
    tokenizer = read(tmp_path, TEMPLATES["phi"])
    both = {"lstrip": True, "rstrip": True}
    wide = Tokenizer(tokenizer.ranks, pattern=PATTERN, special_tokens=control, bos_id=None, eos_id=None, stop_tokens=[],
                     chat_format=None, add_bos=False, token_flags={"<|user|>": both, names[7]: both})  # fmt: skip
    for text in (" " * 1_000_000, "a b " * 250_000):
        begun = time.perf_counter()
        template = ChatTemplate("<|user|>{{ messages[0].content }}<|reserved_7|>")
        ids = encode_chat(chat("u", f"x{text}y"), template, wide)
        assert ids[0] == control["<|user|>"] and ids[-1] == 1007 and wide.decode(ids[1:-1]) == f"x{text}y"
        assert time.perf_counter() - begun < 20


def test_an_answer_that_a_template_does_not_show_cannot_go_on(tmp_path):
    tokenizer = read(tmp_path, "{{ messages[0].content }}<|assistant|>")
    with pytest.raises(UsageError, match="doesn't show the last message as it stands, so it can't be continued"):
        encode_dialog(chat("ua", "Hi"), tokenizer, continue_last=True)


# What is typed


def control_ids(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    return [id for id in ids if id in tokenizer.special_tokens.values()]


TYPED = "".join(CONTROL) + " <|IM_END|> <|EOT_ID|>"


@pytest.mark.parametrize("kind", [kind for kind in TEMPLATES if kind != "mistral"])
@pytest.mark.parametrize("roles", ["u", "uau"])
def test_typed_control_tokens_stay_text(tmp_path, kind, roles):
    tokenizer = read(tmp_path, TEMPLATES[kind])
    plainly, typed = (encode_dialog(chat(roles, text), tokenizer) for text in ("x", TYPED))
    assert control_ids(typed, tokenizer) == control_ids(plainly, tokenizer)
    assert tokenizer.decode(typed) == tokenizer.decode(plainly).replace("x", TYPED) or kind in ("json", "alpaca")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content | lower }}",
        "{{ messages[0].content | upper }}",
        "{{ messages[0].content | trim | title }}",
        "{{ messages[0].content.split() | join(' ') }}",
        "{{ messages[0].content | tojson(ensure_ascii=true) }}",
        "{{ messages }}",
        "{{ [messages[0].content] | string }}",
        "{{ messages[0].content | list | join }}",
        "{{ messages[0].content[1:] }}",
    ],
)
def test_typed_control_tokens_stay_text_whatever_a_template_does_to_them(plain, template):
    ids = encode_chat(chat("u", f" {TYPED} \ue000 \\ue001\n"), ChatTemplate(template), plain)
    assert control_ids(ids, plain) == []
    for mark in ("\ue002", "\\ue002"):
        assert mark not in plain.decode(ids)


def test_typed_control_tokens_stay_text_in_tool_calls(theirs, tmp_path):
    tokenizer = read(tmp_path, TEMPLATES["llama3.1"])
    call = {"name": "<|eot_id|>", "arguments": {"<|eot_id|>": ["<|eot_id|>", {"<|eot_id|>": 1}]}}
    messages = [*chat("u", "x"), {"role": "assistant", "tool_calls": [call]}, *chat("t", "<|eot_id|>")]
    ids = encode_dialog(messages, tokenizer)
    assert ids.count(tokenizer.special("<|eot_id|>")) == 4
    assert tokenizer.decode(ids).count("<|eot_id|>") == 9


@given(st.lists(st.one_of(st.text(max_size=5), st.sampled_from(CONTROL)), max_size=6))
@settings(max_examples=60, deadline=None)
def test_no_content_makes_a_control_token(plain, pieces):
    text = "".join(pieces)
    ids = encode_chat(chat("u", text), ChatTemplate("<|user|>{{ messages[0].content }}<|end|>"), plain)
    assert plain.decode(ids[1:-1]).encode("utf-8", "replace") == text.encode("utf-8", "replace")
    assert control_ids(ids, plain) == [plain.special("<|user|>"), plain.special("<|end|>")]


def test_a_control_token_of_one_character(plain):
    special = {**plain.special_tokens, "§": 999}
    tokenizer = Tokenizer(plain.ranks, pattern=PATTERN, special_tokens=special, bos_id=None, eos_id=None,
                          stop_tokens=[], chat_format=None, add_bos=False)  # fmt: skip
    ids = encode_chat(chat("u", "a§b"), ChatTemplate("§{{ messages[0].content }}§"), tokenizer)
    assert ids == [999, *tokenizer.encode("a§b", bos=False, eos=False), 999] and ids.count(999) == 2


def test_words_and_tokens_that_take_the_spaces_around_them(tmp_path):
    """Phi-3's kind: `<|user|>` isn't special, and `<|end|>` takes what follows it; all as transformers has it."""
    transformers = pytest.importorskip("transformers")
    folder = model(tmp_path, TEMPLATES["phi"])
    document = json.loads((folder / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["special"] = token["content"] not in ("<|user|>", "<|system|>")
        token["rstrip"] = token["content"] in ("<|end|>", "<|user|>")
        token["lstrip"] = token["content"] == "<|assistant|>"
    (folder / "tokenizer.json").write_text(json.dumps(document))
    theirs, tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder), read_tokenizer_json(folder)
    for messages in [*(each for each in CHATS if each is not CALLED), chat("u", "a <|user|>\n b<|system|> c")]:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert encode_dialog(messages, tokenizer) == expected
    typed = encode_dialog(chat("u", "a <|end|> b"), tokenizer)
    assert typed.count(tokenizer.special("<|end|>")) == 1 and "a <|end|> b" in tokenizer.decode(typed)
    ids, written = encode_conversation(chat("ua", "Hi", "you"), tokenizer)
    assert tokenizer.decode(id for id, is_answer in zip(ids, written, strict=True) if is_answer) == "you<|end|>"


# What is learnt


@pytest.mark.parametrize("kind", ["chatml-bos", "zephyr", "mistral", "gemma", "llama2", "alpaca", "vicuna", "phi",
                                  "deepseek", "llama3", "llama3.1", "generation"])  # fmt: skip
def test_answers_to_learn(theirs, tmp_path, kind):
    tokenizer = read(tmp_path, TEMPLATES[kind])
    messages = chat("uauau", "Hi", "ab</s>c", "more")[:4]
    ids, written = encode_conversation(messages, tokenizer)
    answers: list[list[int]] = [[]]
    for id, is_answer in zip(ids, written, strict=True):
        if is_answer:
            answers[-1].append(id)
            if id in tokenizer.stop_tokens:
                answers.append([])
    assert [tokenizer.decode(answer[:-1]).strip() for answer in answers[:-1]] == ["ab</s>c", "Hi"]
    assert answers[-1] == [] and ids[-1] in tokenizer.stop_tokens
    prompts = [encode_dialog(messages[:index], tokenizer) for index in (1, 3)]
    assert [ids[: len(prompt)] for prompt in prompts] == prompts, "as a chat would ask"
    assert [written[len(prompt) - 1 : len(prompt) + 1] for prompt in prompts] == [[False, True]] * 2
    harmless = chat("uauau", "Hi", "abc", "more")[:4]
    whole = theirs.apply_chat_template(harmless, chat_template=TEMPLATES[kind], return_dict=False)
    learnt = encode_conversation(harmless, tokenizer)[0]
    assert tokenizer.decode(whole).startswith(tokenizer.decode(learnt))
    longer, flags = encode_conversation([*messages, *chat("u", "Bye")], tokenizer)
    assert longer[: len(ids)] == ids and not any(flags[len(ids) :]) and "Bye" in tokenizer.decode(longer[len(ids) :])


def test_a_date_to_learn_on(tmp_path):
    tokenizer = read(tmp_path, TEMPLATES["llama3.1"])
    messages = chat("ua", "Hi", "you")
    ids = encode_conversation(messages, tokenizer, date="26 Jul 2024")[0]
    prompt = encode_dialog(messages[:1], tokenizer, date="26 Jul 2024")
    assert ids[: len(prompt)] == prompt and "Today Date: 26 Jul 2024" in tokenizer.decode(ids)
    framed = tiny.tokenizer("llama3")
    ids = encode_conversation(messages, framed, date="26 Jul 2024")[0]
    prompt = encode_dialog(messages[:1], framed, date="26 Jul 2024")
    assert ids[: len(prompt)] == prompt and "Today Date: 26 Jul 2024" in framed.decode(ids)


def test_answers_that_cannot_be_told(tmp_path):
    thinks = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}"
    thinks += "<|assistant|><think>{% endif %}"
    with pytest.raises(UsageError, match="lays the chat before message 1 out otherwise"):
        encode_conversation(chat("ua", "Hi", "you"), read(tmp_path, thinks))
    endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}"
    endless += "assistant: {% endif %}"
    with pytest.raises(UsageError, match="ends message 1 with none of its stop tokens"):
        encode_conversation(chat("ua", "Hi", "you"), read(tmp_path, endless))
    with pytest.raises(UsageError, match="begins with an answer"):
        encode_conversation(chat("aua", "Hi"), read(tmp_path, TEMPLATES["phi"]))
    with pytest.raises(UsageError, match="no message of the assistant"):
        encode_conversation(chat("u", "Hi"), read(tmp_path, TEMPLATES["phi"]))
    with pytest.raises(UsageError, match="a chat template has its own"):
        encode_dialog(chat("u", "Hi"), read(tmp_path, TEMPLATES["phi"]), tool_format="python_list")
    with pytest.raises(UsageError, match="whole chats, not one message"):
        encode_message(chat("u", "Hi")[0], read(tmp_path, TEMPLATES["phi"]))


# Which template it is, and where it goes


def test_arguments_are_handed_on_as_they_are_given(theirs, tmp_path):
    """Some templates want them as OpenAI has them, JSON in a string."""
    source = "{{ messages[1].tool_calls[0].function.arguments + '<|end|>' }}{{ messages[1].tool_calls[0].id }}"
    tokenizer = read(tmp_path, source)
    function = {"name": "f", "arguments": '{"x":  1}'}
    messages = [
        *chat("u", "Hi"),
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    expected = theirs.apply_chat_template(messages, chat_template=source, return_dict=False)
    assert encode_dialog(messages, tokenizer) == expected
    assert tokenizer.decode(expected) == '{"x":  1}<|end|>c1'


@pytest.mark.parametrize(
    "change",
    [
        "{% if messages | length > 8 %}x{% endif %}",
        "{% if messages | length > 1 and messages[0].role == messages[1].role %}x{% endif %}",
        "{% if messages[0].role == 'assistant' %}{{ raise_exception('A user begins') }}{% endif %}",
        "{% if messages[-1].content.startswith('/think') %}x{% endif %}",
        '{% if messages[0].content == "<tool>" %}x{% endif %}',
        "{% if messages[0].content == '' %}x{% endif %}",
        "{% if not add_generation_prompt %}x{% endif %}",
        "{% if messages[0].tool_calls is defined or messages[1].tool_calls is defined %}x{% endif %}",
        "{% if messages[-1].role == 'tool' %}x{% endif %}",
        "{% for m in messages %}{% if m.content != m.content.strip() %}x{% endif %}{% endfor %}",
        "{% if messages | length > 14 %}x{% endif %}",
        "{% if messages[0].content | length > 500 %}x{% endif %}",
        "{% if messages[0].content[99:] %}x{% endif %}",
        "{% if messages[-1].name is defined %}x{% endif %}",
        # A line end, and an apostrophe that is no quote, before the word in quotes.
        "{% set end = '\n' %}{% if '</think>' in messages[0].content %}x{% endif %}",
        "{# it's #}{% if messages[0].content.endswith('\\t') %}x{% endif %}",
        "{% if 'Q' in messages[0].content and messages[0].content != 'Q' %}x{% endif %}",
    ],
)
def test_a_frame_stays_only_where_every_chat_is_alike(tmp_path, change):
    tokenizer = read(tmp_path, TEMPLATES["chatml"])
    assert tokenizer.chat_format == "chatml" and tokenizer.chat_template.source == TEMPLATES["chatml"]
    assert read(tmp_path, change + TEMPLATES["chatml"]).chat_format == "template"


def test_an_answer_stops_where_the_template_ends_it(tmp_path):
    for kind, end in [("gemma", "<end_of_turn>"), ("phi", "<|end|>"), ("zephyr", "</s>"), ("llama3.1", "<|eot_id|>")]:
        tokenizer = read(tmp_path, TEMPLATES[kind])
        assert tokenizer.special(end) in tokenizer.stop_tokens
        assert decode_message([104, 105, tokenizer.special(end)], tokenizer)["content"] == "hi"
    answer = '{"name": "f", "parameters": null}'
    ids = [*tokenizer.encode(answer, bos=False, eos=False), tokenizer.special("<|eot_id|>")]
    assert decode_message(ids, tokenizer)["tool_calls"] == [{"name": "f", "arguments": {}}]


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        pytest.param({}, {"chat_template": "A"}, id="config"),
        pytest.param({"chat_template.jinja": "A"}, {"chat_template": "B"}, id="file-first"),
        pytest.param({}, {"chat_template": [{"name": "rag", "template": "B"}, {"name": "default", "template": "A"}]},
                     id="named"),
        pytest.param({"chat_template.jinja": "A", "additional_chat_templates/rag.jinja": "B"}, {}, id="folder"),
        pytest.param({"additional_chat_templates/rag.jinja": "B"}, {"chat_template": "A"}, id="folder-alone"),
        pytest.param({}, {"chat_template": [{"name": "rag", "template": "B"}]}, id="no-default"),
        pytest.param({"chat_template.jinja": "A\r\n{{ 'B' }}\n"}, {}, id="line-ends"),
        pytest.param({}, {}, id="none"),
    ],
)  # fmt: skip
def test_the_template_is_the_one_that_transformers_takes(tmp_path, caplog, files, settings):
    transformers = pytest.importorskip("transformers")
    model(tmp_path, **settings)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    template = read_tokenizer_json(tmp_path).chat_template
    try:
        expected = theirs.get_chat_template()
    except ValueError as error:
        assert template is None and ("none is the default" in caplog.text) == ("no default" in str(error))
    else:
        assert template == ChatTemplate(expected, theirs.special_tokens_map)


def test_the_template_travels_with_the_tokenizer(theirs, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = read(tmp_path / "hf", TEMPLATES["gemma"])
    (tmp_path / "meta").mkdir()
    write_tokenizer(tokenizer, tmp_path / "meta")
    once = read_tokenizer(tmp_path / "meta")
    (tmp_path / "again").mkdir()
    write_tokenizer_json(once, tmp_path / "again")
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    values = {key: value for key, value in vocabulary(tokenizer, 300).items()}
    import numpy as np

    values["tokenizer.ggml.token_type"] = np.array(values["tokenizer.ggml.token_type"])
    gguf = read_vocabulary(values, Path("x.gguf"), 300)
    messages = chat("uau", "Hi", " a\n")
    expected = theirs.apply_chat_template(
        messages, chat_template=TEMPLATES["gemma"], add_generation_prompt=True, return_dict=False
    )
    assert written.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == expected
    for each in (tokenizer, once, read_tokenizer_json(tmp_path / "again"), gguf):
        assert encode_dialog(messages, each) == expected
        assert each.chat_template.source == TEMPLATES["gemma"] and each.chat_format == "template"
        assert each.stop_tokens == tokenizer.stop_tokens
    once.set_chat_format("chatml")  # a frame that a person asks for is the one that is written, too
    write_tokenizer(once, tmp_path / "meta")
    assert "chat_template" not in json.loads((tmp_path / "meta/tokenizer_extra.json").read_text())
    with pytest.raises(UsageError, match="this model's files have none"):
        once.set_chat_format("template")


@pytest.mark.parametrize(
    "value", ["x", {"source": 1, "variables": {}}, {"source": "x"}, {"source": "", "variables": {"a": 1}}]
)
def test_a_template_beside_the_ranks_that_makes_no_sense(plain, tmp_path, value):
    write_tokenizer(plain, tmp_path)
    path = tmp_path / "tokenizer_extra.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": value}))
    with pytest.raises(FileError, match="chat_template must be a source and variables, all of them texts"):
        read_tokenizer(tmp_path)


# Limits

NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROWN = "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"


@pytest.mark.parametrize(
    ("template", "error", "says"),
    [
        ("a" * 64_001, FileError, "has 64001 bytes, at most 64000"),
        (NESTED, FileError, "takes more than 1 s"),
        (GROWN, FileError, "takes more than 1 s|more memory than"),
        ("{% for i in range(9999) %}{{ 'a' * 999 }}{% endfor %}", FileError, "more than 1000000 characters beyond"),
        ("{{ 'a' * 10**10 }}", FileError, "more memory than"),
        ("{{ 'a' | center(10**10) }}", FileError, "more memory than"),
        ("{{ '%10000000000d' % 1 }}", FileError, "more memory than|takes more"),
        ("{{ '{:9999999999}'.format(1) }}", FileError, "more memory than"),
        ("{{ 9 ** 99999999 }}", FileError, "takes more than 1 s"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", UsageError, "it calls itself without end"),
        ("{{ " + "(" * 30_000 + " }}", (UsageError, FileError), "calls itself|isn't valid Jinja"),
        ("{{ range(10**9) }}", UsageError, "Range too big"),
        ("{{ ''.__class__.__mro__ }}", FileError, "reaches for what it may not have"),
        ("{{ cycler.__init__.__globals__ }}", FileError, "reaches for what it may not have"),
        ("{% set n = namespace(__class__=1) %}", FileError, "reaches for what it may not have"),
        ("{{ messages.append(1) }}", FileError, "reaches for what it may not have"),
        ("{{ messages[0].update(a=1) }}", FileError, "reaches for what it may not have"),
        ("{% include '/etc/passwd' %}", UsageError, "no loader"),
        ("{% for m in messages %}", FileError, "isn't valid Jinja: line 1: Unexpected end"),
        ("{{ nothing.x }}", UsageError, "fails on this chat: 'nothing' is undefined; change the messages"),
        ("{{ 1 / 0 }}", UsageError, "ZeroDivisionError"),
        ("{{ raise_exception('No \x1b[31m' ~ 'a' * 999) }}", UsageError, r"doesn't take this chat: No \[31ma{290,}$"),
    ],
)  # fmt: skip
def test_f110_what_a_template_may_not_do(plain, template, error, says):
    if sys.platform != "linux" and "memory" in says:
        pytest.skip("there may be no limit of memory for a process here, the time's holds")
    started = time.perf_counter()
    with pytest.raises(error, match=says):
        encode_chat(chat("u", "Hi"), ChatTemplate(template), plain)
    assert time.perf_counter() - started < 20
    assert encode_chat(chat("u", "Hi"), ChatTemplate("{{ messages[0].content }}"), plain) == [72, 105], "and goes on"


def test_a_long_message_is_no_long_template(plain):
    ids = encode_chat(chat("u", "ab" * 700_000), ChatTemplate("{{ messages[0].content }}!"), plain)
    assert len(ids) == 700_001


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system doesn't count a process's time")
def test_the_limit_is_of_the_processors_time(plain, monkeypatch):
    """So that a busy machine refuses none; the parent's clock only stands behind it."""
    monkeypatch.setattr(chat_template_process, "DEADLINE_SECONDS", 60.0)
    started = time.perf_counter()
    with pytest.raises(FileError, match="takes more than 1 s"):
        encode_chat(chat("u", "Hi"), ChatTemplate(NESTED), plain)
    assert time.perf_counter() - started < 50


def test_a_hostile_template_does_not_keep_a_model_from_opening(tmp_path):
    tokenizer = read(tmp_path, NESTED)
    assert tokenizer.chat_format == "template"
    with pytest.raises(FileError, match="takes more than 1 s; take the chat format llama3 or chatml, which needs none"):
        encode_dialog(chat("u", "Hi"), tokenizer)
    tokenizer.set_chat_format("chatml")
    assert encode_dialog(chat("u", "Hi"), tokenizer)[0] == tokenizer.special("<|im_start|>")


def test_the_process_is_one_and_ends_with_its_parent(plain):
    template = ChatTemplate("{{ messages[0].content }}")
    encode_chat(chat("u", "Hi"), template, plain)
    first = chat_template_process.PROCESS.pid
    encode_chat(chat("u", "Ho"), template, plain)
    assert chat_template_process.PROCESS.pid == first is not None
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert encode_chat(chat("u", "Hi"), template, plain) == [72, 105]
    code = (
        "from llama3_scratch.text import chat_template, chat_template_process; import sys\n"
        "from llama3_scratch.text.tokenizer import *\n"
        "t = Tokenizer({b'a': 0}, pattern='.', special_tokens={}, bos_id=None, eos_id=None, stop_tokens=[], "
        "chat_format=None, add_bos=False)\n"
        "chat_template.encode_chat([{'role': 'user', 'content': 'a'}], ChatTemplate('a'), t)\n"
        "print(chat_template_process.PROCESS.pid, 'torch' in sys.modules, 'jinja2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    pid, *imported = done.stdout.split()
    assert imported == ["False", "False"], done.stderr
    with pytest.raises(OSError):
        os.kill(int(pid), 0)


def test_without_jinja2(plain, monkeypatch):
    chat_template_process.PROCESS.stop()
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(FileError, match="jinja2, which renders the model's chat template, can't be imported"):
        encode_chat(chat("u", "Hi"), ChatTemplate("a"), plain)


# From the command line


@pytest.fixture
def tiny_folder(tmp_path):
    """A tiny model in Meta's layout whose frame is ChatML and whose template is another."""
    from llama3_scratch.checkpoint.meta import write_meta

    config = replace(tiny.CONFIG, vocab_size=272, hidden_dim=44)
    tokenizer = tiny.tokenizer("chatml")
    tokenizer.chat_template = ChatTemplate(
        "{{ bos }}{{ date_string }}{% for m in messages %}{{ m.content }}|{% endfor %}"
    )
    write_meta(tmp_path / "tiny", tiny.params(config), config, tokenizer)
    return tmp_path / "tiny"


def test_generate(tiny_folder, capsys):
    from llama3_scratch import generate

    def prompt(*options: str) -> str:
        assert generate.main(["--model", str(tiny_folder), "Hi", "--max-tokens", "1", "--json", *options]) == 0
        ids = json.loads(capsys.readouterr().out)["prompt_tokens"]
        return tiny.tokenizer("chatml").decode(ids)

    assert prompt() == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt("--chat-format", "template") == "Hi|"
    assert prompt("--chat-format", "template", "--date", "1 May 2025", "--system", "Be kind") == "1 May 2025Be kind|Hi|"
    assert generate.main(["--model", str(tiny_folder), "Hi", "--date", "1 May 2025"]) == 2
    assert "this model chats in ChatML" in capsys.readouterr().err


def test_a_chat_computes_only_what_is_new(tiny_folder):
    from llama3_scratch.inference.choices import ModelChoice
    from llama3_scratch.inference.loading import open_model
    from llama3_scratch.inference.notebook import Talk

    checkpoint, _ = open_model(ModelChoice(model=tiny_folder, chat_format="template"))
    conversation = Talk(checkpoint, max_tokens=4, temperature=0)
    "".join(conversation.reply("Hello there"))
    "".join(conversation.reply("and again"))
    new = len("and again|") + len("|".join(message["content"] for message in conversation.messages[1:2]).encode()) + 1
    assert conversation.timings.prompt_tokens <= new + 4, "the beginning comes out of the cache"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_renders(tmp_path):
    """In a process of its own, which has no other threads; as a data loader or a server forks."""
    program = """
import os, threading, time
from llama3_scratch.text import chat_template_process
from llama3_scratch.text.tokenizer import ChatTemplate
request = {"template": "{{ messages[0].content }}", "variables": {}, "date": None, "seconds": 1.0, "limit": 999}
ask = lambda text: chat_template_process.PROCESS.ask(
    {**request, "chats": [{"messages": [{"content": text}], "add_generation_prompt": True}]})
ask("first")
held = threading.Event(), threading.Event()
def hold():
    with chat_template_process.PROCESS._lock:
        held[0].set()
        held[1].wait(60)
thread = threading.Thread(target=hold)
thread.start()
held[0].wait()
child = os.fork()
if not child:
    found = ask("child")
    chat_template_process.PROCESS.stop()
    os._exit(found != [{"text": "child"}])
end = time.monotonic() + 30
while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
    time.sleep(0.01)
done[0] or os.kill(child, 9)
held[1].set()
thread.join()
print(done == (child, 0), ask("parent"))
"""
    # Python itself warns of such a fork, from 3.12 on.
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("True [{'text': 'parent'}]\n", "")
