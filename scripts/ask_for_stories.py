"""Have a model write stories for children: text to train a smaller one on.

    python scripts/ask_for_stories.py --count 5000 --seed 1 --out stories.jsonl

asks SmolLM2 many times for a short story about someone, somewhere, with something, a batch at a time, and keeps the
answers that ended by themselves, as JSONL with the prompt beside the text. What is in the file already isn't asked for
again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from pathlib import Path

from llama3_scratch import cli
from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.errors import UsageError

log = logging.getLogger("llama3_scratch")

WHO = """a boy, a girl, a little cat, a puppy, a rabbit, a bear cub, a small bird, a duckling, a mouse, a fox, a frog,
a turtle, a hen, a grandmother, a baker, a farmer, a boy and his dog, a girl and her brother, two friends, twin sisters,
a lonely robot, a snowman, a toy soldier, a kitten and a goat, a small elephant, a penguin, a squirrel, an owl,
a young dragon, a bee, a pony, a fish"""
WHERE = """in the garden, at the beach, in the forest, on a farm, at school, in the kitchen, by the river, in the park,
on a hill, in a small house, at the market, in the snow, on a boat, under a big tree, at the zoo, in a tent,
on the playground, at night, in the rain, at the library, by the lake, in a cave, on a train, at a birthday party"""
WHAT = """a red ball, a lost shoe, a kite, a cake, a broken toy, a shiny stone, a warm hat, a letter, a drum, an apple,
a blue cup, a key, a basket, a big box, a book, a ladder, a blanket, a whistle, a bell, a seed, a map, a feather,
a lamp, a bucket, a picture, a swing"""
THEME = """learns to share, is afraid and then brave, makes a new friend, helps somebody, loses something and finds it,
says sorry, keeps a promise, waits for a long time, tells the truth, has a surprise, learns something new, gets lost,
works together with others, is kind to a stranger, wants to give up but doesn't, wants what another one has"""


def _parser() -> cli.Parser:
    parser = cli.Parser("ask_for_stories", (__doc__ or "").partition("\n")[0])
    parser.prog = "python scripts/ask_for_stories.py"
    count = cli.number(int, least=1)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL to write or to go on with")
    parser.add_argument("--count", type=count, default=1000, metavar="N", help="answers to ask for (%(default)s)")
    parser.add_argument("--model", default=DEFAULT, metavar="PATH|NAME", help="(%(default)s)")
    parser.add_argument("--quantize", default="int8", metavar="FORM", help="of its weights (%(default)s)")
    parser.add_argument("--batch", type=count, default=32, metavar="N", help="prompts at once (%(default)s)")
    parser.add_argument("--max-tokens", type=count, default=300, metavar="N", help="of an answer (%(default)s)")
    parser.add_argument(
        "--temperature", type=cli.number(float, above=0), default=0.8, metavar="X", help="(%(default)s)"
    )
    parser.add_argument("--seed", type=cli.number(int, least=0), default=0, metavar="N", help="(%(default)s)")
    return parser


def prompt(seed: int, number: int) -> str:
    """The request of this number: the same whenever it's asked."""
    pick = random.Random(f"{seed} {number}").choice
    who, where, what, theme = (pick(words.replace("\n", " ").split(", ")) for words in (WHO, WHERE, WHAT, THEME))
    return (
        "Write a story of a hundred words for a four-year-old child, with a beginning, a middle and a happy end. Use "
        f"simple words and short sentences. It is about {who} {where} with {what}, who {theme}. Write only the story."
    )


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    import torch

    from llama3_scratch.checkpoint.load import load
    from llama3_scratch.dialog import encode_dialog
    from llama3_scratch.download import download
    from llama3_scratch.quantize import quantize
    from llama3_scratch.sample import sampler
    from llama3_scratch.stream import stream

    checkpoint = load(download(options.model) if options.model == DEFAULT else options.model)
    tokenizer = checkpoint.tokenizer
    if tokenizer is None or tokenizer.chat_format is None:
        raise UsageError(f"{options.model}: expected a model that chats, with its tokenizer")
    params = quantize(checkpoint.params, options.quantize)
    done = sum(1 for _ in options.out.open()) if options.out.exists() else 0
    kept = tokens = 0
    begun = time.perf_counter()
    for first in range(done, options.count, options.batch):
        numbers = range(first, min(first + options.batch, options.count))
        requests = [prompt(options.seed, number) for number in numbers]
        seeds = [options.seed * 2**32 + number for number in numbers]
        answers: list[list[int]] = [[] for _ in numbers]
        ended = [False] * len(numbers)
        for step in stream(
            [encode_dialog([{"role": "user", "content": request}], tokenizer) for request in requests],
            params,
            checkpoint.config,
            samplers=[sampler(temperature=options.temperature, top_p=0.95, seed=seed) for seed in seeds],
            max_tokens=options.max_tokens,
            stop=lambda row, token: token in tokenizer.stop_tokens,
            dtype=torch.float32,
        ):
            answers[step.row].append(step.token)
            ended[step.row] = step.finish_reason == "stop"
        with options.out.open("a") as file:
            for request, answer, whole in zip(requests, answers, ended, strict=True):
                text = tokenizer.decode(answer[:-1]).strip() if whole else ""  # what was cut short is no story
                file.write(json.dumps({"prompt": request, "text": text}, ensure_ascii=False) + "\n")
                kept += bool(text)
        tokens += sum(map(len, answers))
        rate = tokens / (time.perf_counter() - begun)
        log.info("%d of %d · %d ended by themselves · %.0f tokens/s", numbers.stop, options.count, kept, rate)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
