"""From what is asked to the model's tokens, as the model and its pages know them."""

from __future__ import annotations

from collections.abc import Sequence

from llama3_scratch.serving.errors import ApiError
from llama3_scratch.serving.service import Service
from llama3_scratch.text.dialog import encode_dialog
from llama3_scratch.text.tool_prompts import Message, Tool


async def chat_tokens(service: Service, messages: Sequence[Message], tools: Sequence[Tool], salt: str) -> list[int]:
    """The tokens behind which the assistant goes on: with an answer of its own, or with the last message if that is
    its."""
    tokenizer, last = service.tokenizer, messages[-1]
    if tokenizer.chat_format is None:
        raise ApiError(400, f"{service.name} completes text and doesn't chat; ask /v1/completions", param="model")
    continues = last["role"] == "assistant" and not last.get("tool_calls")

    def encode() -> list[int]:
        return encode_dialog(messages, tokenizer, tools=tools, date=service.date, continue_last=continues)

    return service.said_before.restore(await service.apart(encode), salt)


async def text_tokens(service: Service, prompt: str | tuple[int, ...], *, bos: bool | None = None) -> list[int]:
    """The tokens of a text that is gone on with, or that are given; BOS before a text as the model has it unless
    `bos` says whether."""
    if not isinstance(prompt, str):
        return list(prompt)
    tokenizer = service.tokenizer
    begins = tokenizer.add_bos if bos is None else bos and tokenizer.bos_id is not None
    ids = await service.apart(lambda: tokenizer.encode(prompt, bos=begins, eos=False))
    if not ids and bos is None and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id]
    return ids


def check_ids(service: Service, ids: Sequence[int], param: str) -> None:
    """Raises ApiError 400 for an id that the model's vocabulary hasn't."""
    vocabulary = service.checkpoint.config.vocab_size
    bad = next((id for id in ids if not 0 <= id < vocabulary), None)
    if bad is not None:
        raise ApiError(400, f"{param}: token {bad}, the vocabulary has 0 to {vocabulary - 1}", param=param)
