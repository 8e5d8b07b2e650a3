"""Have a model write stories for children: text to train a smaller one on.

    python scripts/ask_for_stories.py tiny.jsonl --adapter runs/teller/adapter --count 5000 --out stories.jsonl

asks a model many times for a short story with three words that the given stories use too, and keeps the answers that
ended by themselves, as JSONL with the request beside the text. Whichever of a batch is done makes room for the next;
every 512 answers are written, and what is in the file isn't asked for again: a run that was stopped goes on.
SmolLM2-135M writes much better stories with an adapter that has read some (scripts/story_requests.py,
scripts/finetune_lora.py) than without.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.system import cli
from llama3_scratch.terminal.flags import add_adapter_flag

log = logging.getLogger("llama3_scratch")

WRITTEN_AT_ONCE = 512  # answers; a run that is stopped asks again for those that weren't written yet


def make_parser() -> cli.Parser:
    parser = cli.script("ask_for_stories", __doc__)
    count = cli.number(int, minimum=1)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="stories with the words to ask for")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL to write or to go on with")
    parser.add_argument("--count", type=count, default=1000, metavar="N", help="answers to ask for (%(default)s)")
    parser.add_argument("--model", default=DEFAULT, metavar="PATH|NAME", help="(%(default)s)")
    add_adapter_flag(parser, "merged into its weights")
    parser.add_argument("--quantize", default="int8", metavar="FORM", help="of its weights (%(default)s)")
    parser.add_argument("--batch", type=count, default=32, metavar="N", help="prompts at once (%(default)s)")
    parser.add_argument("--max-tokens", type=count, default=350, metavar="N", help="of an answer (%(default)s)")
    parser.add_argument(
        "--temperature", type=cli.number(float, above=0), default=0.7, metavar="X", help="(%(default)s)"
    )
    parser.add_argument("--seed", type=cli.number(int, minimum=0), default=0, metavar="N", help="(%(default)s)")
    return parser


def requests_of(numbers: Sequence[int], words: Sequence[str], seed: int) -> list[str]:
    """The requests of these numbers: the same whenever they're asked."""
    from storyteller.requests import REQUESTED_WORDS, request

    return [request(random.Random(f"{seed} {number}").sample(words, REQUESTED_WORDS)) for number in numbers]


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    from storyteller.requests import REQUESTED_WORDS, content_words

    from llama3_scratch.data.documents import documents
    from llama3_scratch.inference.answers import answers
    from llama3_scratch.inference.loading import open_model
    from llama3_scratch.inference.sample import sampler
    from llama3_scratch.params.lora import merge
    from llama3_scratch.params.quantize import quantize
    from llama3_scratch.system.timings import remaining
    from llama3_scratch.text.dialog import encode_dialog

    checkpoint, _ = open_model(ModelChoice(options.model, adapters=tuple(options.adapters or ())), as_floats=True)
    tokenizer = checkpoint.require_tokenizer()
    if tokenizer.chat_format is None:
        raise UsageError(f"{options.model}: expected a model that chats")
    words = content_words(documents(options.files))
    if len(words) < REQUESTED_WORDS:
        raise UsageError(f"{options.files[0]}: too few stories to take {REQUESTED_WORDS} words from")
    checkpoint = replace(checkpoint, params=quantize(merge(checkpoint.params), options.quantize))
    kept = tokens = 0
    begun = time.perf_counter()
    done = first = sum(1 for _ in options.out.open("rb")) if options.out.exists() else 0

    def count(answered: int) -> None:
        nonlocal done
        done += 1
        if done % options.batch == 0:
            left = remaining(begun, done - first, options.count - first)
            log.info("%d of %d answers · %s", done, options.count, left)

    while done < options.count:
        numbers = range(done, min(done + WRITTEN_AT_ONCE, options.count))
        requests = requests_of(numbers, words, options.seed)
        said = answers(
            [encode_dialog([{"role": "user", "content": request}], tokenizer) for request in requests],
            checkpoint,
            max_tokens=options.max_tokens,
            samplers=[
                sampler(temperature=options.temperature, top_p=0.95, seed=options.seed * 2**32 + number)
                for number in numbers
            ],
            batch=options.batch,
            on_done=count,
        )
        with options.out.open("a", encoding="utf-8") as file:
            for request, answer in zip(requests, said, strict=True):
                text = answer.text.strip() if answer.ended else ""  # what was cut short is no story
                file.write(json.dumps({"prompt": request, "text": text}, ensure_ascii=False) + "\n")
                kept += bool(text)
        tokens += sum(answer.tokens for answer in said)
        rate = tokens / (time.perf_counter() - begun)
        log.info("%d of %d · %d ended by themselves · %.0f tokens/s", done, options.count, kept, rate)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
