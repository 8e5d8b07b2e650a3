"""What is typed and pasted, key by key: which of it is a message."""

from __future__ import annotations

import builtins
import os
import stat
import subprocess
import sys
import threading
import time

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llama3_scratch.terminal import line_editor
from llama3_scratch.terminal.line_editor import LineEditor, PlainInput

ENTER, ALT_ENTER, UP, CTRL_C, CTRL_D, HOME = "\r", "\x1b\r", "\x1b[A", "\x03", "\x04", "\x01"


def paste(text: str) -> str:
    """As a terminal sends what is pasted: between two marks, with \\r for the end of a line."""
    return "\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~"


def typed(*keys: str, history=None, n: int | None = None, text: str = ""):
    """The messages, or the exceptions' classes, that these keys make."""
    found: list[object] = []
    with create_pipe_input() as pipe:
        editor = LineEditor(history, input=pipe, output=DummyOutput())
        for key in keys:
            pipe.send_bytes(key.encode("utf-8", "surrogateescape"))
        for _ in range(n or sum(key == ENTER for key in keys)):
            try:
                found.append(editor.read(text))
            except (EOFError, KeyboardInterrupt) as error:
                found.append(type(error))
    return found


def test_what_is_pasted_is_one_message():
    lines = "First line\nsecond line\n\n  third line"
    assert typed(paste(lines), ENTER) == [lines]
    assert typed("Sum this up: ", paste(lines), " Briefly.", ENTER) == [f"Sum this up: {lines} Briefly."]
    assert typed(paste('"""\nA docstring.\n"""\nimport os'), ENTER) == ['"""\nA docstring.\n"""\nimport os']


def test_a_new_line_is_typed_in_three_ways():
    assert typed("one", ALT_ENTER, "two", ENTER) == ["one\ntwo"]
    assert typed("one\\", ENTER, "two", ENTER, n=1) == ["one\ntwo"]
    assert typed('"""', ENTER, "one\\", ENTER, "", ENTER, "two", ENTER, '"""', ENTER, n=1) == ["one\\\n\ntwo"]


def test_ctrl_c_and_ctrl_d():
    assert typed("never said", CTRL_C, "said", ENTER, n=2) == [KeyboardInterrupt, "said"]
    assert typed("abc", HOME, CTRL_D, ENTER) == ["bc"], "on a line it deletes"
    assert typed("abc", CTRL_D, ENTER) == ["abc"], "and at its end it does nothing"
    assert typed(CTRL_D, n=1) == [EOFError]
    assert typed('"""', ENTER, "one", CTRL_D, CTRL_C, "two", ENTER, n=2) == [KeyboardInterrupt, "two"]


def test_a_text_is_put_there_to_be_changed():
    assert typed(" was", ENTER, text="as it") == ["as it was"]


def test_the_history_outlives_the_session_and_is_its_owners_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = line_editor.history_path()
    assert path == tmp_path / "llama3_scratch" / "chat_history"
    before = os.umask(0)
    try:
        said = typed("first", ENTER, paste("two\nlines"), ENTER, history=line_editor.open_history(path))
    finally:
        os.umask(before)
    assert said == ["first", "two\nlines"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert typed(UP, ENTER, history=line_editor.open_history(path)) == ["two\nlines"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert typed(UP, UP, UP, ENTER, history=line_editor.open_history(path)) == ["first"]


def test_a_history_that_cannot_be_kept_is_told_and_the_chat_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert line_editor.open_history(tmp_path / "file" / "history") is None
    assert "no history is kept" in caplog.text
    kept = line_editor.open_history(tmp_path / "history")
    (tmp_path / "history").unlink()
    (tmp_path / "history").mkdir()
    assert typed("hello", ENTER, history=kept) == ["hello"]


def test_an_enormous_message_and_one_in_no_encoding_do_not_spoil_the_history(tmp_path):
    path = tmp_path / "history"
    history = line_editor.open_history(path)
    typed(paste("x" * 20_000), ENTER, "caf\udce9", ENTER, "short", ENTER, history=history)
    assert path.stat().st_size < 1000
    assert typed(UP, ENTER, history=line_editor.open_history(path)) == ["short"]


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (["just one", "another"], ["just one", "another"]),
        (["one\\", "two"], ["one\ntwo"]),
        (['"""', "one", "two", '"""', "x"], ["one\ntwo", "x"]),
        (['"""', "one", ' """ '], ["one"]),
        (['"""', '"""'], [""]),
        (['"""', "one", "two"], ["one\ntwo"]),
        (["one\\", "two\\"], ["one\ntwo"]),
        (['"""'], [""]),
    ],
)
def test_plain_lines(monkeypatch, caplog, lines, messages):
    """The last three end within a message."""
    script = iter(lines)

    def typed(prompt=""):
        if (line := next(script, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr(builtins, "input", typed)
    plain, found = PlainInput(), []
    with pytest.raises(EOFError):
        while True:
            found.append(plain.read())
    assert found == messages
    assert ("the input ended within a message" in caplog.text) == (
        lines in (['"""', "one", "two"], ["one\\", "two\\"], ['"""'])
    )


def test_the_editor_is_imported_where_there_is_a_terminal_alone():
    asked = "import sys, llama3_scratch.chat; print({'prompt_toolkit', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("stdin", "stdout", "stderr", "term", "editor"),
    [
        (True, True, True, "xterm", True),
        (True, False, True, "xterm", True),
        (True, False, False, "xterm", False),
        (False, True, True, "xterm", False),
        (True, True, True, "dumb", False),
        (True, True, True, None, False),
    ],
)
def test_which_input_there_is(monkeypatch, tmp_path, stdin, stdout, stderr, term, editor):
    for name, terminal in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
        monkeypatch.setattr(f"sys.{name}.isatty", lambda terminal=terminal: terminal)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("TERM", term) if term else monkeypatch.delenv("TERM", raising=False)
    made: list[object] = []
    monkeypatch.setattr(line_editor, "LineEditor", lambda history, **how: made.append(history))
    found = line_editor.line_editor(keep_history=False)
    assert isinstance(found, PlainInput) != editor
    assert made == ([None] if editor else []) and not list(tmp_path.iterdir())


def test_what_is_typed_while_nobody_reads_is_not_echoed_and_waits_for_the_next_message(monkeypatch):
    """On a pseudo-terminal of its own: no line ends there, nor has one a longest length, before the editor reads."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    from prompt_toolkit.input.vt100 import Vt100Input

    class Screen(DummyOutput):
        pastes = False

        def enable_bracketed_paste(self) -> None:
            self.pastes = True

        def disable_bracketed_paste(self) -> None:
            self.pastes = False

    mine, its = pty.openpty()
    screen, lines = Screen(), "\n".join(f"line {i}" for i in range(500))

    def echoes() -> bool:
        return bool(termios.tcgetattr(its)[3] & termios.ECHO)

    with os.fdopen(its) as terminal, monkeypatch.context() as patched:
        patched.setattr("sys.stdin", terminal)
        editor = LineEditor(input=Vt100Input(terminal), output=screen)
        with pytest.raises(KeyboardInterrupt), editor.unseen():
            assert not echoes() and screen.pastes
            os.write(mine, ENTER.encode())
            assert editor.read() == ""
            assert not echoes() and screen.pastes, "behind a message as before it"
            raise KeyboardInterrupt
        assert echoes() and not screen.pastes, "whatever ends the answer"
        writer = threading.Thread(target=os.write, args=(mine, (paste(lines) + ENTER + CTRL_D).encode()))
        with editor.unseen():
            writer.start()
            time.sleep(0.1)
        assert editor.read() == lines
        with pytest.raises(EOFError):
            editor.read()
        writer.join()
    os.close(mine)


def test_where_there_is_no_terminal_nothing_is_done_to_it():
    with PlainInput().unseen(), LineEditor(output=DummyOutput()).unseen():
        pass
