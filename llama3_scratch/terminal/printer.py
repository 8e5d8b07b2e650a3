"""Prints the answers to a batch of prompts as they grow: as text, or a JSON object each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from llama3_scratch.system import stdio
from llama3_scratch.system.timings import Timings
from llama3_scratch.terminal.prompts import Prompt
from llama3_scratch.terminal.word_wrap import WrappedOutput
from llama3_scratch.text.detokenizer import Detokenizer

log = logging.getLogger("llama3_scratch")


class Printer:
    """Prints the answers of a batch in their prompts' order, each as it grows once those before it are done; as JSON,
    each once it is done."""

    def __init__(
        self,
        asked: Sequence[Prompt],
        prompts: Sequence[list[int]],
        *,
        first: int = 0,
        n_prompts: int = 1,
        about: dict[str, Any] | None = None,
    ) -> None:
        """`first` is the place of the batch's first prompt among all `n_prompts`. `about` is what every JSON object
        has to say of the run; None prints text."""
        self.prompts = prompts
        self._first, self._several, self._asked, self._about = first, n_prompts > 1, asked, about
        self._row, self._printed = 0, -1  # -1: not even the heading
        self._page = WrappedOutput()

    @property
    def done(self) -> int:
        """How many of all prompts are answered and printed."""
        return self._first + self._row

    def show(
        self, answers: Sequence[Detokenizer], logprobs: Sequence[list[dict[str, Any]]] | None, timings: Timings
    ) -> None:
        """Print what is new; `logprobs` are each answer's tokens, if they're to be shown."""
        while self._row < len(answers):
            answer = answers[self._row]
            if self._about is not None:
                if answer.finish_reason is None:
                    return
                stdio.print_json(self._as_json(answer, logprobs, timings))
            elif not self._as_text(answer):
                return
            else:
                for token in logprobs[self._row] if logprobs is not None else ():
                    top = "  ".join(f"{other['text']!r} {other['logprob']:.3f}" for other in token["top"])
                    log.info("%r %.3f  | %s", token["text"], token["logprob"], top)
            self._row, self._printed, self._page = self._row + 1, -1, WrappedOutput()

    def _as_text(self, answer: Detokenizer) -> bool:
        """Print what is new of the answer; whether it's done."""
        if self._printed < 0:
            if self._several:
                print(f"== {self.done + 1} ==")
            self._printed = 0
        text = answer.text[self._printed :]
        self._printed += len(text)
        self._page.write(text)
        if answer.finish_reason is not None:
            self._page.finish()
        return answer.finish_reason is not None

    def _as_json(
        self, answer: Detokenizer, logprobs: Sequence[list[dict[str, Any]]] | None, timings: Timings
    ) -> dict[str, Any]:
        return {
            "index": self.done,
            **self._asked[self._row].as_json(),
            "prompt_tokens": self.prompts[self._row],
            "tokens": answer.tokens,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            **(self._about or {}),
            **({"logprobs": logprobs[self._row]} if logprobs is not None else {}),
            "timings": timings.as_dict(),
        }
