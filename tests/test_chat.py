"""`python -m llama3_scratch.chat`: a conversation, its commands, and that each turn computes only what is new."""

from __future__ import annotations

import builtins
import json

import pytest

from llama3_scratch import chat
from tests import tiny


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
def conversation(model):
    options = chat._parser().parse_args(["--model", model, "--temperature", "0", "--max-tokens", "7"])
    from llama3_scratch.options import open_model

    return chat.Conversation(*open_model(options), options)


def test_a_conversation_answers_until_the_end_of_input(talk):
    code, out, err = talk("hello", "and again")
    assert code == 0
    assert len(out.strip("\n")) > 0
    assert "loaded in" in err


def test_exit_leaves(talk):
    assert talk("/exit", "never said")[0] == 0


def test_each_turn_computes_only_what_is_new(conversation, model):
    first = "".join(conversation.reply("hello"))
    second = "".join(conversation.reply("more"))
    frame = len("system\n\n") + len("user\nhello")
    assert conversation.timings.prompt_tokens < conversation.n_cached - frame, "the first turn isn't prefilled again"

    options = conversation.options
    fresh = chat.Conversation(conversation.checkpoint, conversation.dtype, options)
    fresh.messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": first}]
    assert "".join(fresh.reply("more")) == second, "the same answer as from nothing"


def test_ctrl_c_stops_the_answer_and_not_the_chat(conversation, monkeypatch):
    from llama3_scratch import stream

    real = stream.stream

    def interrupted(*args, **kwargs):
        for count, step in enumerate(real(*args, **kwargs)):
            if count == 3:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(stream, "stream", interrupted)
    text = "".join(conversation.reply("hello"))
    monkeypatch.undo()
    assert conversation.messages[-1] == {"role": "assistant", "content": text}
    "".join(conversation.reply("go on"))
    assert len(conversation.messages) == 4


def test_ctrl_c_while_the_answer_is_printed_stops_the_answer_and_not_the_chat(talk, monkeypatch):
    printed = []

    def interrupted(text):
        printed.append(text)
        if len(printed) == 2:
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(chat, "visible", interrupted)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert talk("hello", "and again", "/exit")[0] == 0
    assert len(printed) > 2, "the second message was answered"


def test_an_answer_that_failed_leaves_no_wrong_cache(conversation, monkeypatch):
    """The failed prompt's tokens are in the cache where the older turn's were: they may not be taken for those."""
    from llama3_scratch import stream
    from llama3_scratch.errors import ResourceError

    first = "".join(conversation.reply("hello"))
    real = stream.stream

    def failing(*args, **kwargs):
        yield next(iter(real(*args, **kwargs)))
        raise ResourceError("no memory")

    monkeypatch.setattr(stream, "stream", failing)
    conversation.messages.clear()
    with pytest.raises(ResourceError):
        "".join(conversation.reply("hexagons"))
    monkeypatch.undo()
    assert "".join(conversation.reply("hello")) == first


def test_f138_ctrl_c_at_the_prompt_goes_on(talk):
    assert talk(KeyboardInterrupt, "/exit")[0] == 0


def test_clear_and_system_start_anew(conversation):
    "".join(conversation.reply("hello"))
    chat._command("/clear", conversation)
    assert conversation.messages == []
    chat._command("/system be kind", conversation)
    "".join(conversation.reply("hello"))
    assert bytes(t for t in conversation._cached if t < 256).startswith(b"system\nbe kind")


def test_settings_are_checked_as_on_the_command_line(conversation, talk, capsys):
    chat._command("/set temperature 0.25", conversation)
    assert conversation.options.temperature == 0.25
    assert "temperature 0.25" in capsys.readouterr().out
    code, _, err = talk("/set temperature hot", "/set colour red", "/nonsense", "/exit")
    assert code == 0
    assert "--temperature: expected a number" in err
    assert "no setting 'colour'" in err
    assert "no command /nonsense" in err


def test_save_and_load_round_trip(conversation, tmp_path, capsys):
    chat._command("/system be kind", conversation)
    "".join(conversation.reply("hello"))
    said = list(conversation.messages)
    chat._command(f"/save {tmp_path / 'talk.json'}", conversation)
    chat._command("/system other", conversation)
    chat._command(f"/load {tmp_path / 'talk.json'}", conversation)
    assert conversation.messages == said
    assert conversation._system == [{"role": "system", "content": "be kind"}]
    assert [m["role"] for m in json.loads((tmp_path / "talk.json").read_text())["messages"]] == [
        "system",
        "user",
        "assistant",
    ]


def test_files_that_cannot_be_are_told_and_the_chat_goes_on(talk, tmp_path):
    (tmp_path / "odd.json").write_text('{"messages": [{"role": "wizard", "content": "hi"}]}')
    code, _, err = talk(f"/load {tmp_path / 'none.json'}", f"/load {tmp_path / 'odd.json'}", "/save", "/exit")
    assert code == 0
    assert "none.json: a saved conversation not found" in err
    assert "odd.json: expected" in err
    assert "/save wants a file name" in err


def test_stats_and_help(talk):
    _, out, _ = talk("hello", "/stats", "/help", "/exit")
    assert "prefill" in out and "tokens in the cache" in out
    assert "/system TEXT" in out


def test_many_lines(monkeypatch):
    for typed, text in (
        (['"""', "one", "two", '"""'], "one\ntwo"),
        (["one\\", "two"], "one\ntwo"),
        (["just one"], "just one"),
    ):
        lines = iter(typed)
        monkeypatch.setattr(builtins, "input", lambda prompt="", lines=lines: next(lines))
        assert chat._read() == text


def test_a_base_model_is_refused(tmp_path, capsys):
    folder = tiny.folder(tmp_path / "base", None)
    assert chat.main(["--model", str(folder)]) == 2
    assert "a base model, which completes text but doesn't chat" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["/save .", "/save ~no-such-user/x", "/load ~no-such-user/x", "/load a\0b"])
def test_a_command_that_fails_does_not_end_the_chat(talk, line):
    code, out, err = talk("hello", line, "/stats")
    assert code == 0
    assert "error: " in err and "tokens in the cache" in out


def test_f111_bytes_that_are_no_text_on_stdin(talk):
    code, _, err = talk(UnicodeDecodeError("utf-8", b"h\xff", 1, 2, "invalid start byte"))
    assert code == 2
    assert err.endswith("error: stdin: byte 1 of what was typed isn't UTF-8\n") and "Traceback" not in err
