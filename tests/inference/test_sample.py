"""The sampler's filters against brute force, its draws against the distribution that they should follow."""

from __future__ import annotations

import math
import random

import pytest
import torch

from llama3_scratch import chat, generate
from llama3_scratch.errors import UsageError
from llama3_scratch.inference import choices
from llama3_scratch.inference.sample import (
    REPEAT_LAST_N,
    NonFiniteError,
    at_temperature,
    draw,
    greedy,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    logprobs,
    penalise_repeats,
    penalise_what_was_said,
    sampler,
)
from llama3_scratch.native import kernels


def logits(seed: int, size: int = 50) -> torch.Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def kept(filtered: torch.Tensor) -> set[int]:
    return {i for i, value in enumerate(filtered.tolist()) if value > -math.inf}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [1, 2, 7, 50, 999])
def test_top_k_keeps_the_k_largest(seed, k):
    values = logits(seed)
    order = sorted(range(50), key=lambda i: -values[i].item())
    assert kept(keep_top_k(k)(values, [])) == set(order[:k])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_holds_p(seed, p):
    values = logits(seed)
    probabilities = values.double().softmax(-1).tolist()
    wanted, held = set(), 0.0
    for i in sorted(range(50), key=lambda i: -probabilities[i]):
        if held >= p:
            break
        wanted.add(i)
        held += probabilities[i]
    assert kept(keep_top_p(p)(values, [])) == wanted
    assert wanted, "F127: at least one candidate is left"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.001, 0.1, 0.9, 1.0])
def test_min_p_keeps_what_is_a_share_as_likely(seed, share):
    values = logits(seed)
    probabilities = values.double().softmax(-1)
    wanted = {i for i in range(50) if probabilities[i] >= share * probabilities.max() * (1 - 1e-6)}
    assert kept(keep_min_p(share)(values, [])) == wanted


def test_repeat_penalty_lowers_seen_tokens_of_either_sign_once():
    values = torch.tensor([2.0, -2.0, 1.0, 0.0])
    assert penalise_repeats(2.0)(values, [0, 1, 1]).tolist() == [1.0, -4.0, 1.0, 0.0]
    assert values.tolist() == [2.0, -2.0, 1.0, 0.0], "the model's own logits stay as they are"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("last_n", [-1, 0, 1, 3, 64, 999])
@pytest.mark.parametrize("n_seen", [0, 2, 100])
def test_repeat_penalty_looks_back_as_far_as_it_is_told(seed, last_n, n_seen):
    values = logits(seed)
    seen = torch.randint(50, (n_seen,), generator=torch.Generator().manual_seed(seed)).tolist()
    recent = seen if last_n == -1 else [token for i, token in enumerate(seen) if i >= len(seen) - last_n]
    wanted = [
        value if token not in recent else value / 1.3 if value > 0 else value * 1.3
        for token, value in enumerate(values.double().tolist())
    ]
    found = penalise_repeats(1.3, last_n)(values, seen)
    torch.testing.assert_close(found.double(), torch.tensor(wanted, dtype=torch.double))
    sample = sampler(repeat_penalty=1.3, repeat_last_n=last_n)
    assert sample(values, seen) == max(range(50), key=lambda token: found[token].item())


def test_the_window_of_the_repeat_penalty_is_llama_cpps_unless_told_otherwise():
    values = torch.tensor([2.0, 1.9, 1.8])
    assert sampler(repeat_penalty=2.0)(values, [0, *[1] * 63]) == 2
    assert sampler(repeat_penalty=2.0)(values, [0, *[1] * 64]) == 0
    assert generate.make_parser().parse_args(["hi"]).repeat_last_n == chat.make_parser().parse_args([]).repeat_last_n
    assert choices.REPEAT_LAST_N == REPEAT_LAST_N == 64


def test_f123_temperature_zero_is_greedy_and_ties_go_to_the_smaller_id():
    values = torch.tensor([0.0, 5.0, 5.0, 1.0])
    assert sampler(temperature=0, top_p=0.1, seed=3)(values, []) == 1
    assert sampler(temperature=0, repeat_penalty=2.0)(values, [1]) == 2


def test_draws_follow_the_filtered_distribution():
    values = logits(0, 8)
    draw = sampler(temperature=1.5, top_p=0.95, seed=7)
    filtered = keep_top_p(0.95)(at_temperature(1.5)(values, []), []).softmax(-1).double()
    n = 20_000
    counts = torch.zeros(8, dtype=torch.double)
    for _ in range(n):
        counts[draw(values, [])] += 1
    live = filtered > 0
    assert counts[~live].sum() == 0
    chi_square = ((counts - n * filtered)[live] ** 2 / (n * filtered)[live]).sum()
    assert chi_square < 26, "0.999 quantile at 7 degrees of freedom is 24.3"


def test_same_seed_same_draws_and_another_seed_others():
    values = logits(1, 1000)
    first, again, other = (sampler(temperature=2.0, seed=seed) for seed in (5, 5, 6))
    draws = [[draw(values, []) for _ in range(50)] for draw in (first, again, other)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_no_number_raises_instead_of_choosing(value):
    values = logits(2)
    values[3] = value
    for sample in (greedy(), sampler(temperature=1.0, seed=0)):
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            sample(values, [])


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e-45}, {"repeat_penalty": 1e-45}, {"temperature": 1.0, "repeat_penalty": 1e-45}],
    ids=str,
)
def test_f122_options_that_leave_no_finite_logit_are_refused(options):
    with pytest.raises(UsageError, match="nearer to 1"):
        sampler(seed=0, **options)(torch.tensor([3.0, 1.0, -2.0, 0.0]), [0, 1])


def test_f127_filters_that_leave_no_token_are_refused():
    for make in (greedy, lambda filters: draw(filters, 0)):
        with pytest.raises(UsageError, match="leave no token"):
            make([lambda logits_V, seen: torch.full_like(logits_V, -math.inf)])(logits(2), [])


def plain(temperature, top_k, top_p, min_p, seed):
    """The filters one by one, as torch has them."""
    filters = [at_temperature(temperature)]
    filters += [keep_top_k(top_k)] if top_k else []
    filters += [keep_top_p(top_p)] if top_p < 1 else []
    filters += [keep_min_p(min_p)] if min_p else []
    return draw(filters, seed)


KINDS = {
    "flat": lambda x: x * 0.01,
    "ordinary": lambda x: x * 3,
    "peaked": lambda x: x * 12,
    "with equals": lambda x: (x * 2).round(),
    "all alike": lambda x: x * 0,
}


@pytest.mark.skipif(kernels.library() is None, reason="the kernels weren't built: no C compiler")
@pytest.mark.parametrize("level", kernels.LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_token_drawn_in_c_is_the_one_drawn_by_filters(kind, level):
    if kernels.choose(level) is None:
        kernels.choose()
        pytest.skip(f"this processor has no {level}")
    generator = torch.Generator().manual_seed(3)
    picked = random.Random(5)
    try:
        for seed in range(250):
            logits_V = KINDS[kind](torch.randn(picked.choice([1, 2, 7, 63, 64, 1000, 5000]), generator=generator))
            options = {
                "temperature": picked.choice([0.1, 0.7, 1.0, 1.5]),
                "top_k": picked.choice([0, 0, 1, 5, 40, 10**6]),
                # Where a share of equal tokens is just p, rounding decides: such a p isn't asked for.
                "top_p": picked.choice([1.0, 0.947, 0.513, 0.0123]),
                "min_p": picked.choice([0.0, 0.0, 0.05, 0.5]),
                "seed": seed,
            }
            ours, filters = sampler(**options), plain(**options)
            assert [ours(logits_V, []) for _ in range(3)] == [filters(logits_V, []) for _ in range(3)], options
    finally:
        kernels.choose()


def test_a_bad_logit_is_an_error_in_c_too():
    for bad in (math.nan, math.inf, -math.inf):
        logits_V = torch.zeros(100)
        logits_V[50] = bad
        with pytest.raises(NonFiniteError):
            sampler(temperature=1.0, top_p=0.9)(logits_V, [])


def test_presence_and_frequency_penalties_are_openais_and_leave_the_prompt_alone():
    seen = [1, 1, 1, 2, 3, 3]
    got_V = penalise_what_was_said(0.5, 0.25, prompt_tokens=3)(torch.zeros(5), seen)
    assert got_V.tolist() == [0, 0, -0.75, -1.0, 0]
    assert sampler(presence_penalty=1.0, prompt_tokens=3)(torch.tensor([0.0, 0.5, 0.9]), [2, 2, 2, 2, 1]) == 0
    assert sampler(presence_penalty=1.0, prompt_tokens=5)(torch.tensor([0.0, 0.5, 0.9]), [2, 2, 2, 2, 1]) == 2


def test_a_bias_bans_and_chooses():
    logits_V = torch.tensor([1.0, 9.0, 3.0])
    assert sampler(logit_bias=[(1, -100.0)])(logits_V, []) == 2
    assert sampler(logit_bias={0: 100.0}.items(), temperature=1.0)(logits_V, []) == 0
    with pytest.raises(UsageError, match="`logit_bias`: token 3, the model's vocabulary has 3"):
        sampler(logit_bias=[(3, 1.0)])(logits_V, [])


def test_logprobs_are_those_of_the_softmax_and_equals_come_by_id():
    logits_V = torch.tensor([2.0, 1.0, 2.0, 0.0, 2.0])
    wanted_V = logits_V.log_softmax(-1)
    chosen, top = logprobs(logits_V, 3, 4)
    assert chosen == pytest.approx(float(wanted_V[3]))
    assert [id for id, _ in top] == [0, 2, 4, 1]
    assert [value for _, value in top] == pytest.approx([float(wanted_V[id]) for id, _ in top])
    assert logprobs(logits_V, 0, 0)[1] == [] and len(logprobs(logits_V, 0, 20)[1]) == 5
