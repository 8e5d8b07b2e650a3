"""`GET /health` and `/metrics`: whether the server answers, and how much it has to do."""

from __future__ import annotations

from starlette.responses import JSONResponse, PlainTextResponse, Response

from llama3_scratch.serving.endpoint import Call
from llama3_scratch.serving.errors import RETRY, ApiError


async def health(call: Call) -> Response:
    if call.service.stopping:
        raise ApiError(503, "the server is shutting down", headers=RETRY)
    return JSONResponse({"status": "ok"})


async def metrics(call: Call) -> Response:
    text = call.service.metrics.text(call.service.thread.stats)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")
