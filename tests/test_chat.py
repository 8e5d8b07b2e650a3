"""`python -m llama3_scratch.chat`: a conversation, its commands, and that each turn computes only what is new."""

from __future__ import annotations

import builtins
import itertools
import json
import os
import re
import sys
from dataclasses import replace

import pytest
import torch

import llama3_scratch as l3
from llama3_scratch import chat
from llama3_scratch.cache import Cache
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.inference.conversation import Conversation
from llama3_scratch.inference.speculate import Drafts
from llama3_scratch.model import forward
from llama3_scratch.terminal import word_wrap
from llama3_scratch.terminal.repl import HELP, SETTINGS, Repl
from llama3_scratch.text.dialog import encode_dialog
from tests import tiny
from tests.compare import check


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.folder(tmp_path_factory.mktemp("models") / "chats"))


@pytest.fixture
def talk(model, monkeypatch, capsys):
    """Type the lines (an exception among them is raised there); (exit code, stdout, stderr)."""

    def talk(*lines, options=()):
        script = iter(lines)

        def typed(prompt=""):
            line = next(script, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(builtins, "input", typed)
        code = chat.main(["--model", model, "--seed", "4", "--max-tokens", "9", *options])
        return code, *capsys.readouterr()

    return talk


@pytest.fixture
def converse(model):
    """A conversation of the tiny model by these settings."""
    checkpoint = l3.load(model)

    def converse(**settings):
        return l3.Talk(checkpoint, **{"temperature": 0, "max_tokens": 7, "seed": 4} | settings)

    return converse


@pytest.fixture
def conversation(converse):
    return converse()


class Typed:
    """An editor whose person types `lines`; `shown` are the texts that were put there to be changed."""

    edits = True

    def __init__(self, *lines: object) -> None:
        self.lines, self.shown = list(lines), list[str]()

    def read(self, text: str = "") -> str:
        self.shown.append(text)
        line = self.lines.pop(0) if self.lines else EOFError
        if isinstance(line, str):
            return line
        raise line


def wrong(error: Exception) -> None:
    raise error


def command(line: str, conversation: Conversation, *answers: object) -> Typed:
    """What is said, or the command, with what is typed where it asks; an error is raised."""
    typed = Typed(line, *answers)
    Repl(conversation, typed, seeded=False, report=wrong).run()
    return typed


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_a_conversation_answers_until_the_end_of_input(talk):
    code, out, err = talk("hello", "and again")
    assert code == 0
    assert len(out.strip("\n")) > 0
    assert "loaded in" in err


def test_exit_leaves(talk):
    assert talk("/exit", "never said")[0] == 0


def test_each_turn_computes_only_what_is_new(conversation, converse):
    first = "".join(conversation.reply("hello"))
    second = "".join(conversation.reply("more"))
    frame = len("system\n\n") + len("user\nhello")
    assert conversation.timings.prompt_tokens < conversation.n_cached - frame, "the first turn isn't prefilled again"
    fresh = converse()
    fresh.messages = messages("hello", first)
    assert "".join(fresh.reply("more")) == second, "the same answer as from nothing"


# A full context


@pytest.mark.parametrize("system", ["", "be kind"])
def test_in_a_full_context_the_oldest_turns_are_forgotten(converse, system, caplog):
    caplog.set_level("INFO", "llama3_scratch")
    options = {"max_seq_len": 260, "system": system}
    long = converse(**options)
    for turn in range(9):
        before = long.forgotten
        answer = "".join(long.reply(f"this is question number {turn}"))
        shown = long.messages[long.forgotten :]
        assert shown[0]["role"] == "user" and long.n_cached <= 260
        fresh = converse(**options)
        fresh.messages = shown[:-2]
        assert "".join(fresh.reply(shown[-2]["content"])) == answer, "as if nothing else had ever been said"
        ours, its = (each.cache.layers["layers.4.attention"][0].get(long.n_cached) for each in (long, fresh))
        check(ours, its, 1e-3)
        if long.forgotten == before and turn:
            assert long.timings.prompt_tokens < 80, "only what is new is computed"
        else:
            assert turn == 0 or long.n_cached < 0.75 * 260, "a quarter is free again"
    assert long.forgotten >= 4 and len(long.messages) == 18, "what is forgotten can still be saved"
    assert "The context of 260 tokens is full: the oldest" in caplog.text
    long.clear()
    assert long.forgotten == 0


def test_a_message_that_no_context_holds_is_refused_with_a_remedy(converse):
    conversation = converse(max_seq_len=200, system="be kind")
    answer = "".join(conversation.reply("hello"))
    with pytest.raises(
        UsageError, match=r"context holds 200 .*shorten it or the system message, or begin with `max_seq_len=4096`"
    ):
        "".join(conversation.reply("x" * 500))
    assert conversation.messages == messages("hello", answer)
    "".join(conversation.reply("and"))
    assert len(conversation.messages) == 4, "the conversation goes on"


def test_what_could_never_be_said_is_told_at_the_start(talk):
    assert "the message in its chat format is" in talk(options=["--max-seq-len", "99", "--system", "x" * 99])[2]
    assert "this model chats in ChatML" in talk(options=["--date", "26 Jul 2024"])[2]


def test_a_message_that_leaves_little_room_is_answered_shortly(converse, caplog):
    caplog.set_level("INFO", "llama3_scratch")
    conversation = converse(max_seq_len=200)
    frame = encode_dialog(messages("x"), conversation.tokenizer)
    "".join(conversation.reply("hello"))
    command("x" * (198 - len(frame)), conversation)
    assert conversation.forgotten == 2
    assert conversation.ended == "context" and "(cut: the context is full)" in caplog.text


def test_a_sliding_cache_forgets_tokens_and_holds_what_it_says(converse, caplog):
    """The first layer's keys and values are a token's own: they tell which one stands in each slot."""
    conversation = converse(max_seq_len=200, sliding=90, sinks=7)
    first = "layers.0.attention"
    dropped = set()
    for turn in range(7):
        "".join(conversation.reply(f"this is question number {turn}"))
        cache, seen = conversation.cache, conversation.seen
        assert len(seen) == cache.dropped + cache.length
        kept = [*seen[:7], *seen[7 + cache.dropped :]] if cache.dropped else seen
        fresh = Cache(300)
        forward(torch.tensor([kept]), conversation.checkpoint.params, conversation.checkpoint.config, cache=fresh)
        for ours, wanted in zip(cache.layers[first], fresh.layers[first], strict=True):
            check(ours.get(cache.length), wanted.get(cache.length), 1e-3)
        dropped.add(cache.dropped)
        assert not turn or conversation.timings.prompt_tokens < 80, "only what is new is computed"
    assert len(dropped) > 2 and conversation.forgotten == 0 and not caplog.text
    last = "".join(conversation.retry())
    assert conversation.timings.prompt_tokens < 80 and conversation.messages[-1]["content"] == last
    conversation.clear()
    again, fresh = "".join(conversation.reply("hello")), converse(max_seq_len=200)
    assert conversation.cache.dropped == 0 and again == "".join(fresh.reply("hello"))


def test_a_message_that_does_not_fit_behind_what_slides_begins_anew(converse):
    options = {"max_seq_len": 200, "sliding": 60}
    conversation = converse(**options)
    for turn in range(5):
        "".join(conversation.reply(f"this is question number {turn}"))
    assert conversation.cache.dropped
    answer = "".join(conversation.reply("x" * 120))
    assert conversation.forgotten == 10
    assert "".join(converse(**options).reply("x" * 120)) == answer


def test_sliding_options_go_together(talk):
    assert talk(options=["--sinks", "3"])[2].endswith("error: --sinks goes with --sliding\n")
    assert talk(options=["--sliding", "99", "--speculate", "lookup"])[0] == 2


def test_a_prompt_cache_begins_a_chat_and_only_grows(talk, tmp_path):
    file, system = tmp_path / "chat.cache", "be kind and " * 20
    options = "--system", system, "--prompt-cache", str(file)
    plain = talk("hello", "/stats", options=["--system", system])[1]
    first = talk("hello", "/stats", options=options)
    assert first[0] == 0 and first[1].splitlines()[:-1] == plain.splitlines()[:-1]
    written = file.read_bytes()
    code, out, err = talk("hexagons", "/stats", options=options)
    taken = re.search(r"prefill (\d+) tokens", out)
    assert code == 0 and taken is not None and int(taken[1]) < 40, "the system message comes out of the file"
    assert out.splitlines()[:-1] == talk("hexagons", "/stats", options=options[:2])[1].splitlines()[:-1]
    assert file.read_bytes() == written and "warning" not in err, "another conversation under the same message"
    talk("hello", options=[*options, "--max-tokens", "30"])
    assert len(file.read_bytes()) > len(written), "the same conversation, gone on with"
    assert "holds another prompt" in talk("hello", options=["--system", "x" * 99, *options[2:]])[2]


def test_a_prompt_cache_that_cannot_be(talk, tmp_path):
    code, _, err = talk(options=["--prompt-cache", "x", "--sliding", "9"])
    assert code == 2 and "--prompt-cache keeps the beginning of a text, --sliding forgets it" in err
    code, _, err = talk(options=["--prompt-cache", str(tmp_path / "no" / "file")])
    assert code == 3 and "there is no folder" in err


# Ctrl-C


def interrupt(monkeypatch, at: int) -> None:
    """Ctrl-C at the `at`-th token."""
    from llama3_scratch.inference import stream

    real = stream.stream

    def interrupted(*args, **kwargs):
        for count, step in enumerate(real(*args, **kwargs)):
            if count == at:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(stream, "stream", interrupted)


def heard(answer) -> str:
    """What comes of the answer until Ctrl-C strikes, of which whoever listens hears too."""
    pieces = []
    with pytest.raises(KeyboardInterrupt):
        for piece in answer:
            pieces.append(piece)
    return "".join(pieces)


def test_ctrl_c_stops_the_answer_and_not_the_chat(conversation, converse, monkeypatch):
    with monkeypatch.context() as struck:
        interrupt(struck, 3)
        text = heard(conversation.reply("hello"))
    assert conversation.messages[-1] == {"role": "assistant", "content": text} and conversation.ended is None
    second = "".join(conversation.reply("go on"))
    assert len(conversation.messages) == 4
    fresh = converse()
    fresh.messages = messages("hello", text)
    assert "".join(fresh.reply("go on")) == second


def test_what_was_interrupted_before_its_first_token_was_not_said(conversation, monkeypatch):
    said = "".join(conversation.reply("hello"))
    with monkeypatch.context() as struck:
        interrupt(struck, 0)
        assert heard(conversation.reply("more")) == "" == heard(conversation.retry("changed"))
    assert conversation.messages == messages("hello", said)


@pytest.mark.parametrize("options", [{}, {"speculate": "lookup"}])
def test_who_listens_may_leave_at_any_token(converse, options, monkeypatch):
    """What was drafted and not yet heard of isn't in the cache: the next answer is that of a fresh conversation."""
    monkeypatch.setattr(Drafts, "propose", lambda drafts, tokens, most: [tokens[-1]] * min(most, 4))
    for at in range(1, 12):
        conversation = converse(max_tokens=40, **options)
        answer = conversation.reply("ab ab ab ab ab")
        text = "".join(itertools.islice(answer, at))
        answer.close()
        assert conversation.messages == messages("ab ab ab ab ab", text)
        fresh = converse(max_tokens=40, **options)
        fresh.messages = messages("ab ab ab ab ab", text)
        assert "".join(conversation.reply("go on")) == "".join(fresh.reply("go on"))


def test_ctrl_c_while_the_answer_is_printed_stops_the_answer_and_not_the_chat(talk, monkeypatch):
    printed = []

    def interrupted(text):
        printed.append(text)
        if len(printed) == 2:
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(word_wrap, "visible", interrupted)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert talk("hello", "and again", "/exit")[0] == 0
    assert len(printed) > 2, "the second message was answered"


def test_a_full_context_is_told_in_flags(talk):
    _, _, err = talk("x" * 99, options=["--max-seq-len", "100"])
    assert "shorten it, or begin with --max-seq-len 4096\n" in err


def test_f138_ctrl_c_at_the_prompt_goes_on_and_twice_leaves(talk):
    assert talk(KeyboardInterrupt, "/exit")[0] == 0
    code, out, err = talk(KeyboardInterrupt, "hello", KeyboardInterrupt, "/stats", KeyboardInterrupt, KeyboardInterrupt)
    assert code == 130 and "tokens in the cache" in out
    assert err.count("Ctrl-C once more leaves") == 3


def test_an_answer_that_failed_leaves_no_wrong_cache(conversation, monkeypatch):
    """The failed prompt's tokens are in the cache where the older turn's were: they may not be taken for those."""
    from llama3_scratch.errors import ResourceError
    from llama3_scratch.inference import stream

    first = "".join(conversation.reply("hello"))
    real = stream.stream

    def failing(*args, **kwargs):
        yield next(iter(real(*args, **kwargs)))
        raise ResourceError("no memory")

    monkeypatch.setattr(stream, "stream", failing)
    conversation.clear()
    with pytest.raises(ResourceError):
        "".join(conversation.reply("hexagons"))
    monkeypatch.undo()
    assert conversation.messages == []
    assert "".join(conversation.reply("hello")) == first


# Commands


def test_every_command_and_setting_is_explained(conversation):
    commands = Repl(conversation, Typed(), seeded=False).commands
    assert all(f"/{name}" in HELP for name in commands if name != "quit")
    known = {action.dest for action in chat.make_parser()._actions}
    assert set(SETTINGS) <= known


def test_clear_and_system_start_anew(conversation):
    "".join(conversation.reply("hello"))
    command("/clear", conversation)
    assert conversation.messages == []
    command("/system be kind\nand brief", conversation)
    "".join(conversation.reply("hello"))
    assert bytes(t for t in conversation.seen if t < 256).startswith(b"system\nbe kind\nand brief")


def test_a_message_may_begin_with_a_slash(conversation):
    command("//etc/hosts, what is it?", conversation)
    assert conversation.messages[0]["content"] == "/etc/hosts, what is it?"


def test_retry_answers_again_by_another_seed_unless_one_was_fixed(conversation, caplog):
    caplog.set_level("INFO", "llama3_scratch")
    conversation.sampling = replace(conversation.sampling, temperature=1.5, seed=3)
    repl = Repl(conversation, typed := Typed(), seeded=False, report=wrong)

    def enter(*lines):
        typed.lines += lines
        repl.run()

    enter("hello")
    first = conversation.messages[-1]
    enter("/retry")
    assert conversation.messages[:-1] == messages("hello") and conversation.messages[-1] != first
    assert conversation.sampling.seed != 3 and not [r for r in caplog.records if "same" in r.message]
    enter("/set seed 3", "/retry")
    assert conversation.messages == [*messages("hello"), first] and conversation.sampling.seed == 3
    assert "with the seed 3 the answer to the same question is the same" in caplog.text
    enter("/set seed -1")
    assert conversation.sampling.seed >= 0
    enter("/retry")
    assert conversation.messages[-1] != first


def test_edit_puts_another_text_in_the_last_ones_place(conversation, converse):
    first = "".join(conversation.reply("hello"))
    "".join(conversation.reply("wrog"))
    command("/edit right", conversation)
    fresh = converse()
    fresh.messages = messages("hello", first)
    "".join(fresh.reply("right"))
    assert conversation.messages == fresh.messages
    typed = command("/edit", conversation, "right or left")
    assert typed.shown[1] == "right", "the text stands in the line"
    "".join(fresh.retry("right or left"))
    assert conversation.messages == fresh.messages
    for nothing in ("", "  ", KeyboardInterrupt, EOFError):
        command("/edit", conversation, nothing)
        assert conversation.messages == fresh.messages


def test_without_a_message_there_is_none_to_edit_or_to_answer(talk):
    _, _, err = talk("/retry", "/edit", "/edit other", "hello", "/edit")
    assert err.count("error: there is no message yet; type one\n") == 3
    assert err.endswith("error: /edit wants the TEXT that is to stand in place of the last message\n")


def test_settings_are_checked_and_named_as_they_are_typed(conversation, talk, capsys):
    for typed, shown in {
        "temperature 0.25": "temperature 0.25  (a number at least 0)",
        "top-p=0.5": "top_p 0.5  (a number above 0 and at most 1)",
        "repeat_last_n -1": "repeat_last_n -1  (a whole number at least -1)",
        "stop the end": "stop 'the end'  (a text before which answers end, or none)",
        "stop none": "stop none  (a text before which answers end, or none)",
        "max_tokens": "max_tokens 7  (a whole number at least 1)",
    }.items():
        command(f"/set {typed}", conversation)
        assert capsys.readouterr().out == shown + "\n"
    assert (conversation.sampling.temperature, conversation.sampling.top_p, conversation.sampling.stop) == (
        0.25,
        0.5,
        (),
    )
    command("/set", conversation)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(SETTINGS)
    code, _, err = talk("/set temperature hot", "/set top_p 2", "/set colour red", "/set temprature 1", "/exit")
    assert code == 0
    assert err.splitlines()[-4:] == [
        "error: /set temperature: expected a number at least 0, got 'hot'",
        "error: /set top_p: expected a number above 0 and at most 1, got 2.0",
        f"error: no setting colour; there are {', '.join(SETTINGS)}",
        "error: no setting temprature; did you mean temperature?",
    ]


def test_an_unknown_command_suggests_the_one_that_was_meant(talk):
    _, _, err = talk("/hlep", "/nonsense", "/", "/usr/bin/env is what?")
    assert "no command /hlep; did you mean /help? A message that begins with a slash is typed with two\n" in err
    assert err.count("/help lists them. A message that begins") == 3


def test_what_cut_an_answer_is_told_and_an_empty_one_too(talk, conversation, caplog):
    assert "(cut: max_tokens is 9)" in talk("hello")[2]
    caplog.set_level("INFO", "llama3_scratch")
    conversation.tokenizer.stop_tokens = list(range(272))
    command("hello", conversation)
    command("again", conversation)
    assert conversation.messages == messages("hello", "", "again", "")
    assert caplog.text.count("(an empty answer; /retry asks again)") == 2


def test_save_and_load_round_trip(conversation, tmp_path, capsys):
    command("/system be kind", conversation)
    "".join(conversation.reply("hello"))
    said = list(conversation.messages)
    command(f"/save {tmp_path / 'talk.json'}", conversation)
    command("/system other", conversation)
    command(f"/load {tmp_path / 'talk.json'}", conversation)
    assert conversation.messages == said
    conversation.save(tmp_path / "again.json")
    saved, again = (json.loads((tmp_path / name).read_text())["messages"] for name in ("talk.json", "again.json"))
    assert saved == again == [{"role": "system", "content": "be kind"}, *said]


@pytest.mark.parametrize(
    "saved",
    [
        messages("use it", "calling", "thanks")[:1],
        [*messages("use it", "calling"), {"role": "tool", "content": "42"}],
        [
            *messages("use it", "calling"),
            {"role": "tool", "content": "42"},
            {"role": "assistant", "content": "it's 42"},
        ],
        [],
        [{"role": "system", "content": "be kind"}],
    ],
    ids=["waits", "tool-last", "tool", "empty", "system-alone"],
)
def test_conversations_of_any_form_that_the_model_takes_are_loaded(conversation, tmp_path, saved, capsys):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({"messages": saved}))
    command(f"/load {path}", conversation)
    assert conversation.messages == [message for message in saved if message["role"] != "system"]
    conversation.save(path)
    assert json.loads(path.read_text()) == {"messages": saved}
    waits = "the last of which /retry answers" in capsys.readouterr().out
    assert waits == bool(saved and saved[-1]["role"] in ("user", "tool"))
    if waits:
        command("/retry", conversation)
        assert [*conversation.messages[:-1]] == saved and conversation.messages[-1]["role"] == "assistant"
    before = len(conversation.messages)
    "".join(conversation.reply("go on"))
    assert len(conversation.messages) == before + 2


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ('{"messages": [{"role": "wizard", "content": "hi"}]}', "role must be one of"),
        ('{"messages": [{"role": "user", "content": 7}]}', "content of a message must be a string"),
        ('{"messages": [{"content": "hi"}]}', "no role"),
        ('{"messages": ["hi"]}', 'expected {"messages"'),
        ('{"messages": "hi"}', 'expected {"messages"'),
        ("{}", 'expected {"messages"'),
        ("[1]", "odd.json"),
    ],
)
def test_a_conversation_that_cannot_be_shown_to_the_model_is_not_loaded(conversation, tmp_path, saved, said):
    (tmp_path / "odd.json").write_text(saved)
    "".join(conversation.reply("hello"))
    before = list(conversation.messages)
    with pytest.raises(FileError, match=said) as error:
        conversation.load(tmp_path / "odd.json")
    assert "odd.json: " in str(error.value) and conversation.messages == before


def test_files_that_cannot_be_are_told_and_the_chat_goes_on(talk, tmp_path):
    code, _, err = talk(f"/load {tmp_path / 'none.json'}", "/save", "/load", "/exit")
    assert code == 0
    assert "none.json: a saved conversation not found" in err
    assert "/save wants a file name" in err and "/load wants a file name" in err


def test_save_writes_over_nothing_but_conversations(talk, tmp_path):
    (tmp_path / "notes.txt").write_text("dear diary")
    _, out, err = talk("hello", f"/save {tmp_path / 'notes.txt'}", *[f"/save {tmp_path / 'talk.json'}"] * 2)
    assert (tmp_path / "notes.txt").read_text() == "dear diary" and "holds no conversation; take another" in err
    assert out.count("2 messages written") == 2


def test_stats_and_help(talk):
    _, out, _ = talk("hello", "/stats", "/help", "/exit")
    assert "prefill" in out and "tokens in the cache" in out
    assert "/system [TEXT]" in out


@pytest.mark.parametrize(
    "line", ["/save .", "/save ~no-such-user/x", "/load ~no-such-user/x", "/save a\0b", "/load a\0b"]
)
def test_a_command_that_fails_does_not_end_the_chat(talk, line):
    code, out, err = talk("hello", line, "/stats")
    assert code == 0
    assert "error: " in err and "Traceback" not in err and "tokens in the cache" in out


def test_f111_bytes_that_are_no_text_on_stdin(talk):
    code, _, err = talk(UnicodeDecodeError("utf-8", b"h\xff", 1, 2, "invalid start byte"))
    assert code == 2
    assert err.endswith("error: stdin: byte 1 of what was typed isn't UTF-8\n") and "Traceback" not in err
    code, out, err = talk("h\udcff", "/stats")
    assert code == 0 and "lone surrogate" in err and "tokens in the cache" in out


# The screen


def test_answers_on_a_narrow_terminal_are_wrapped_and_made_visible(conversation, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(word_wrap, "columns", lambda: 12)
    pieces = "some wor", "ds that wrap\x1b[31m", " here"
    monkeypatch.setattr(conversation, "reply", lambda text: (piece for piece in pieces))
    command("hello", conversation)
    assert capsys.readouterr().out == "some words\nthat\nwrap␛[31m\nhere\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    command("hello", conversation)
    assert capsys.readouterr().out == "some words that wrap\x1b[31m here\n"


def test_the_width_of_a_screen_that_is_none():
    assert word_wrap.columns() == 80


@pytest.mark.slow
def test_on_a_terminal_three_pasted_lines_are_one_message(model, tmp_path):
    """The whole program behind a pseudo-terminal, as a person has it."""
    import pty
    import select
    import subprocess
    import time

    mine, its = pty.openpty()
    saved = tmp_path / "talk.json"
    environment = os.environ | {"TERM": "xterm", "XDG_STATE_HOME": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1"}
    command = [sys.executable, "-m", "llama3_scratch.chat", "--model", model, "--max-tokens", "9", "--seed", "4"]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    shown = ""

    def until(pattern: str) -> None:
        nonlocal shown
        deadline = time.monotonic() + 60
        while not re.search(pattern, shown) and time.monotonic() < deadline:
            if select.select([mine], [], [], 1)[0]:
                shown += os.read(mine, 4096).decode(errors="replace")
        assert re.search(pattern, shown), shown
        shown = ""

    try:
        until(r"\x1b\[\?2004h")  # from now on it's told what is pasted
        os.write(mine, b"\x1b[200~one\rtwo\rthree\x1b[201~")
        until("three")
        os.write(mine, b"\r")
        until("max_tokens is 9")
        os.write(mine, f"/save {saved}\r".encode())
        until(r"2 messages written[^$]*\?2004h")
        os.write(mine, b"\x04")
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(mine)
    assert json.loads(saved.read_text())["messages"][0] == {"role": "user", "content": "one\ntwo\nthree"}
    assert "+one" in (tmp_path / "llama3_scratch" / "chat_history").read_text()


# The model


def test_a_base_model_is_refused(tmp_path, capsys):
    folder = tiny.folder(tmp_path / "base", None)
    assert chat.main(["--model", str(folder)]) == 2
    assert "a base model, which completes text but doesn't chat" in capsys.readouterr().err


def test_without_a_network_it_says_what_fetches_the_model(offline, monkeypatch, capsys):
    """The storyteller can't chat: nothing is loaded in the model's place."""
    from llama3_scratch.inference import loading

    monkeypatch.setattr(loading, "read", lambda *args, **how: pytest.fail("nothing may be loaded"))
    assert chat.main([]) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: smollm2-135m: couldn't be fetched: no network; ") and err.count("\n") == 1
    assert "python -m llama3_scratch.download smollm2-135m" in err and "python -m llama3_scratch.generate" in err
    assert chat.main(["--model", "storyteller"]) == 2
    assert "continues stories and doesn't chat" in capsys.readouterr().err
