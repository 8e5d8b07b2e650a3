"""`POST /v1/images/generations`: pictures, for which there is no model here."""

from __future__ import annotations

from starlette.responses import Response

from llama3_scratch.serving.endpoint import Call
from llama3_scratch.serving.errors import ApiError


async def images(call: Call) -> Response:
    """The page asks only where a served model's `meta` says that it makes pictures."""
    await call.json()
    raise ApiError(404, "no model that makes pictures is served here", param="model", code="model_not_found")
