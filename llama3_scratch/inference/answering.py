"""Answers and conversations in a line of Python: what `generate` and `chat` do, for a model that is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from llama3_scratch import chat, generate
from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.conversation import Conversation
from llama3_scratch.inference.options import activations, check_sampling, make_cache, make_drafts
from llama3_scratch.system import cli
from llama3_scratch.system.timings import Timings
from llama3_scratch.text.detokenizer import Detokenizer

_GROUPS = ("sampling", "KV cache")
_ALONE = ("system", "raw", "date", "max_seq_len")


def answer(checkpoint: Checkpoint, prompt: str, **settings: Any) -> str:
    """The model's answer to a prompt; of a base model, or with `raw=True`, how the text goes on.

    `settings` are those of `generate`: system, max_tokens (512), temperature (0: the likeliest token), top_p, top_k,
    min_p, repeat_penalty, seed, stop (a text or several), raw, date, kv_bits … Raises UsageError for any other.
    """
    return "".join(stream_answer(checkpoint, prompt, **settings))


def stream_answer(checkpoint: Checkpoint, prompt: str, **settings: Any) -> Iterator[str]:
    """`answer` piece by piece, as it comes: for piece in stream_answer(ck, "…"): print(piece, end="", flush=True)."""
    options = _options(generate._parser(), checkpoint, settings)
    if not isinstance(prompt, str):
        raise UsageError(f"expected a text as the prompt, got {prompt!r:.99}; a conversation is a Talk")
    tokenizer = checkpoint.require_tokenizer()
    if options.system is not None and (options.raw or tokenizer.chat_format is None):
        raise UsageError("a system message goes with a chat, not with a base model or raw=True; leave it out")
    ids = generate.encode_prompt(prompt, tokenizer, options)
    return _pieces(checkpoint, ids, Detokenizer(tokenizer, tokenizer.stop_tokens, options.stop), options)


def _pieces(checkpoint: Checkpoint, ids: list[int], said: Detokenizer, options: argparse.Namespace) -> Iterator[str]:
    dtype, shown = activations(checkpoint.params), 0
    for _ in generate.timed_stream(
        [ids],
        [said],
        checkpoint,
        dtype,
        options,
        Timings(load_s=0.0),
        cache=make_cache(options, checkpoint.config),
        drafts=make_drafts(options, checkpoint, dtype),
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
        options = _options(chat._parser(), checkpoint, settings)
        super().__init__(checkpoint, activations(checkpoint.params), options)

    def say(self, text: str) -> str:
        """The model's answer to `text`, which it remembers."""
        return "".join(self.reply(text))

    def __repr__(self) -> str:
        return f"Talk({self.checkpoint.path.name}, {len(self.messages)} messages, {self.n_cached} tokens in the cache)"


def _options(parser: cli.Parser, checkpoint: Checkpoint, settings: dict[str, Any]) -> argparse.Namespace:
    """The verb's options with these settings in them, each checked as the command line checks it."""
    if not isinstance(checkpoint, Checkpoint):
        raise UsageError(f"expected a Checkpoint, which `load` returns, got {type(checkpoint).__name__}")
    known = {
        action.dest: action
        for group in parser._action_groups
        for action in group._group_actions
        if group.title in _GROUPS or action.dest in _ALONE
    }
    options = parser.parse_args([])
    options.device = str(checkpoint.params["tok_embeddings.weight"].device)
    for name, value in settings.items():
        if name not in known:
            raise UsageError(f"no setting {name}; {cli.meant(name, known)}")
        setattr(options, name, _checked(known[name], value))
    check_sampling(options)
    return options


def _checked(action: argparse.Action, value: Any) -> Any:
    """The value as the option would have it; None leaves the option out."""
    if value is None:
        return action.default
    if action.nargs == 0:
        return bool(value)
    if isinstance(action.default, list):
        several = [value] if isinstance(value, str) else list(value)
        if not all(isinstance(one, str) for one in several):
            raise UsageError(f"{action.dest}: expected a text or several, got {value!r}")
        return several
    try:
        checked = action.type(str(value)) if callable(action.type) else str(value)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise UsageError(f"{action.dest}: {error}") from error
    if action.choices is not None and checked not in action.choices:
        raise UsageError(f"{action.dest}: expected one of {', '.join(map(str, action.choices))}, got {value!r}")
    return checked
