"""How well a model knows a text: its surprise at each token, the likeliest answer, how far two models are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError
from llama3_scratch.linear import Params
from llama3_scratch.model import forward
from llama3_scratch.tokenizer import Tokenizer


@dataclass(frozen=True)
class Estimate:
    """A mean over parts of the data, and its standard error."""

    mean: float
    error: float


def estimate(values: Sequence[float], weights: Sequence[float] | None = None) -> Estimate:
    """The weighted mean of values, and the error that it has if they're drawn independently."""
    weights = [1.0] * len(values) if weights is None else weights
    total = sum(weights)
    mean = sum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    if len(values) < 2:
        return Estimate(mean, math.nan)
    squares = sum((weight * (value - mean)) ** 2 for value, weight in zip(values, weights, strict=True))
    return Estimate(mean, math.sqrt(squares * len(values) / (len(values) - 1)) / total)


@dataclass(frozen=True)
class Window:
    """Ids that are read at once; the last `scored` of them are predicted, the others are only there to be seen."""

    ids: list[int]
    scored: int


def windows(ids: Sequence[int], *, length: int, stride: int, first: int | None) -> Iterator[Window]:
    """Windows of up to `length` tokens, `stride` further each time, in which each token is predicted once.

    Each begins with the token `first` (BOS) if there is one. Without it the text's very first token can't be predicted.
    """
    begin = [] if first is None else [first]
    room = length - len(begin)
    if not 1 <= stride < length:
        raise UsageError(f"a stride is at least 1 and less than the window's {length} tokens, got {stride}")
    done = 0 if begin else 1
    end = min(len(ids), room)
    while done < end:
        yield Window([*begin, *ids[max(0, end - room) : end]], end - done)
        done, end = end, min(len(ids), end + stride)


@torch.inference_mode()
def log_probabilities(ids: Sequence[int], params: Params, config: Config) -> Tensor:
    """log p of the whole vocabulary behind each token: (tokens, V), in f32."""
    return forward(torch.tensor([list(ids)]), params, config, dtype=torch.float32)[0].log_softmax(-1)


@dataclass(frozen=True)
class Surprise:
    """Nats and bytes of a window's predicted tokens, and how many they are."""

    nats: float
    tokens: int
    bytes: int


def surprise(window: Window, logprobs_TV: Tensor, tokenizer: Tokenizer) -> Surprise:
    """What the scored tokens of a window cost: −Σ log p."""
    targets = torch.tensor(window.ids[-window.scored :])
    nats = F.nll_loss(logprobs_TV[-window.scored - 1 : -1].double(), targets, reduction="sum").item()
    return Surprise(nats, window.scored, len(tokenizer.decode_bytes(window.ids[-window.scored :])))


@dataclass(frozen=True)
class Choice:
    """The likeliest answer by the sum of its tokens' log p, and by that over its bytes."""

    plain: int
    by_byte: int


def choose(query: str, choices: Sequence[str], checkpoint: Checkpoint) -> Choice:
    """Which of the choices the model finds likeliest behind the query.

    As lm-evaluation-harness does it: a choice begins with a space, and its tokens are those of the whole text behind
    the query's own.
    """
    tokenizer, params, config = checkpoint.tokenizer, checkpoint.params, checkpoint.config
    assert tokenizer is not None
    asked = tokenizer.encode(query, bos=tokenizer.add_bos, eos=False)
    whole = [tokenizer.encode(f"{query} {choice}", bos=tokenizer.add_bos, eos=False) for choice in choices]
    longest = max(map(len, whole))
    if longest > config.max_seq_len:
        raise UsageError(f"a question and its answer have {longest} tokens, the model's context {config.max_seq_len}")
    padded_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in whole])
    with torch.inference_mode():
        logprobs_BTV = forward(padded_BT, params, config, dtype=torch.float32).log_softmax(-1)
    sums = []
    for row, ids in enumerate(whole):
        begin = max(1, min(len(asked), len(ids) - 1))
        targets = torch.tensor(ids[begin:])
        sums.append(logprobs_BTV[row, begin - 1 : len(ids) - 1].gather(1, targets[:, None]).sum().item())
    by_byte = [total / len(choice.encode()) for total, choice in zip(sums, choices, strict=True)]
    return Choice(sums.index(max(sums)), by_byte.index(max(by_byte)))


@dataclass(frozen=True)
class Apart:
    """Of each predicted token: KL(one ‖ other) in nats, and whether both find the same one likeliest."""

    divergence_T: Tensor
    same_T: Tensor


def apart(window: Window, one_TV: Tensor, other_TV: Tensor) -> Apart:
    """How far the second model's predictions of a window are from the first's."""
    one_TV, other_TV = (logprobs_TV[-window.scored - 1 : -1] for logprobs_TV in (one_TV, other_TV))
    divergence_T = (one_TV.exp() * (one_TV - other_TV)).double().sum(-1)
    return Apart(divergence_T, one_TV.argmax(-1) == other_TV.argmax(-1))
