"""A conversation with an instruct model: the messages so far, and a cache of what the model has seen of them."""

from __future__ import annotations

import contextlib
import json
import logging
from bisect import bisect_left
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.inference.choices import CacheChoice, DraftChoice, ModelChoice, PromptChoice, SamplingChoice
from llama3_scratch.inference.prompt_cache_file import PromptCacheFile
from llama3_scratch.system.files import read_json
from llama3_scratch.system.timings import Timings
from llama3_scratch.system.writing import unwritable, write_whole
from llama3_scratch.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    import torch

    from llama3_scratch.checkpoint.load import Checkpoint

log = logging.getLogger("llama3_scratch")

Messages = list[dict[str, Any]]


class Conversation:
    """Messages, all that were said, and what the model knows of them: each turn computes only what is new.

    Where the context is full the oldest turns are no longer shown to the model: `forgotten` messages, the system
    message never. With a sliding cache it forgets tokens instead. `cache` holds the keys and values, and `seen` the
    tokens that it has taken in, in the order of the text; both are to be looked at alone.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        *,
        prompt: PromptChoice,
        sampling: SamplingChoice,
        cache: CacheChoice,
        drafts: DraftChoice,
        reading: ModelChoice | None = None,
        load_s: float = 0.0,
    ) -> None:
        """`reading` says how the files of a model that makes draft tokens are read. `sampling` may be changed later."""
        from llama3_scratch.inference.factories import make_cache, make_drafts

        if drafts.speculate and cache.sliding:
            raise UsageError("`speculate` goes without `sliding`")
        self.checkpoint, self.dtype, self.sampling = checkpoint, dtype, sampling.seeded()
        self.tokenizer = checkpoint.require_tokenizer()
        self._date, self._sliding = prompt.date, cache.sliding
        self.set_system(prompt.system or "")
        self.timings = Timings(load_s)
        self.ended: str | None = None  # what ended the last answer: stop, max_tokens, context; None: a person did
        self.cache = make_cache(cache, checkpoint.config)
        self.seen: list[int] = []
        self._drafts = make_drafts(drafts, checkpoint, dtype, reading=reading)
        self._fitting([{"role": "user", "content": "?"}])  # a system message or a date that can't be is told at once

    @property
    def n_cached(self) -> int:
        return self.cache.length

    def begin_with(self, file: PromptCacheFile) -> None:
        """Know what the file holds, before anything is said."""
        self.seen = list(file.fill(self.cache))

    def keep(self, file: PromptCacheFile) -> None:
        """Write to the file what is known of the conversation, unless that would lose any of what it holds."""
        from llama3_scratch.caches.prompt_cache import common_prefix

        # What every conversation under this system message begins with.
        one, other = (self._encoded([{"role": "user", "content": text}]) for text in ("?", "!"))
        file.keep(self.cache, self.seen, wanted=common_prefix(one, other))

    def set_system(self, text: str) -> None:
        """Start anew under this system message; under none where it's empty."""
        self.begin([{"role": "system", "content": text}] if text else [])

    def clear(self) -> None:
        """Start anew under the same system message."""
        self.begin(self._system)

    def begin(self, messages: Messages) -> None:
        """Go on from these messages."""
        self._system = [message for message in messages[:1] if message["role"] == "system"]
        self.messages = messages[len(self._system) :]
        self.forgotten = 0

    @property
    def last(self) -> str | None:
        """The text of the user's last message."""
        asked = self._asked()
        return None if asked is None else self.messages[asked]["content"]

    def reply(self, text: str) -> Generator[str, None, None]:
        """Say `text`; yield the answer piece by piece.

        Ctrl-C, which is raised on, and `close` end it; what was said until then is kept.
        """
        return self._answer([*self.messages, {"role": "user", "content": text}])

    def retry(self, text: str | None = None) -> Generator[str, None, None]:
        """Answer the user's last message again, or this text in its place, and forget what came of it.

        Where the last message isn't the assistant's, as in a conversation that was loaded, it is answered.
        """
        asked = self._asked()
        if asked is None:
            raise UsageError("there is no message yet; type one")
        if text is None and self.messages[-1]["role"] != "assistant":
            return self._answer(self.messages)
        message = self.messages[asked]
        return self._answer([*self.messages[:asked], message if text is None else {**message, "content": text}])

    def _asked(self) -> int | None:
        """Where the user's last message is."""
        asked = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        return asked[-1] if asked else None

    def _answer(self, messages: Messages) -> Generator[str, None, None]:
        from llama3_scratch.inference.timed import timed_stream, warn_if_clamped

        prompt, forgotten = self._fitting(messages)
        sampling = self.sampling
        if not self.cache.endless:
            warn_if_clamped(len(prompt), self.cache.limit, sampling)
        answer = Detokenizer(self.tokenizer, self.tokenizer.stop_tokens, sampling.stop)
        self.timings, self.ended = Timings(self.timings.load_s), None
        shown = 0
        steps = timed_stream(
            [self._take_up(prompt)],
            [answer],
            self.checkpoint,
            self.dtype,
            sampling,
            self.timings,
            cache=self.cache,
            drafts=self._drafts,
        )
        left: BaseException | None = None
        try:
            with contextlib.closing(steps):  # the cache gives up draft tokens that nobody heard of
                for _ in steps:
                    piece, shown = answer.text[shown:], len(answer.text)
                    yield piece
            full = len(answer.tokens) < sampling.at_most
            self.ended = "stop" if answer.finish_reason == "stop" else "context" if full else "max_tokens"
        except (KeyboardInterrupt, GeneratorExit) as error:
            left = error
        self.seen = [*prompt, *answer.tokens][: self.cache.dropped + self.cache.length]
        if self.ended or shown:  # what was interrupted before it began wasn't said
            self.messages = [*messages, {"role": "assistant", "content": answer.text[:shown]}]
            self.forgotten = forgotten
        if left is not None:
            raise left

    def _known(self, prompt: list[int]) -> int:
        """How many of the prompt's tokens the cache has taken in, the last one excepted: that is computed anew."""
        from llama3_scratch.caches.prompt_cache import common_prefix

        known = min(common_prefix(prompt, self.seen), len(prompt) - 1)
        parts_in_a_gap = self.cache.dropped and known <= self.cache.dropped + self.cache.sinks
        return 0 if parts_in_a_gap else known

    def _take_up(self, prompt: list[int]) -> list[int]:
        """Keep in the cache what the prompt begins with, and make room for the rest: the tokens kept, and that rest."""
        import torch

        known = self._known(prompt)
        self.cache.rewind(max(0, known - self.cache.dropped))
        self.seen = prompt[:known]  # whatever cuts the answer short, no more than the truth
        with torch.inference_mode():
            self.cache.span(len(prompt) - known + 1)  # a sliding one drops tokens now
        return [*prompt[: self.cache.sinks], *prompt[self.cache.sinks + self.cache.dropped :]]

    def _slides(self, prompt: list[int]) -> bool:
        """Whether the cache makes room for what is new in the prompt."""
        known, kept = self._known(prompt), self.cache.sinks + (self._sliding or 0)
        return bool(self.cache.endless and known and kept + len(prompt) - known < self.cache.limit)

    def _fitting(self, messages: Messages) -> tuple[list[int], int]:
        """The prompt's ids, and how many of the oldest messages had to be left out, so that an answer fits too.

        As many as free a quarter of the context: all that stays has to be computed anew, at its new place.
        """

        def encoded(begin: int) -> list[int]:
            return self._encoded(messages[begin:])

        turns = [index for index, message in enumerate(messages) if message["role"] == "user"]
        limit = self.cache.limit
        answer = min(self.sampling.at_most, limit // 4)
        begin = min(self.forgotten, turns[-1])
        prompt = encoded(begin)
        if len(prompt) + answer <= limit or self._slides(prompt):
            return prompt, begin
        if later := [turn for turn in turns if turn > begin]:
            fits = bisect_left(later, True, key=lambda turn: len(encoded(turn)) + answer <= limit * 3 // 4)
            begin = later[min(fits, len(later) - 1)]
            prompt = encoded(begin)
            log.info(
                "The context of %d tokens is full: the oldest %d of %d messages are forgotten.",
                limit,
                begin,
                len(messages),
            )
        if len(prompt) >= limit:
            longer = self.checkpoint.config.max_seq_len
            remedy = f", or begin with `max_seq_len={longer}`" if limit < longer else ""
            raise UsageError(
                f"the message in its chat format is {len(prompt)} tokens, the context holds {limit} and needs room for "
                f"an answer: shorten {'it or the system message' if self._system else 'it'}{remedy}"
            )
        return prompt, begin

    def _encoded(self, messages: Messages) -> list[int]:
        """The tokens of these messages under the system message."""
        from llama3_scratch.text.dialog import encode_dialog

        return encode_dialog([*self._system, *messages], self.tokenizer, date=self._date)

    def save(self, path: Path) -> None:
        """Write the conversation as JSON: {"messages": [{"role", "content"}, …]}."""
        try:
            write_whole(
                path, json.dumps({"messages": [*self._system, *self.messages]}, ensure_ascii=False, indent=1) + "\n"
            )
        except OSError as error:
            raise unwritable(path, error) from error

    def load(self, path: Path) -> None:
        """Go on with a conversation that `save` wrote, or another of the same form."""
        from llama3_scratch.text.dialog import encode_dialog

        messages = read_json(path, "a saved conversation").get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise FileError(f'{path}: expected {{"messages": [{{"role": …, "content": …}}, …]}}')
        waits = messages and messages[-1].get("role") in ("user", "tool")
        try:  # whether the model can be shown it is seen now, and not at the next message
            more = [] if waits else [{"role": "user", "content": "?"}]
            encode_dialog([*messages, *more], self.tokenizer, date=self._date)
        except UsageError as error:
            raise FileError(f"{path}: {error}") from error
        self.begin(messages)
