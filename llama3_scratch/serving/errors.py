"""What a client is told when it isn't answered: OpenAI's error bodies, which its libraries turn into their types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from llama3_scratch.errors import Llama3Error, ResourceError, UsageError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """A request that ends with `status`. `param` is the field at fault, `more` goes into the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.object = {
            "message": message,
            "type": type or TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            "param": param,
            "code": code,
            **(more or {}),
        }

    @property
    def body(self) -> dict[str, Any]:
        return {"error": self.object}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers=self.headers)


def as_api_error(error: Exception) -> ApiError:
    """The error as a client is told it: what it can mend by another request is 400, what it can't says little."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(400, _in_words(str(error)), param=getattr(error, "param", None))
    if isinstance(error, ResourceError | MemoryError):
        return ApiError(503, "the server has no memory for this now; try again", headers=RETRY)
    if isinstance(error, Llama3Error):
        return ApiError(500, f"generating failed: {error}")
    return ApiError(500, "generating failed; the server's log says why")


RETRY = {"Retry-After": "1"}  # seconds; openai-python waits as long before it tries again


def model_not_found(name: str, served: list[str]) -> ApiError:
    return ApiError(
        404,
        f"there is no model {shown(name)} here; served are {', '.join(served)}",
        param="model",
        code="model_not_found",
    )


def too_long(tokens: int, limit: int) -> ApiError:
    """A prompt that leaves no room for an answer."""
    return ApiError(
        400,
        f"the prompt has {tokens} tokens, the context {limit}, of which one at least is for the answer; shorten it",
        type="exceed_context_size_error",
        code="context_length_exceeded",
        more={"n_prompt_tokens": tokens, "n_ctx": limit},
    )


def shown(value: Any) -> str:
    """A value of a request as a message shows it: as JSON, and not all of a long one."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _in_words(message: str) -> str:
    """A message of the library's, whose settings in backquotes a client doesn't have."""
    return message.replace("`", "")
