"""Server-sent events: frames as they come, and an error as the last of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.types import Send

from llama3_scratch.errors import Llama3Error
from llama3_scratch.serving.errors import ApiError, as_api_error
from llama3_scratch.serving.generation import ClientLeftError
from llama3_scratch.serving.responses import frame

log = logging.getLogger("llama3_scratch")

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx keeps the answer until it's whole
]


async def send_stream(send: Send, frames: AsyncGenerator[bytes, None]) -> None:
    """Send frames behind a 200 that goes out at once; where making them fails, the error is the last one.

    Raises ClientLeftError where the client goes, and what the frames failed with once the client was told.
    """
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    failed: Exception | None = None
    async with aclosing(frames):
        try:
            async for data in frames:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except ClientLeftError:
            raise
        except Exception as error:
            failed = error
            if not isinstance(error, Llama3Error | ApiError):
                log.exception("a stream failed")
            await send({"type": "http.response.body", "body": frame(as_api_error(error).body), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    if failed is not None:
        raise StreamError(str(failed)) from failed


class StreamError(Exception):
    """A stream ended with an error that the client has been told."""
