"""Answers and conversations in a line of Python: what `generate` and `chat` do, for a model that is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import CHAT_SAMPLING, CacheChoice, DraftChoice, PromptChoice, SamplingChoice
from llama3_scratch.inference.conversation import Conversation
from llama3_scratch.inference.factories import make_cache, make_drafts
from llama3_scratch.inference.loading import activations
from llama3_scratch.inference.prompt_encoding import encode_prompt
from llama3_scratch.inference.timed import timed_stream
from llama3_scratch.system.fields import meant, updated
from llama3_scratch.system.timings import Timings
from llama3_scratch.text.detokenizer import Detokenizer

Choices = tuple[PromptChoice, SamplingChoice, CacheChoice, DraftChoice]

NOT_IN_A_CHAT = ("raw", "raw_special")  # a chat always has its chat format


def answer(checkpoint: Checkpoint, prompt: str, **settings: Any) -> str:
    """The model's answer to a prompt; of a base model, or with `raw=True`, how the text goes on.

    `settings` are those of `generate`: system, max_tokens (512), temperature (0: the likeliest token), top_p, top_k,
    min_p, repeat_penalty, seed, stop (a text or several), raw, date, kv_bits … Raises UsageError for any other.
    """
    return "".join(stream_answer(checkpoint, prompt, **settings))


def stream_answer(checkpoint: Checkpoint, prompt: str, **settings: Any) -> Iterator[str]:
    """`answer` piece by piece, as it comes: for piece in stream_answer(ck, "…"): print(piece, end="", flush=True)."""
    prompt_choice, sampling, cache, drafts = _chosen(checkpoint, settings, SamplingChoice())
    if not isinstance(prompt, str):
        raise UsageError(f"expected a text as the prompt, got {prompt!r:.99}; a conversation is a Talk")
    ids = encode_prompt(prompt, checkpoint.require_tokenizer(), prompt_choice)
    return _pieces(checkpoint, ids, sampling, cache, drafts)


def _pieces(
    checkpoint: Checkpoint, ids: list[int], sampling: SamplingChoice, cache: CacheChoice, drafts: DraftChoice
) -> Iterator[str]:
    tokenizer, dtype, shown = checkpoint.require_tokenizer(), activations(checkpoint.params), 0
    said = Detokenizer(tokenizer, tokenizer.stop_tokens, sampling.stop)
    for _ in timed_stream(
        [ids],
        [said],
        checkpoint,
        dtype,
        sampling,
        Timings(load_s=0.0),
        cache=make_cache(cache, checkpoint.config),
        drafts=make_drafts(drafts, checkpoint, dtype),
    ):
        if len(said.text) > shown:
            yield said.text[shown:]
            shown = len(said.text)


class Talk(Conversation):
    """A conversation with an instruct model: `say` what you want to, or `reply` to have the answer piece by piece.

    It computes only what is new each time. `settings` are those of `chat`: system, temperature (0.6), top_p (0.9),
    seed (a random one unless given) and so on, as `answer` has them. `messages` are what was said.
    """

    def __init__(self, checkpoint: Checkpoint, **settings: Any) -> None:
        prompt_choice, sampling, cache, drafts = _chosen(checkpoint, settings, CHAT_SAMPLING, unknown=NOT_IN_A_CHAT)
        dtype = activations(checkpoint.params)
        super().__init__(checkpoint, dtype, prompt=prompt_choice, sampling=sampling, cache=cache, drafts=drafts)

    def say(self, text: str) -> str:
        """The model's answer to `text`, which it remembers."""
        return "".join(self.reply(text))

    def __repr__(self) -> str:
        return f"Talk({self.checkpoint.path.name}, {len(self.messages)} messages, {self.n_cached} tokens in the cache)"


def _chosen(
    checkpoint: Checkpoint, settings: Mapping[str, Any], sampling: SamplingChoice, *, unknown: tuple[str, ...] = ()
) -> Choices:
    """The choices that these settings make; UsageError for one that none of them has, or that is `unknown` here."""
    if not isinstance(checkpoint, Checkpoint):
        raise UsageError(f"expected a Checkpoint, which `load` returns, got {type(checkpoint).__name__}")
    defaults = PromptChoice(), sampling, CacheChoice(), DraftChoice()
    known = [field.name for default in defaults for field in fields(default) if field.name not in unknown]
    for name in settings:
        if name not in known:
            raise UsageError(f"no setting {name}; {meant(name, known)}")
    prompt_choice, sampling, cache, drafts = defaults
    return (
        updated(prompt_choice, settings),
        updated(sampling, settings).seeded(),
        updated(cache, settings),
        updated(drafts, settings),
    )
