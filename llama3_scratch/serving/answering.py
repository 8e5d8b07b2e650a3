"""One engine's request for each answer that is wanted: its sampler, its salt, its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llama3_scratch.inference.factories import make_sampler
from llama3_scratch.inference.grammar import Grammar
from llama3_scratch.inference.sample import Sampler
from llama3_scratch.serving.answer import Answer
from llama3_scratch.serving.errors import ApiError
from llama3_scratch.serving.requests import Sampled
from llama3_scratch.serving.service import Service


def make_answers(
    service: Service,
    prompts: Sequence[list[int]],
    asked: Sampled,
    *,
    adapter: str | None,
    salt: str,
    grammar: Grammar | None = None,
) -> list[Answer]:
    """`asked.n` answers to each prompt, numbered on through all of them. Raises ApiError for a prompt that is too long
    and for a bias of a token that isn't there.

    Choice i of a prompt draws by seed + i, whatever else is answered.
    """
    answers: list[Answer] = []
    sampling = asked.sampling.seeded()
    stop_tokens = service.tokenizer.stop_tokens
    vocabulary = service.checkpoint.config.vocab_size
    if bad := [id for id, _ in sampling.logit_bias if id >= vocabulary]:
        raise ApiError(400, f"logit_bias: token {bad[0]}, the vocabulary has 0 to {vocabulary - 1}", param="logit_bias")
    for prompt in prompts:
        limit = service.max_tokens(prompt, asked.max_tokens)
        for choice in range(asked.n):
            sampler = make_sampler(replace(sampling, seed=(sampling.seed + choice) % 2**64), len(prompt))
            if asked.ignore_eos:
                sampler = without(sampler, stop_tokens)
            if grammar is not None:
                sampler = grammar.constrain(sampler)
            answers.append(
                Answer(
                    len(answers),
                    prompt,
                    sampler,
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


def without(sampler: Sampler, tokens: Sequence[int]) -> Sampler:
    """The sampler among all tokens but these. The least finite number stands for what can't come: an infinity would be
    the model's fault."""
    ids = torch.tensor(tokens)

    def sample(logits_V: Tensor, seen: Sequence[int]) -> int:
        return sampler(logits_V.index_fill(0, ids.to(logits_V.device), torch.finfo(logits_V.dtype).min), seen)

    return sample
