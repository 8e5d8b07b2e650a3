"""How well a model knows a text: its surprise at each token, the likeliest answer, how far two models are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llama3_scratch.config import Config
from llama3_scratch.errors import Llama3Error, UsageError
from llama3_scratch.linear import embed
from llama3_scratch.model import decode, forward, unembed
from llama3_scratch.stored import Params
from llama3_scratch.text.tokenizer import Tokenizer


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
    """log p of the whole vocabulary behind each token: (tokens, V), in f32, on the params' device."""
    tokens_BT = torch.tensor([list(ids)], device=params["tok_embeddings.weight"].device)
    return forward(tokens_BT, params, config, dtype=torch.float32)[0].log_softmax(-1)


@dataclass(frozen=True)
class Surprisal:
    """Nats and bytes of a window's predicted tokens, and how many they are."""

    nats: float
    tokens: int
    bytes: int


def surprisal(window: Window, logprobs_TV: Tensor, tokenizer: Tokenizer) -> Surprisal:
    """What the scored tokens of a window cost: −Σ log p."""
    targets = torch.tensor(window.ids[-window.scored :], device=logprobs_TV.device)
    logprobs_T = logprobs_TV[-window.scored - 1 : -1].gather(1, targets[:, None])[:, 0]
    nats = -logprobs_T.cpu().double().sum().item()
    return Surprisal(nats, window.scored, len(tokenizer.decode_bytes(window.ids[-window.scored :])))


@dataclass(frozen=True)
class Asked:
    """A question as the model reads it: of each choice the ids of query and choice, how many of them are the choice's,
    and its bytes; `cut` tokens of the query were left out at its beginning, where the context is too short."""

    ids: list[list[int]]
    scored: list[int]
    bytes: list[int]
    cut: int


def ask(query: str, choices: Sequence[str], tokenizer: Tokenizer, context: int) -> Asked:
    """A question for a model that reads `context` tokens.

    As lm-evaluation-harness does it: a choice begins with a space, and its tokens are those of the whole text behind
    the query's own, at least one; what is too long is cut from the left. Raises TooLongError where a choice alone is.
    """
    asked = len(tokenizer.encode(query, bos=tokenizer.add_bos, eos=False))
    ids, scored, cut = [], [], 0
    for number, choice in enumerate(choices):
        whole = tokenizer.encode(f"{query} {choice}", bos=tokenizer.add_bos, eos=False)
        own = len(whole) - max(1, min(asked, len(whole) - 1))
        if own > context:
            raise TooLongError(f"choice {number} alone has {own} tokens, the model's context {context}")
        ids.append(whole[-context - 1 :])  # the last token is only predicted, never read
        scored.append(own)
        cut = max(cut, len(whole) - len(ids[-1]))
    return Asked(ids, scored, [len(choice.encode()) for choice in choices], cut)


class TooLongError(Llama3Error):
    """A text doesn't fit the model's context, and nothing of it can be left out."""


@dataclass(frozen=True)
class LikeliestAnswer:
    """The likeliest answer by the sum of its tokens' log p, and by that over its bytes."""

    plain: int
    by_byte: int


@torch.inference_mode()
def choose(asked: Asked, params: Params, config: Config) -> LikeliestAnswer:
    """Which of the choices the model finds likeliest behind the query."""
    longest = max(map(len, asked.ids)) - 1
    device = params["tok_embeddings.weight"].device
    padded_BT = torch.tensor([[*ids[:-1], *[0] * (longest + 1 - len(ids))] for ids in asked.ids], device=device)
    x_BTD = decode(embed(padded_BT, params, "tok_embeddings", dtype=torch.float32), params, config)
    sums = []
    for x_TD, ids, own in zip(x_BTD, asked.ids, asked.scored, strict=True):
        logits_TV = unembed(x_TD[None, len(ids) - 1 - own : len(ids) - 1], params)[0]
        sums.append(-F.cross_entropy(logits_TV, torch.tensor(ids[-own:], device=device), reduction="sum").item())
    by_byte = [total / n_bytes for total, n_bytes in zip(sums, asked.bytes, strict=True)]
    return LikeliestAnswer(sums.index(max(sums)), by_byte.index(max(by_byte)))


@dataclass(frozen=True)
class Divergence:
    """Of each predicted token: KL(one ‖ other) in nats, and whether both find the same one likeliest; on the CPU."""

    divergence_T: Tensor
    same_T: Tensor


def kl_divergence(window: Window, one_TV: Tensor, other_TV: Tensor) -> Divergence:
    """How far the second model's predictions of a window are from the first's, over the ids that both have: one may
    have padded its embedding further than the other."""
    V = min(one_TV.shape[-1], other_TV.shape[-1])
    one_TV, other_TV = (logprobs_TV[-window.scored - 1 : -1, :V].log_softmax(-1) for logprobs_TV in (one_TV, other_TV))
    parts_TV = one_TV.exp() * (one_TV - other_TV)
    if parts_TV.device.type == "mps":  # which has no f64
        parts_TV = parts_TV.cpu()
    return Divergence(parts_TV.double().sum(-1).cpu(), (one_TV.argmax(-1) == other_TV.argmax(-1)).cpu())
