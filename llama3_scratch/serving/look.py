"""`POST /v1/look/lens`, `/attention` and `/trace`: why the model says what it says next; `GET /v1/look/pages`: the cache.

What is looked at is a chat, or a text, up to and without the token in question. One request is computed at a time, on a
thread beside the engine's. Only on loopback, or with a key: a pass of its own for each click is dear.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from starlette.responses import HTMLResponse, JSONResponse, Response
from torch import Tensor

from llama3_scratch.caches.paged import PAGE_SLOTS
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.requests import Request
from llama3_scratch.model import block, forward
from llama3_scratch.serving.body_fields import Fields
from llama3_scratch.serving.endpoint import Call
from llama3_scratch.serving.errors import RETRY, ApiError
from llama3_scratch.serving.prompts import chat_tokens, text_tokens
from llama3_scratch.text.detokenizer import legible, piece
from llama3_scratch.text.openai_messages import dialog_of
from llama3_scratch.trace import position
from llama3_scratch.trace.page import TracePage, needs
from llama3_scratch.trace.tracer import watch

MAX_TOKENS, MAX_TRACED = 2_048, 256  # of a text that is looked into; of one whose every step is kept
MAX_TRACES = 4  # pages that are kept for their readers, the latest
LENS_TOKENS = 6  # likeliest tokens after each layer
TRACE_PATH = "/trace"
# A trace holds its script and style within it, and its own policy lets only those run. In a sandbox it has no part in
# what the chat keeps in the browser.
TRACE_HEADERS = {
    "Content-Security-Policy": "sandbox allow-scripts; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Looked:
    """The tokens behind which we look, the model that reads them, and the token that was said there, if it's known."""

    tokens: list[int]
    model: FastForward
    said: int | None


class Look:
    """The endpoints, and what they share: the one place, and the traces that were made."""

    def __init__(self) -> None:
        self._busy = False
        self._traces: OrderedDict[str, str] = OrderedDict()
        self._numbers: dict[Request, int] = {}  # of the requests that hold pages: how the page calls them
        self._seen = 0

    async def lens(self, call: Call) -> Response:
        """The likeliest tokens after each layer, and the probability of the one that was said."""
        asked = await _looked(call, MAX_TOKENS)
        tokenizer = call.service.tokenizer

        def compute() -> dict[str, Any]:
            model = asked.model
            shares_LV = position.lens(asked.tokens, model.params, model.config, dtype=model.dtype)
            top = shares_LV.topk(min(LENS_TOKENS, shares_LV.shape[-1]))
            layers: list[dict[str, Any]] = []
            for layer, (ids, values) in enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True)):
                likeliest = [
                    {"token": legible(piece(id, tokenizer)), "probability": _short(value)}
                    for id, value in zip(ids, values, strict=True)
                ]
                layers.append({"layer": layer, "top": likeliest})
                if asked.said is not None:
                    share_V = shares_LV[layer]
                    layers[-1]["said"] = _short(share_V[asked.said].item())
                    layers[-1]["rank"] = int((share_V > share_V[asked.said]).sum()) + 1
            return {"n_tokens": len(asked.tokens), "layers": layers}

        return JSONResponse(await self._alone(compute))

    async def attention(self, call: Call) -> Response:
        """The tokens, and how much each head attends to each: layers × heads × tokens, a byte each, 255 · √weight."""
        asked = await _looked(call, MAX_TOKENS)
        tokenizer = call.service.tokenizer

        def compute() -> dict[str, Any]:
            model = asked.model
            weights_LHS = position.attention(asked.tokens, model.params, model.config, dtype=model.dtype)
            coded: Tensor = (weights_LHS.sqrt() * 255).round().to(torch.uint8).cpu()
            return {
                "tokens": [legible(piece(id, tokenizer)) for id in asked.tokens],
                "shape": list(coded.shape),
                "weights": base64.b64encode(coded.numpy().tobytes()).decode(),
            }

        return JSONResponse(await self._alone(compute))

    async def trace(self, call: Call) -> Response:
        """Every step of the pass, as the page that `generate` writes; where it lies is told, and it isn't listed."""
        asked = await _looked(call, MAX_TRACED)
        service, told = call.service, legible(b"".join(piece(id, call.service.tokenizer) for id in asked.tokens))

        def compute() -> str:
            model = asked.model
            page = TracePage(model.params, model.config, service.tokenizer, service.name)
            with torch.inference_mode(), watch(keep=needs, costs=True, on_step=page.take) as steps:
                tokens_BT = torch.tensor([asked.tokens], device=model.device)
                logits_BTV = forward(tokens_BT, model.params, model.config, block=block, dtype=model.dtype)
                steps.clear()
            said = int(logits_BTV[0, -1].argmax()) if asked.said is None else asked.said
            page.asked, page.answered, page.n_answered = told, legible(piece(said, service.tokenizer)), 1
            return page.html()

        html = await self._alone(compute)
        key = secrets.token_urlsafe(24)
        self._traces[key] = html
        if len(self._traces) > MAX_TRACES:
            self._traces.popitem(last=False)
        return JSONResponse({"url": f"{TRACE_PATH}?id={key}", "n_tokens": len(asked.tokens), "n_bytes": len(html)})

    async def traced(self, call: Call) -> Response:
        """A trace that was made: a browser opens it without a key, by a name that nobody can guess."""
        html = self._traces.get(call.request.query_params.get("id", ""))
        if html is None:
            raise ApiError(404, f"there is no such trace; the latest {MAX_TRACES} are kept while the server runs")
        return HTMLResponse(html, headers=TRACE_HEADERS)

    async def pages(self, call: Call) -> Response:
        """Which requests hold which pages of the cache: numbers, and nothing of what they say."""
        _allowed(call)
        service = call.service
        holders = await service.between_steps(service.thread.holders)
        live = dict.fromkeys(request for page in holders for request in page or ())
        self._numbers = {request: self._numbers.get(request) or self._next() for request in live}
        used = [
            {"page": page, "held_by": [self._numbers[request] for request in requests]}
            for page, requests in enumerate(holders)
            if requests is not None
        ]
        requests = [
            {
                "request": number,
                "prompt_tokens": len(request.prompt),
                "cached_tokens": request.cached_tokens,
                "yours": request.salt == call.caller.salt,
            }
            for request, number in self._numbers.items()
        ]
        return JSONResponse({"page_tokens": PAGE_SLOTS, "n_pages": len(holders), "pages": used, "requests": requests})

    def _next(self) -> int:
        self._seen += 1
        return self._seen

    async def _alone(self, function: Callable[[], T]) -> T:
        """Compute it on a thread beside the engine's. Raises ApiError 503 where another is being computed."""
        if self._busy:
            raise ApiError(503, "another position is being looked into; try again in a moment", headers=RETRY)
        self._busy = True
        try:
            return await asyncio.to_thread(function)
        finally:
            self._busy = False


def _allowed(call: Call) -> None:
    if not (call.service.choice.local or call.service.choice.api_keys):
        raise ApiError(403, "looking inside is for this machine, or for people with a key; start the server with one")


async def _looked(call: Call, most: int) -> Looked:
    _allowed(call)
    fields = Fields(await call.json())
    service, salt = call.service, call.caller.salt
    adapter = service.adapter(fields.text("model") or None)
    if (prompt := fields.text("prompt")) is not None:
        tokens = await text_tokens(service, prompt)
        if not tokens:
            raise fields.wrong("prompt", "a text")
    else:
        tokens = await chat_tokens(service, dialog_of(fields.get("messages")), (), salt)
    if len(tokens) > most:
        raise ApiError(
            400,
            f"the text has {len(tokens)} tokens up to here, at most {most} can be looked into",
            code="too_long_to_look",
            more={"n_prompt_tokens": len(tokens), "n_ctx": most},
        )
    return Looked(tokens, service.models[adapter], _said(fields, service.tokenizer.ranks))


def _said(fields: Fields, ranks: dict[bytes, int]) -> int | None:
    """The token whose bytes are given."""
    given = fields.get("said")
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(byte, int) and 0 <= byte <= 255 for byte in given):
        raise fields.wrong("said", "a token's bytes, numbers of 0 to 255")
    return ranks.get(bytes(given))


def _short(share: float) -> float:
    return float(f"{share:.5g}")
