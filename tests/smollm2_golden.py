"""What Hugging Face's transformers says with SmolLM2's weights: greedy ids and the likelihood of a text.

`python -m tests.smollm2_golden` writes the golden file anew; the slow tests make it again and compare.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from llama3_scratch.checkpoint.load import Checkpoint, load
from llama3_scratch.text.dialog import encode_dialog
from tests import tiny
from tests.hf_reference import hf_model

FILE = Path(__file__).parent / "golden" / "smollm2.json"
N_TOKENS = 64
WINDOW = 512

CHATS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain gravity to a child of five.",
    "List three prime numbers larger than ten.",
    "Translate 'good morning' into Spanish.",
    "Who are you?",
    "Give me a recipe for pancakes.",
    "What does a compiler do?",
    "Tell me a joke about cats.",
    "Summarise: The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Why is the sky blue?",
    "What is 12 times 12?",
]
TEXTS = [
    "Once upon a time",
    "the answer to the ultimate question of life, the universe, and everything is ",
    "def fibonacci(n):\n",
    "The three laws of thermodynamics are",
    "In 1969, Neil Armstrong",
    "1, 2, 4, 8, 16,",
    "Dear Sir or Madam,\n\n",
    "«Où est la gare ?» demanda-t-il. 你好 🙂",
]


def prompts(checkpoint: Checkpoint) -> list[list[int]]:
    """The twenty prompts: questions in the model's chat format, then texts to go on with."""
    tokenizer = checkpoint.tokenizer
    assert tokenizer is not None
    chats = [encode_dialog([{"role": "user", "content": text}], tokenizer) for text in CHATS]
    return chats + [tokenizer.encode(text, bos=tokenizer.add_bos, eos=False) for text in TEXTS]


def wikitext(checkpoint: Checkpoint, n_tokens: int) -> torch.Tensor:
    """The first tokens of WikiText-2's validation part, no BOS, in windows: tokens_BT."""
    assert checkpoint.tokenizer is not None
    text = tiny.data("wikitext2.txt").read_text(encoding="utf-8")[: 8 * n_tokens]
    return torch.tensor(checkpoint.tokenizer.encode(text, bos=False, eos=False)[:n_tokens]).view(-1, WINDOW)


def mean_nll(logits, tokens_BT: torch.Tensor) -> float:
    """Mean negative log-likelihood, natural, of each window's tokens but its first; `logits(tokens_1T)` is a model."""
    with torch.inference_mode():
        each = [cross_entropy(logits(window[None])[0, :-1].double(), window[1:]).item() for window in tokens_BT]
    return sum(each) / len(each)


def make(folder: Path, n_nll: int) -> dict[str, Any]:
    """The golden values, computed by transformers."""
    import transformers

    checkpoint = load(folder)
    model = hf_model(checkpoint.params, checkpoint.config)
    answers = []
    with torch.inference_mode():
        for prompt in prompts(checkpoint):
            ids, cache = torch.tensor([prompt]), None
            tokens: list[int] = []
            while len(tokens) < N_TOKENS:
                out = model(ids, past_key_values=cache, use_cache=True)
                tokens.append(int(out.logits[0, -1].argmax()))
                ids, cache = torch.tensor([tokens[-1:]]), out.past_key_values
            answers.append({"prompt_tokens": prompt, "tokens": tokens})
    nll = {str(n): mean_nll(lambda ids: model(ids).logits, wikitext(checkpoint, n)) for n in (1024, 8192) if n <= n_nll}
    return {"made_by": f"transformers {transformers.__version__}, float32", "mean_nll": nll, "answers": answers}


if __name__ == "__main__":
    from llama3_scratch.checkpoint.fetch import download

    FILE.parent.mkdir(exist_ok=True)
    golden = make(download("smollm2-135m"), 8192)
    lines = ",\n".join(json.dumps(answer) for answer in golden.pop("answers"))
    FILE.write_text(json.dumps(golden)[:-1] + f', "answers": [\n{lines}\n]}}\n')
