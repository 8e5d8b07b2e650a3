"""From logits to the next token: a list of filters over the logits, then the largest or a draw.

A filter takes (logits_V, the tokens so far) and returns logits_V, with -inf for what may not come. A grammar or a
penalty of one's own is one more function in the list.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from llama3_scratch.errors import Llama3Error, UsageError
from llama3_scratch.inference.choices import REPEAT_LAST_N
from llama3_scratch.native import sampling

_CANDIDATES = 256  # tokens among which those that hold p are looked for first

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


def penalise_what_was_said(presence: float, frequency: float, prompt_tokens: int = 0) -> Filter:
    """Take `presence` off the logit of every token of the answer, and `frequency` for each time that it was said:
    OpenAI's penalties. The first `prompt_tokens` tokens aren't the answer's."""

    def filter(logits_V: Tensor, seen: Sequence[int]) -> Tensor:
        counts = Counter(seen[prompt_tokens:])
        ids = torch.tensor(list(counts), dtype=torch.long, device=logits_V.device)
        times = torch.tensor(list(counts.values()), dtype=logits_V.dtype, device=logits_V.device)
        return logits_V.index_add(0, ids, -presence - frequency * times)

    return filter


def add_bias(biases: Iterable[tuple[int, float]]) -> Filter:
    """Add to the logits of these ids. Raises UsageError, with the first logits, for an id that there isn't."""
    ids, values = zip(*biases, strict=True)

    def filter(logits_V: Tensor, seen: Sequence[int]) -> Tensor:
        if max(ids) >= len(logits_V):
            raise UsageError(f"`logit_bias`: token {max(ids)}, the model's vocabulary has {len(logits_V)}")
        biases_N = torch.tensor(values, dtype=logits_V.dtype, device=logits_V.device)
        return logits_V.index_add(0, torch.tensor(ids, device=logits_V.device), biases_N)

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
        top_V, ids_V = logits_V.topk(min(_CANDIDATES, len(logits_V)))
        n = kept(probabilities_V[ids_V])
        if n == len(top_V) or top_V[n - 1] == top_V[n]:
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
        return _at(torch.rand(1, dtype=torch.float64, generator=generator), _filtered(logits_V, seen, filters))

    return sample


def _at(point: Tensor, logits_V: Tensor) -> int:
    """The token whose piece of the line of all probabilities the point of 0 … 1 falls into."""
    below_V = logits_V.softmax(-1).cpu().double().cumsum(-1)
    token = int(torch.searchsorted(below_V, below_V[-1] * point, right=True))
    return token if token < len(below_V) else int(below_V.argmax())  # rounded up to the line's very end


def draw_quickly(
    penalties: Sequence[Filter], *, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> Sampler:
    """`draw` by the usual filters behind `penalties`, in C where that can be: the same tokens, without sorting."""
    filters = [*penalties, at_temperature(temperature)]
    if top_k > 0:
        filters.append(keep_top_k(top_k))
    if top_p < 1:
        filters.append(keep_top_p(top_p))
    if min_p > 0:
        filters.append(keep_min_p(min_p))
    generator = torch.Generator().manual_seed(seed)

    def sample(logits_V: Tensor, seen: Sequence[int]) -> int:
        point = torch.rand(1, dtype=torch.float64, generator=generator)
        penalised_V = logits_V
        for penalty in penalties:
            penalised_V = penalty(penalised_V, seen)
        token = sampling.sample(
            penalised_V, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, point=float(point)
        )
        return _at(point, _filtered(logits_V, seen, filters)) if token is None else token

    return sample


def sampler(
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repeat_penalty: float = 1.0,
    repeat_last_n: int = REPEAT_LAST_N,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Iterable[tuple[int, float]] = (),
    prompt_tokens: int = 0,
    seed: int = 0,
) -> Sampler:
    """The sampler that the usual options mean; temperature 0 is greedy, and what is off costs nothing.

    The order is Hugging Face's: penalties, temperature, top-k, top-p, min-p. Some penalties look at the answer alone,
    which begins behind `prompt_tokens` tokens.
    """
    penalties = [penalise_repeats(repeat_penalty, repeat_last_n)] if repeat_penalty != 1 and repeat_last_n else []
    if presence_penalty or frequency_penalty:
        penalties.append(penalise_what_was_said(presence_penalty, frequency_penalty, prompt_tokens))
    if biases := tuple(logit_bias):
        penalties.append(add_bias(biases))
    if temperature == 0:
        return greedy(penalties)
    return draw_quickly(penalties, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)


def logprobs(logits_V: Tensor, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
    """A token's natural log-probability before any filter, and those of the `n_top` likeliest ids; of equals the
    smaller id stands first."""
    values_V = logits_V.float().cpu()
    total = float(values_V.logsumexp(-1))
    n = min(n_top, len(values_V))
    if not n:
        return float(values_V[token]) - total, []
    least = values_V.topk(n).values[-1]
    ids = (values_V >= least).nonzero()[:, 0].tolist()  # more than n where some are equal
    likeliest = sorted(ids, key=lambda id: (-float(values_V[id]), id))[:n]
    return float(values_V[token]) - total, [(id, float(values_V[id]) - total) for id in likeliest]


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
