"""Where a chat's messages come from: an editor on a terminal, or plain lines.

On a terminal it is prompt_toolkit's: what is pasted at once is one message, Alt-Enter begins a new line, and earlier
messages come back with the arrow keys, those of earlier sessions too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.history import History

log = logging.getLogger("llama3_scratch")

QUOTES = '"""'
_MAX_CHARACTERS = 10_000  # characters of a message that the history keeps


def history_path() -> Path:
    """Where the history is kept: in $XDG_STATE_HOME, else in ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "llama3_scratch" / "chat_history"


def goes_on(text: str) -> str | None:
    """What the next line is added to, where the message isn't at its end: behind a backslash, or between quotes."""
    lines = text.split("\n")
    if lines[0].strip() == QUOTES:
        return f"{text}\n" if sum(line.strip() == QUOTES for line in lines) % 2 else None
    return f"{text[:-1]}\n" if text.endswith("\\") else None


def unquoted(text: str) -> str:
    """The message without the lines of quotes that it's typed between."""
    lines = text.split("\n")
    quoted = len(lines) > 1 and lines[0].strip() == lines[-1].strip() == QUOTES
    return "\n".join(lines[1:-1]) if quoted else text


class PlainInput:
    """Lines by `input()`: from a pipe, or from a terminal whose cursor can't be moved."""

    edits = False  # whether a text can be put before a person to change it

    def unseen(self) -> contextlib.AbstractContextManager[None]:
        """Nothing to do: the terminal does it all."""
        return contextlib.nullcontext()

    def read(self, text: str = "") -> str:
        """The next message; EOFError behind the last one."""
        terminal = sys.stdin.isatty()
        try:
            message = input("> " if terminal else "")
        except EOFError:
            if terminal:
                print()
            raise
        while (begun := goes_on(message)) is not None:
            try:
                message = begun + input(". " if terminal else "")
            except EOFError:
                log.warning("the input ended within a message; what there is of it counts")
                message = begun + QUOTES if begun.lstrip().startswith(QUOTES) else begun[:-1]
        return unquoted(message)


class LineEditor:
    """Messages typed into prompt_toolkit's editor. `how` is for its PromptSession: another input or output."""

    edits = True

    def __init__(self, history: History | None = None, **how: Any) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if (begun := goes_on(buffer.text)) is None:
                buffer.validate_and_handle()
            else:
                buffer.text, buffer.cursor_position = begun, len(begun)

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            "> ", multiline=True, prompt_continuation=". ", history=history, key_bindings=keys, **how
        )

    def read(self, text: str = "") -> str:
        """The next message, `text` being there to be changed; EOFError where Ctrl-D is typed on an empty line."""
        try:
            return unquoted(self._session.prompt(default=text))
        finally:
            self._paste_in_one_piece()  # which the prompt ends

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """From here on, while no message is read: what is typed isn't shown, where it would stand amid an answer, and
        waits for the next message; what is pasted waits in one piece, as when a message is read."""
        with _keys_wait():
            self._paste_in_one_piece()
            try:
                yield
            finally:
                self._session.output.disable_bracketed_paste()
                self._session.output.flush()

    def _paste_in_one_piece(self) -> None:
        self._session.output.enable_bracketed_paste()
        self._session.output.flush()


@contextlib.contextmanager
def _keys_wait() -> Iterator[None]:
    """The terminal shows nothing of what is typed, and keeps it as it is: a line has no end, and no longest length."""
    try:
        import termios

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (ImportError, OSError, termios.error):  # Windows, or no terminal
        yield
        return
    silent = list(before)
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def line_editor(*, keep_history: bool) -> PlainInput | LineEditor:
    """The editor where there is a terminal for it, else plain lines."""
    screen = sys.stdout.isatty() or sys.stderr.isatty()
    if not (sys.stdin.isatty() and screen) or os.environ.get("TERM", "dumb" if os.name == "posix" else "") == "dumb":
        return PlainInput()
    from prompt_toolkit.output.defaults import create_output

    # With stdout in a file or a pipe, what is typed is shown on stderr.
    return LineEditor(
        open_history(history_path()) if keep_history else None, output=create_output(always_prefer_tty=True)
    )


def open_history(path: Path) -> History | None:
    """Messages of this session and of earlier ones, in a file that its owner alone can read; None where it can't be."""
    from prompt_toolkit.history import FileHistory

    class PrivateHistory(FileHistory):
        def store_string(self, string: str) -> None:
            if len(string) <= _MAX_CHARACTERS:
                with contextlib.suppress(OSError):  # a full disk is no reason to stop talking
                    super().store_string(string.encode("utf-8", "replace").decode())

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except OSError as error:
        log.warning("%s: no history is kept: %s", path, error.strerror)
        return None
    return PrivateHistory(path)
