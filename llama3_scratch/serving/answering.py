"""One engine's request for each answer that is wanted: its sampler, its salt, its adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import llguidance
import torch
from torch import Tensor

from llama3_scratch.inference.factories import make_sampler
from llama3_scratch.inference.sample import Filter, Sampler
from llama3_scratch.serving.answer import Answer
from llama3_scratch.serving.errors import ApiError
from llama3_scratch.serving.grammar import follow
from llama3_scratch.serving.requests import Sampled
from llama3_scratch.serving.service import Service


def make_answers(
    service: Service,
    prompts: Sequence[list[int]],
    asked: Sampled,
    *,
    adapter: str | None,
    salt: str,
    grammar: llguidance.LLMatcher | None = None,
) -> list[Answer]:
    """`asked.n` answers to each prompt, numbered on through all of them. Raises ApiError for a prompt that is too long
    and for a bias of a token that isn't there.

    Choice i of a prompt draws by seed + i, whatever else is answered.
    """
    answers: list[Answer] = []
    sampling = asked.sampling.seeded()
    stop_tokens = service.tokenizer.stop_tokens
    vocabulary = service.checkpoint.config.vocab_size
    if bad := [id for id, _ in asked.logit_bias if id >= vocabulary]:
        raise ApiError(400, f"logit_bias: token {bad[0]}, the vocabulary has 0 to {vocabulary - 1}", param="logit_bias")
    for prompt in prompts:
        limit = service.max_tokens(prompt, asked.max_tokens)
        for choice in range(asked.n):
            filters = []
            if asked.logit_bias:
                filters.append(add_to(asked.logit_bias))
            if any(asked.penalties):
                filters.append(penalise_said(*asked.penalties, len(prompt)))
            if asked.ignore_eos:
                filters.append(without(stop_tokens))
            if grammar is not None:
                filters.append(follow(grammar, len(prompt)))
            sampler = make_sampler(replace(sampling, seed=(sampling.seed + choice) % 2**64))
            answers.append(
                Answer(
                    len(answers),
                    prompt,
                    behind(filters, sampler) if filters else sampler,
                    service.tokenizer,
                    max_tokens=limit,
                    stop_tokens=stop_tokens,
                    stop=sampling.stop,
                    logprobs=asked.logprobs,
                    salt=salt,
                    adapter=adapter,
                )
            )
    return answers


def behind(filters: Sequence[Filter], sampler: Sampler) -> Sampler:
    """The sampler behind filters that come before its own."""

    def sample(logits_V: Tensor, seen: Sequence[int]) -> int:
        for filter in filters:
            logits_V = filter(logits_V, seen)
        return sampler(logits_V, seen)

    return sample


def without(tokens: Sequence[int]) -> Filter:
    """All tokens but these. The least finite number stands for what can't come: an infinity is a fault of the model."""
    ids = torch.tensor(tokens)
    return lambda logits_V, seen: logits_V.index_fill(0, ids.to(logits_V.device), torch.finfo(logits_V.dtype).min)


def add_to(biases: Sequence[tuple[int, float]]) -> Filter:
    """Add to the logits of tokens."""
    ids, values = torch.tensor([id for id, _ in biases]), torch.tensor([value for _, value in biases])
    return lambda logits_V, seen: logits_V.index_add(0, ids.to(logits_V.device), values.to(logits_V))


def penalise_said(presence: float, frequency: float, prompt_tokens: int) -> Filter:
    """Take `presence` off the logit of each token that the answer has, and `frequency` for each time that it has it:
    OpenAI's two penalties, to which a prompt of so many tokens doesn't count."""
    counts: Counter[int] = Counter()
    counted = prompt_tokens

    def filter(logits_V: Tensor, seen: Sequence[int]) -> Tensor:
        nonlocal counted
        counts.update(seen[counted:])
        counted = len(seen)
        if not counts:
            return logits_V
        penalties = torch.tensor([presence + frequency * times for times in counts.values()])
        return logits_V.index_add(0, torch.tensor(list(counts)).to(logits_V.device), -penalties.to(logits_V))

    return filter
