"""Text that streams to a terminal: words aren't broken at its edge, and what has to stay whole stays whole."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

from rich.cells import cell_len

from llama3_scratch.text.detokenizer import visible

_FENCE = re.compile(r"\s*(```+|~~~+)([^`]*)$")


def columns() -> int:
    """Those of the terminal that stdout is."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except OSError:
        return 80


class WrappedOutput:
    """Streams a text to stdout: to a terminal word by word, with control characters shown; elsewhere as it is."""

    def __init__(self) -> None:
        self._words = WordWrap(sys.stdout.write, columns) if sys.stdout.isatty() else None

    def write(self, text: str) -> None:
        self._words.write(visible(text)) if self._words else sys.stdout.write(text)
        sys.stdout.flush()

    def finish(self) -> None:
        """Write what waits, and end the line."""
        if self._words:
            self._words.finish()
        print(flush=True)


class WordWrap:
    """Writes text as it comes, each word once it's whole, and begins a new line where a word wouldn't fit.

    A line break takes the place of a blank and is put nowhere else but before a word that follows a wide character: so
    words too long for a line (addresses), blocks of code and Chinese or Japanese are copied from the screen as they
    were said, and the terminal breaks their lines by itself. `width` tells the columns, anew for each word.
    """

    def __init__(self, write: Callable[[str], object], width: Callable[[], int]) -> None:
        self._write, self._width = write, width
        self._column = 0  # columns of the screen's line that are taken
        self._blanks = self._word = ""  # what waits for the end of the word
        self._flows = False  # the word didn't fit: its line is broken already, and the rest of it comes as it comes
        self._line, self._fence = "", ""  # the text's line so far, and what closes the block of code that it's in

    def write(self, text: str) -> None:
        for char in text:
            if char == "\n":
                self._end_line()
                continue
            self._line += char
            if self._fence:
                self._put(char)
            elif char in " \t":
                self._end_word()
                self._blanks += char
            else:
                if self._word and cell_len(char) and 2 in (cell_len(char), cell_len(self._word[0])):
                    self._end_word()  # a line may end before and behind a wide character
                self._word += char
                if self._flows or self._column + cell_len(self._blanks + self._word) > self._width():
                    self._begin_line()

    def finish(self) -> None:
        """Write what waits; the text ends here."""
        self._end_word()
        if self._column + len(self._blanks) <= self._width():  # beyond the edge they'd only make an empty line
            self._put(self._blanks)
        self._blanks = ""

    def _end_line(self) -> None:
        self.finish()
        self._write("\n")
        self._column = 0
        found = _FENCE.match(self._line)
        if found and not self._fence:
            self._fence = found[1]
        elif found and found[1].startswith(self._fence) and not found[2].strip():
            self._fence = ""
        self._line = ""

    def _begin_line(self) -> None:
        """Write the word that doesn't fit, on a new line where that helps."""
        wide = cell_len(self._word[:1]) == 2
        if not self._flows and (self._blanks or not wide):
            if self._column:
                self._write("\n")
            self._column, self._blanks = 0, ""
        self._put(self._blanks + self._word)
        self._blanks, self._word, self._flows = "", "", not wide

    def _end_word(self) -> None:
        if self._word:
            self._put(self._blanks + self._word)
            self._blanks = ""
        self._word, self._flows = "", False

    def _put(self, text: str) -> None:
        self._write(text)
        for char in text:
            columns = 8 - self._column % 8 if char == "\t" else cell_len(char)
            self._column = columns if self._column + columns > self._width() else self._column + columns
