"""An endpoint: a function of the service and a request, with a client's errors as responses and a line in the log."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama3_scratch.errors import Llama3Error
from llama3_scratch.serving.errors import ApiError, as_api_error
from llama3_scratch.serving.generation import ClientLeftError
from llama3_scratch.serving.json_body import json_object
from llama3_scratch.serving.limits import ignore_rest, read_body
from llama3_scratch.serving.log import Told
from llama3_scratch.serving.security import Caller
from llama3_scratch.serving.service import Service
from llama3_scratch.serving.streaming import StreamError

log = logging.getLogger("llama3_scratch")


@dataclass(frozen=True)
class Call:
    """One request to an endpoint."""

    service: Service
    request: Request
    send: Send  # for an endpoint that streams; whichever doesn't returns a response
    caller: Caller
    told: Told

    @property
    def receive(self) -> Receive:
        return self.request.receive

    async def json(self) -> dict[str, Any]:
        return json_object(await read_body(self.request))


Handler = Callable[[Call], Awaitable[Response | None]]


class Endpoint:
    """The ASGI application that an endpoint is."""

    def __init__(self, service: Service, handler: Handler) -> None:
        self._service, self._handler = service, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        told: Told = scope["told"]
        call = Call(self._service, Request(scope, receive), send, scope["caller"], told)
        try:
            response = await self._handler(call)
        except (ClientLeftError, ClientDisconnect):
            told.ended = "the client left"
            return
        except StreamError as failed:
            told.ended = f"failed: {failed}"
            return
        except Exception as error:
            response = await self._refused(error, told, call)
        if response is not None:
            await response(scope, receive, send)

    async def _refused(self, error: Exception, told: Told, call: Call) -> Response | None:
        if not isinstance(error, Llama3Error | ApiError):
            log.exception("a request failed")
        known = as_api_error(error)
        told.ended = known.object["code"] or known.object["type"]
        if known.status not in (408, 413):
            return known.response()
        # The client may still be writing: it's told at once, and heard to the end before the connection is closed.
        response = known.response()
        start = {"type": "http.response.start", "status": known.status, "headers": response.raw_headers}
        await call.send(start)
        await call.send({"type": "http.response.body", "body": response.body, "more_body": True})
        await ignore_rest(call.receive)
        await call.send({"type": "http.response.body", "body": b"", "more_body": False})
        return None
