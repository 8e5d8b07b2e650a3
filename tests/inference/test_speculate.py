"""Guesses change how soon a text is there, never the text."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch

from llama3_scratch import chat, generate
from llama3_scratch.cache import Cache
from llama3_scratch.inference.sample import sampler
from llama3_scratch.inference.speculate import DraftModel, Drafts, lookup
from llama3_scratch.model import forward
from tests import tiny
from tests.batches import stream_all
from tests.compare import check

# In f64: a pass over several tokens and one over a single token round differently, and two logits may be that near.
PARAMS = {name: weight.double() for name, weight in tiny.params().items()}
PROMPT = tiny.tokens(1, 12)[0].tolist()
N = 40


def run(prompt=PROMPT, *, drafts=None, n=N, **options):
    """(tokens, the last finish_reason) and the logits."""
    sampling = options.pop("sampling", {})
    more = {} if drafts is None else {"drafts": drafts}
    steps = stream_all(
        [prompt],
        PARAMS,
        tiny.CONFIG,
        samplers=[sampler(**sampling)],
        max_tokens=n,
        dtype=torch.float64,
        **more,
        **options,
    )
    found = list(steps)
    return [step.token for step in found], found[-1].finish_reason, torch.stack([step.logits_V for step in found])


def eager(propose, **more):
    """Guesses that are made at every pass: a clock at which nothing ever takes time."""
    drafts = Drafts(propose, clock=lambda: 0.0, **more)
    assert drafts.propose([], 0) == [], "at the first pass nothing is drafted"
    return drafts


@functools.cache
def greedy():
    """What comes without drafts."""
    return run()


def oracle(right: int):
    """Proposes what greedy sampling says, of it the first `right` tokens, and then something else."""
    full = [*PROMPT, *greedy()[0]]

    def propose(seen, most):
        truth = full[len(seen) : len(seen) + most]
        return [token if i < right else (token + 1) % tiny.CONFIG.vocab_size for i, token in enumerate(truth)]

    return propose


@pytest.mark.parametrize("right", [0, 1, 3, 99])
@pytest.mark.parametrize("most", [1, 5, 15])
def test_greedy_text_and_logits_are_those_without_drafts(right, most):
    tokens, reason, logits_NV = greedy()
    drafts = eager(oracle(right), max_tokens=most)
    drafted, its_reason, its_logits_NV = run(drafts=drafts)
    assert (drafted, its_reason) == (tokens, reason)
    check(its_logits_NV, logits_NV, 1e-9)
    if right == 0:
        assert drafts.accepted == 0 < drafts.proposed
    if right == 99:
        assert drafts.accepted == drafts.proposed >= N // 2 - 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("propose", ["lookup", "draft", "truth"])
def test_sampled_text_is_that_without_drafts_for_the_same_seed(seed, propose):
    prompt = (tiny.tokens(1, 6, seed=seed)[0].tolist()) * 3
    sampling = {
        "temperature": 0.7,
        "top_p": 0.9,
        "repeat_penalty": 1.1,
        "repeat_last_n": [64, 3][seed % 2],
        "seed": seed,
    }
    made = {
        "lookup": lookup,
        "draft": DraftModel(tiny.params(seed=1), tiny.CONFIG, dtype=torch.float32),
        "truth": DraftModel(PARAMS, tiny.CONFIG, dtype=torch.float64),
    }[propose]
    drafts = eager(made)
    assert run(prompt, sampling=sampling, drafts=drafts)[0] == run(prompt, sampling=sampling)[0]
    assert drafts.proposed


def test_the_distribution_is_the_models_own():
    """Chi-square over the first two tokens of 6,000 runs, of which the second is always drafted."""
    prompt, n = PROMPT[:3], 6000
    p_V = run(prompt, n=1)[2][0].softmax(-1)
    likely = p_V.topk(6).indices.tolist()
    second = {t: forward(torch.tensor([[*prompt, t]]), PARAMS, tiny.CONFIG)[0, -1].softmax(-1) for t in likely}
    draft = {t: int(second[t].argmax()) for t in likely}
    draws = sampler(temperature=1.0, seed=7)

    def chi_square(rule):
        seen: dict[tuple[int, int], int] = {}
        for _ in range(n):
            first = draws(p_V.log(), prompt)
            if first in draft:
                pair = first, rule(first)
                seen[pair] = seen.get(pair, 0) + 1
        total = cells = 0.0
        for t in likely:
            for u in second[t].topk(4).indices.tolist():
                wanted = n * float(p_V[t] * second[t][u])
                if wanted >= 5:
                    total += (seen.get((t, u), 0) - wanted) ** 2 / wanted
                    cells += 1
        return (total - cells) / math.sqrt(2 * cells)  # about a standard normal number

    # The rule of `stream`: the place's own draw is what comes, whatever was drafted.
    assert abs(chi_square(lambda first: draws(second[first].log(), [*prompt, first]))) < 4
    assert chi_square(lambda first: draft[first]) > 20, "to take every draft is another distribution"


def test_what_comes_is_the_places_own_draw():
    """Each of a hundred seeds gives the tokens with drafts that it gives without."""
    for seed in range(100):
        sampling = {"temperature": 1.5, "seed": seed}
        assert (
            run(PROMPT[:3], n=4, sampling=sampling, drafts=eager(oracle(2)))[0]
            == run(PROMPT[:3], n=4, sampling=sampling)[0]
        )


def test_the_cache_holds_what_was_said_and_nothing_else():
    cache, fresh = Cache(200), Cache(200)
    tokens, _, _ = run(drafts=eager(oracle(2)), cache=cache)
    said = [*PROMPT, *tokens]
    assert cache.length == len(said) - 1
    forward(torch.tensor([said[:-1]]), PARAMS, tiny.CONFIG, cache=fresh)
    for name, (keys, values) in fresh.layers.items():
        check(cache.layers[name][0].get(cache.length), keys.get(cache.length), 1e-9)
        check(cache.layers[name][1].get(cache.length), values.get(cache.length), 1e-9)


def test_whoever_leaves_amid_right_drafts_finds_a_true_cache():
    cache = Cache(200)
    drafts = eager(oracle(99))
    steps = stream_all(
        [PROMPT],
        PARAMS,
        tiny.CONFIG,
        samplers=[sampler()],
        max_tokens=N,
        dtype=torch.float64,
        cache=cache,
        drafts=drafts,
    )
    heard = [next(steps).token for _ in range(4)]
    assert drafts.proposed == 0, "within the first pass that had drafts"
    steps.close()
    assert cache.length == len(PROMPT) + len(heard) - 1


def test_a_stop_amid_right_drafts_is_the_end():
    tokens, _, _ = greedy()
    stops = run(drafts=eager(oracle(99)), stop=lambda row, token: token == tokens[3])
    assert stops[:2] == (tokens[: tokens.index(tokens[3]) + 1], "stop")


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_max_tokens_and_the_context_end_it_exactly(n):
    assert run(n=n, drafts=eager(oracle(99)))[:2] == (greedy()[0][:n], "length")
    tokens, reason, _ = run(drafts=eager(oracle(99)), max_seq_len=len(PROMPT) + n)
    assert (tokens, reason) == (greedy()[0][:n], "length")


def test_lookup_finds_the_latest_and_longest_place():
    assert lookup([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 3) == [4, 9, 2], "three tokens before two, however early"
    assert lookup([7, 2, 3, 4, 2, 3, 5, 6, 2, 3], 2) == [5, 6], "the later place"
    assert lookup([1, 5, 2, 5], 4) == [2, 5]
    assert lookup([1, 2, 3], 4) == [] and lookup([1], 4) == []


def test_the_draft_model_follows_what_was_really_said():
    draft = DraftModel(PARAMS, tiny.CONFIG, dtype=torch.float64)
    tokens = run()[0]
    assert draft(PROMPT, 5) == tokens[:5]
    assert draft([*PROMPT, *tokens[:2]], 3) == tokens[2:5]
    other = [*PROMPT, (tokens[0] + 1) % 67]
    ids = list(other)
    for _ in range(3):
        ids.append(int(forward(torch.tensor([ids]), PARAMS, tiny.CONFIG)[0, -1].argmax()))
    assert draft(other, 3) == ids[len(other) :]


def test_drafting_stops_where_it_loses_and_is_tried_again():
    drafts = Drafts(lambda seen, most: [0] * most, clock=lambda: 0.0)
    asked = []
    for _ in range(60):
        found = drafts.propose([1], 9)
        asked.append(bool(found))
        drafts.observe(len(found), 0, 1.5 if found else 1.0)
    # The first pass shows what one takes; the first drafts lose, and each time the pause is twice as long.
    assert asked == [False, True, *[False] * 16, True, *[False] * 32, True, *[False] * 8]


def test_drafting_goes_on_and_grows_where_it_gains():
    drafts = Drafts(lambda seen, most: [0] * most, max_tokens=8, clock=lambda: 0.0)
    drafts.propose([1], 9)
    drafts.observe(0, 0, 1.0)
    sizes = []
    for _ in range(6):
        sizes.append(len(drafts.propose([1], 99)))
        drafts.observe(sizes[-1], sizes[-1], 1.5)
    assert sizes == [4, 8, 8, 8, 8, 8]
    assert (drafts.proposed, drafts.accepted) == (sum(sizes), sum(sizes))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "chatml": str(tiny.folder(folder / "one")),
        "same": str(tiny.folder(folder / "two", seed=3)),
        "other": str(tiny.folder(folder / "three", "llama3")),
    }


@pytest.mark.parametrize("with_", ["lookup", "same"])
def test_generate_and_chat_take_it(models, capsys, monkeypatch, with_):
    argv = ["hi hi hi hi", "--model", models["chatml"], "--max-tokens", "30", "--json", "--dtype", "float64"]
    assert generate.main(argv) == 0
    plain = json.loads(capsys.readouterr().out)
    option = ["--speculate", models.get(with_, with_), "--draft-tokens", "3"]
    assert generate.main([*argv, *option]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == plain["tokens"]
    assert found["timings"].get("guesses", {"proposed": 1})["proposed"] >= 1
    lines = iter(["hi", "/stats"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
    assert chat.main(["--model", models["chatml"], "--max-tokens", "20", "--temperature", "0", *option]) == 0


BAD = {
    "two prompts": (["--prompt", "b", "--speculate", "lookup"], "--speculate goes with one prompt"),
    "trace": (["--trace", "--speculate", "lookup"], "without --trace"),
    "sliding": (["--sliding", "64", "--speculate", "lookup"], "without --sliding"),
    "alone": (["--draft-tokens", "3"], "--draft-tokens goes with --speculate"),
    "too many": (["--speculate", "lookup", "--draft-tokens", "16"], "--draft-tokens"),
}


@pytest.mark.parametrize(("argv", "says"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused(models, capsys, argv, says):
    assert generate.main(["hi", "--model", models["chatml"], *argv]) == 2
    assert says in capsys.readouterr().err


def test_a_draft_model_with_other_tokens_is_refused(models, capsys):
    assert generate.main(["hi", "--model", models["chatml"], "--speculate", models["other"]]) == 2
    assert "its tokenizer isn't that of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "Repeat after me: one two three, one two three, one two three,",
        pytest.param("Once upon a time", marks=pytest.mark.slow),
    ],
)
def test_smollm2_says_the_same(smollm2, capsys, text):
    argv = [text, "--model", str(smollm2), "--raw", "--max-tokens", "40", "--json"]
    tokens = []
    for option in ([], ["--speculate", "lookup"]):
        assert generate.main([*argv, *option]) == 0
        tokens.append(json.loads(capsys.readouterr().out)["tokens"])
    assert tokens[0] == tokens[1]
