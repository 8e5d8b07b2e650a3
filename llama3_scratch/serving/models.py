"""`GET /v1/models` and `/v1/models/{id}`: the model, and its adapters, which are models by their own names."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from llama3_scratch.serving.endpoint import Call
from llama3_scratch.serving.errors import model_not_found
from llama3_scratch.serving.service import Service


async def models(call: Call) -> Response:
    listed = [_model(call.service, name) for name in call.service.names]
    return JSONResponse({"object": "list", "data": listed})


async def model(call: Call) -> Response:
    name = call.request.path_params["id"]
    if name not in call.service.names:
        raise model_not_found(name, call.service.names)
    return JSONResponse(_model(call.service, name))


def _model(service: Service, name: str) -> dict[str, Any]:
    config = service.checkpoint.config
    about = {
        "n_ctx": service.context,
        "n_ctx_train": config.max_seq_len,
        "n_vocab": config.vocab_size,
        "n_embd": config.dim,
        "n_params": config.n_parameters,
        "chat": service.tokenizer.chat_format is not None,
    }
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "llama3_scratch",
        "meta": about,
        **({} if name == service.name else {"parent": service.name}),
    }
