"""The log-probability of each of a prompt's tokens: what an echoed prompt comes with, and evaluations ask for."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import torch

from llama3_scratch.cache import Cache
from llama3_scratch.serving.answer import TokenLogprob, token_logprob
from llama3_scratch.serving.service import Service
from llama3_scratch.text.detokenizer import piece

CHUNK = 64  # tokens of a pass, all of whose logits are held at once; answers of others go on between two passes


async def prompt_logprobs(
    service: Service, prompt: Sequence[int], n_top: int, adapter: str | None
) -> list[TokenLogprob]:
    """Each token of the prompt beside the `n_top` likeliest in its place; the first has none."""
    model, tokenizer = service.models[adapter], service.tokenizer
    cache = Cache(len(prompt))
    found = [TokenLogprob("", piece(prompt[0], tokenizer), None, [])]

    @torch.inference_mode()
    def run(begin: int) -> None:
        chunk = prompt[begin : begin + CHUNK]
        logits_TV = model.logits(torch.tensor([chunk]), cache)[0]
        behind = prompt[begin + 1 : begin + 1 + len(chunk)]
        for token, logits_V in zip(behind, logits_TV, strict=False):
            found.append(token_logprob(token, logits_V, n_top, tokenizer))

    for begin in range(0, len(prompt), CHUNK):
        await service.between_steps(lambda begin=begin: run(begin))  # type: ignore[misc]
    decoder = codecs.getincrementaldecoder("utf-8")(
        "replace"
    )  # half a character belongs to the token that completes it
    for place, token in enumerate(found, 1):
        token.text = decoder.decode(token.data, final=place == len(found))
    return found
