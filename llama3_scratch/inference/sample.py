"""From logits to the next token: a list of filters over the logits, then the largest or a draw.

A filter takes (logits_V, the tokens so far) and returns logits_V, with -inf for what may not come. A grammar or a
penalty of one's own is one more function in the list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llama3_scratch.errors import Llama3Error, UsageError

REPEAT_LAST_N = 64  # tokens that a repeat penalty looks back at, unless told otherwise: llama.cpp's
_TOP_P_TOKENS = 256  # tokens among which those that hold p are looked for first

Filter = Callable[[Tensor, Sequence[int]], Tensor]
Sampler = Callable[[Tensor, Sequence[int]], int]


def penalise_repeats(penalty: float, last_n: int = REPEAT_LAST_N) -> Filter:
    """Divide the positive logits of the tokens among the last `last_n`, prompt included, by `penalty`; multiply the
    negative ones (arXiv:1909.05858 §4.1). −1 looks at all of them: of a long text that is nearly every common word.
    """

    def filter(logits_V: Tensor, seen: Sequence[int]) -> Tensor:
        recent = seen if last_n < 0 else seen[max(0, len(seen) - last_n) :]
        ids = torch.tensor(sorted(set(recent)), dtype=torch.long, device=logits_V.device)
        values = logits_V[ids]
        return logits_V.index_copy(0, ids, torch.where(values > 0, values / penalty, values * penalty))

    return filter


def at_temperature(value: float) -> Filter:
    """Divide the logits by `value` > 0: below 1 sharpens the distribution, above 1 flattens it."""
    return lambda logits_V, seen: logits_V / value


def keep_top_k(k: int) -> Filter:
    """Keep the k largest logits, and whatever equals the smallest of them."""

    def filter(logits_V: Tensor, seen: Sequence[int]) -> Tensor:
        smallest = logits_V.topk(min(k, len(logits_V))).values[-1]
        return logits_V.masked_fill(logits_V < smallest, -math.inf)

    return filter


def keep_top_p(p: float) -> Filter:
    """Keep the most probable tokens until they hold p of the probability; at least one (arXiv:1904.09751)."""

    def kept(probabilities_V: Tensor) -> int:
        before_V = probabilities_V.cumsum(-1) - probabilities_V  # what the more probable ones hold already
        return int((before_V < p).sum())

    def filter(logits_V: Tensor, seen: Sequence[int]) -> Tensor:
        probabilities_V = logits_V.softmax(-1)
        # Nearly always a few tokens hold p, and all needn't be sorted, unless the last of the few has equals.
        few_V, ids_V = logits_V.topk(min(_TOP_P_TOKENS, len(logits_V)))
        n = kept(probabilities_V[ids_V])
        if n == len(few_V) or few_V[n - 1] == few_V[n]:
            ids_V = logits_V.argsort(descending=True, stable=True)
            n = kept(probabilities_V[ids_V])
        return torch.full_like(logits_V, -math.inf).index_copy(0, ids_V[:n], logits_V[ids_V[:n]])

    return filter


def keep_min_p(share: float) -> Filter:
    """Keep tokens at least `share` as probable as the most probable one (arXiv:2407.01082)."""

    def filter(logits_V: Tensor, seen: Sequence[int]) -> Tensor:
        return logits_V.masked_fill(logits_V < logits_V.max() + math.log(share), -math.inf)

    return filter


def greedy(filters: Sequence[Filter] = ()) -> Sampler:
    """Always the largest logit; the smaller id where two are equal."""
    # numpy's argmax is several times faster than torch's here, and promises the first of equals
    return lambda logits_V, seen: int(_filtered(logits_V, seen, filters).cpu().numpy().argmax())


def draw(filters: Sequence[Filter], seed: int) -> Sampler:
    """A token drawn from the softmax of what the filters leave, by a generator of its own: the same seed, the same
    tokens, whatever else runs in the batch."""
    generator = torch.Generator().manual_seed(seed)

    def sample(logits_V: Tensor, seen: Sequence[int]) -> int:
        probabilities_V = _filtered(logits_V, seen, filters).softmax(-1).cpu()
        below_V = probabilities_V.double().cumsum(-1)  # a point on this line falls into a token's piece of it
        point = below_V[-1] * torch.rand(1, dtype=torch.float64, generator=generator)
        token = int(torch.searchsorted(below_V, point, right=True))
        return token if token < len(below_V) else int(below_V.argmax())  # rounded up to the line's very end

    return sample


def sampler(
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repeat_penalty: float = 1.0,
    repeat_last_n: int = REPEAT_LAST_N,
    seed: int = 0,
) -> Sampler:
    """The sampler that the usual options mean; temperature 0 is greedy, and what is off costs nothing.

    The order is Hugging Face's: repeat penalty, temperature, top-k, top-p, min-p.
    """
    penalties = [penalise_repeats(repeat_penalty, repeat_last_n)] if repeat_penalty != 1 and repeat_last_n else []
    if temperature == 0:
        return greedy(penalties)
    filters = [*penalties, at_temperature(temperature)]
    if top_k > 0:
        filters.append(keep_top_k(top_k))
    if top_p < 1:
        filters.append(keep_top_p(top_p))
    if min_p > 0:
        filters.append(keep_min_p(min_p))
    return draw(filters, seed)


class NonFiniteError(Llama3Error):
    """The model's own logits hold a NaN or an infinity: there is no next token."""


def _filtered(logits_V: Tensor, seen: Sequence[int], filters: Sequence[Filter]) -> Tensor:
    extremes = torch.aminmax(logits_V)  # NaN, if any, is both; several times faster than isfinite
    if not all(map(math.isfinite, (extremes.min.item(), extremes.max.item()))):
        raise NonFiniteError("the logits hold NaN or infinite values")
    if not filters:
        return logits_V
    for filter in filters:
        logits_V = filter(logits_V, seen)
    if not torch.isfinite(logits_V.max()):
        raise UsageError("the filters leave no token or an infinite logit; take options nearer to 1, or other filters")
    return logits_V
