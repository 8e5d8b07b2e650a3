"""`POST /v1/embeddings`: the mean of the last layer's outputs over a text's tokens, of length 1.

A model that was trained to go on with text has no better one without more training; for search, take a model that was
trained for that.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
from starlette.responses import JSONResponse, Response
from torch import Tensor

from llama3_scratch.cache import Cache
from llama3_scratch.serving.endpoint import Call
from llama3_scratch.serving.errors import ApiError, too_long
from llama3_scratch.serving.prompts import check_ids, text_tokens
from llama3_scratch.serving.requests import embedding_request
from llama3_scratch.serving.service import Service

CHUNK = 128  # tokens of a pass: answers of others go on between two of them


async def embeddings(call: Call) -> Response:
    service = call.service
    asked = embedding_request(await call.json())
    adapter = service.adapter(asked.model)
    width = service.checkpoint.config.dim
    if asked.dimensions is not None and asked.dimensions > width:
        raise ApiError(400, f"dimensions: this model's embeddings have {width}", param="dimensions")
    with service.place(1):
        if "" in asked.inputs:
            raise ApiError(400, "input: a text is empty", param="input")
        inputs = [await text_tokens(service, one) for one in asked.inputs]
        for ids in inputs:
            check_ids(service, ids, "input")
            if len(ids) > service.context:
                raise too_long(len(ids), service.context)
        data = []
        for index, ids in enumerate(inputs):
            mean_D = await embedding(service, ids, adapter)
            mean_D = torch.nn.functional.normalize(mean_D[: asked.dimensions], dim=0)
            data.append({"object": "embedding", "index": index, "embedding": _told(mean_D, asked.base64)})
    used = {"prompt_tokens": sum(map(len, inputs)), "total_tokens": sum(map(len, inputs))}
    call.told.prompt_tokens = used["prompt_tokens"]
    return JSONResponse({"object": "list", "data": data, "model": asked.model or service.name, "usage": used})


async def embedding(service: Service, ids: Sequence[int], adapter: str | None) -> Tensor:
    """The mean of what goes into the head, mean_D, in float32."""
    cache = Cache(len(ids))
    model = service.models[adapter]

    @torch.inference_mode()
    def run(begin: int) -> Tensor:
        x_BTD = model.hidden(torch.tensor([ids[begin : begin + CHUNK]]), cache)
        return x_BTD[0].float().sum(0).cpu()

    sums = [
        await service.between_steps(lambda begin=begin: run(begin))  # type: ignore[misc]
        for begin in range(0, len(ids), CHUNK)
    ]
    return torch.stack(sums).sum(0) / len(ids)


def _told(mean_D: Tensor, as_base64: bool) -> Any:
    numbers = mean_D.numpy().astype("<f4")
    return base64.b64encode(numbers.tobytes()).decode() if as_base64 else numbers.tolist()
