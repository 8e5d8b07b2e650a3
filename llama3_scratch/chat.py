"""Talk with an instruct model: a prompt that remembers the conversation."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch import cli
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.files import read_json, unwritable, write_whole
from llama3_scratch.generate import require_tokenizer, timed_stream, warn_if_clamped
from llama3_scratch.options import (
    add_cache_options,
    add_model_options,
    add_sampling_options,
    check_sampling,
    make_cache,
    make_guesses,
    open_model,
)
from llama3_scratch.text import Answer, visible
from llama3_scratch.timings import Timings

if TYPE_CHECKING:
    import torch

    from llama3_scratch.checkpoint.load import Checkpoint

log = logging.getLogger("llama3_scratch")

HELP = """\
/help                 this list
/clear                forget the conversation
/system TEXT          set the system message and start anew; without TEXT, none
/set NAME VALUE       change temperature, top_p, top_k, min_p, repeat_penalty, seed or max_tokens; alone: show them
/save FILE            write the conversation as JSON
/load FILE            go on with a saved conversation
/stats                tokens, speed and memory of the last answer
/exit                 leave (or Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next; three quotes on a line begin and end many lines."""

SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "max_tokens")


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "chat", "Talk with an instruct model.", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    add_model_options(parser)
    add_cache_options(parser)
    add_sampling_options(parser, temperature=0.6, top_p=0.9)
    return parser


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    check_sampling(options)
    started = time.perf_counter()
    checkpoint, dtype = open_model(options)
    conversation = Conversation(checkpoint, dtype, options, load_s=time.perf_counter() - started)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then has line editing and a history
    log.info("%s, loaded in %.1f s. /help lists the commands.", checkpoint.path.name, conversation.timings.load_s)
    while True:
        try:
            text = _read()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        except UnicodeDecodeError as error:
            raise UsageError(f"stdin: byte {error.start} of what was typed isn't UTF-8") from error
        if not text.strip():
            continue
        try:
            if text.startswith("/"):
                if _command(text, conversation) == "exit":
                    return 0
            else:
                _say(text, conversation)
        except BrokenPipeError:
            raise
        except Exception as error:  # whatever fails, the conversation is kept
            cli.report(error, debug=options.debug)


def _read() -> str:
    """One message: a line, lines joined by a backslash at their end, or all lines between two of three quotes."""
    prompt = "> " if sys.stdin.isatty() else ""
    line = input(prompt)
    if line.strip() == '"""':
        return "\n".join(iter(lambda: input(prompt and ". "), '"""'))
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input(prompt and ". ")
    return line


def _say(text: str, conversation: Conversation) -> None:
    """Print the answer as it comes. Ctrl-C ends it, wherever it strikes."""
    terminal = sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(conversation.reply(text)) as pieces:
        for piece in pieces:
            print(visible(piece) if terminal else piece, end="", flush=True)
    print()


def _command(text: str, conversation: Conversation) -> str | None:
    """Do what a line that begins with / says; "exit" where it says to leave."""
    name, _, argument = text[1:].partition(" ")
    argument = argument.strip()
    if name in ("exit", "quit"):
        return "exit"
    if name == "help":
        print(HELP)
    elif name == "clear":
        conversation.messages.clear()
    elif name == "system":
        conversation.set_system(argument)
    elif name == "set":
        if argument:
            conversation.set(argument)
        print("  ".join(f"{key} {getattr(conversation.options, key)}" for key in SETTINGS))
    elif name in ("save", "load"):
        if not argument:
            raise UsageError(f"/{name} wants a file name")
        path = Path(argument).expanduser()
        conversation.save(path) if name == "save" else conversation.load(path)
        print(f"{len(conversation.messages)} messages {'written to' if name == 'save' else 'read from'} {path}")
    elif name == "stats":
        print(f"{conversation.timings} · {conversation.n_cached} tokens in the cache")
    else:
        raise UsageError(f"no command /{name}; /help lists them")
    return None


class Conversation:
    """The messages so far, and a cache of what the model has seen of them: each turn computes only what is new."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, options: argparse.Namespace, *, load_s: float = 0.0
    ) -> None:
        self.checkpoint, self.dtype, self.options = checkpoint, dtype, options
        self.tokenizer = require_tokenizer(checkpoint)
        if self.tokenizer.chat_format is None:
            raise UsageError(
                f"{checkpoint.path}: a base model, which completes text but doesn't chat; take an instruct model, "
                "or say --chat-format if it is one"
            )
        self.messages: list[dict[str, Any]] = []
        self.set_system(options.system or "")
        self.timings = Timings(load_s)
        self._cache = make_cache(options, checkpoint.config)
        self._cached: list[int] = []
        self._guesses = make_guesses(options, checkpoint, dtype)

    @property
    def n_cached(self) -> int:
        return self._cache.length

    def set_system(self, text: str) -> None:
        """Start anew under this system message; under none where it's empty."""
        self._system = [{"role": "system", "content": text}] if text else []
        self.messages = []

    def set(self, argument: str) -> None:
        """`NAME VALUE`, checked as the command line checks it."""
        name, _, value = argument.partition(" ")
        if name not in SETTINGS:
            raise UsageError(f"no setting {name!r}; there are {', '.join(SETTINGS)}")
        parsed = _parser().parse_args([f"--{name.replace('_', '-')}", value.strip()])
        check_sampling(parsed)
        setattr(self.options, name, getattr(parsed, name))

    def reply(self, text: str) -> Generator[str, None, None]:
        """Say `text`; yield the answer piece by piece. Ctrl-C or `close` ends it; what was said until then is kept."""
        from llama3_scratch.dialog import encode_dialog
        from llama3_scratch.prompt_cache import common_prefix

        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = encode_dialog([*self._system, *messages], self.tokenizer, date=self.options.date)
        warn_if_clamped(len(prompt), self.checkpoint, self.options)
        known = min(common_prefix(prompt, self._cached), len(prompt) - 1)
        self._cache.rewind(min(known, self._cache.length))
        self._cached = self._cached[: self._cache.length]  # whatever cuts the answer short, no more than the truth
        answer = Answer(self.tokenizer, self.tokenizer.stop_tokens, self.options.stop)
        self.timings = Timings(self.timings.load_s)
        shown = 0
        steps = timed_stream(
            [prompt],
            [answer],
            self.checkpoint,
            self.dtype,
            self.options,
            self.timings,
            cache=self._cache,
            guesses=self._guesses,
        )
        with contextlib.suppress(KeyboardInterrupt, GeneratorExit):
            for _ in steps:
                piece, shown = answer.text[shown:], len(answer.text)
                yield piece
        self._cached = [*prompt, *answer.tokens][: self._cache.length]
        self.messages = [*messages, {"role": "assistant", "content": answer.text[:shown]}]

    def save(self, path: Path) -> None:
        """Write the conversation as JSON: {"messages": [{"role", "content"}, …]}."""
        try:
            write_whole(
                path, json.dumps({"messages": [*self._system, *self.messages]}, ensure_ascii=False, indent=1) + "\n"
            )
        except OSError as error:
            raise unwritable(path, error) from error

    def load(self, path: Path) -> None:
        """Go on with a conversation that `save` wrote."""
        messages = read_json(path, "a saved conversation").get("messages")
        if not isinstance(messages, list) or not all(
            isinstance(m, dict)
            and isinstance(m.get("content"), str)
            and m.get("role") in ("system", "user", "assistant")
            for m in messages
        ):
            raise FileError(f'{path}: expected {{"messages": [{{"role": …, "content": …}}, …]}}')
        self._system = [m for m in messages[:1] if m["role"] == "system"]
        self.messages = messages[len(self._system) :]


if __name__ == "__main__":
    raise SystemExit(main())
