"""`POST /tokenize`, `/detokenize`, `/apply-template`: what the model sees of a text or a chat, without running it."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from llama3_scratch.serving.endpoint import Call
from llama3_scratch.serving.errors import ApiError
from llama3_scratch.serving.prompts import chat_tokens, check_ids, text_tokens
from llama3_scratch.serving.requests import text_request, token_list
from llama3_scratch.text.detokenizer import piece, text_of


async def tokenize(call: Call) -> Response:
    service, asked = call.service, text_request(await call.json())
    service.adapter(asked.model)
    if asked.text is None:
        ids = await chat_tokens(service, asked.messages, asked.tools, call.caller.salt)
    else:
        ids = await text_tokens(service, asked.text, bos=asked.add_special)
    tokens: list[Any] = [_piece(service.tokenizer, id) for id in ids] if asked.with_pieces else ids
    return JSONResponse({"tokens": tokens, "count": len(ids), "max_model_len": service.context})


async def detokenize(call: Call) -> Response:
    tokens = token_list(await call.json())
    check_ids(call.service, tokens, "tokens")
    text = text_of(tokens, call.service.tokenizer)
    return JSONResponse({"content": text, "prompt": text})


async def apply_template(call: Call) -> Response:
    service, asked = call.service, text_request(await call.json())
    if asked.text is not None:
        raise ApiError(400, "messages: expected a chat, got none", param="messages")
    ids = await chat_tokens(service, asked.messages, asked.tools, call.caller.salt)
    return JSONResponse({"prompt": text_of(ids, service.tokenizer)})


def _piece(tokenizer: Any, id: int) -> dict[str, Any]:
    """A token beside its text, or its bytes where they're no text: llama.cpp's form."""
    data = piece(id, tokenizer)
    try:
        return {"id": id, "piece": data.decode()}
    except UnicodeDecodeError:
        return {"id": id, "piece": list(data)}
