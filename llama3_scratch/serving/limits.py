"""What a client may take of the server: bytes and seconds of a header and of a body, and a while without reading.

uvicorn with h11 answers a header that is too large with 400, and waits without end for one that comes byte by byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import h11
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from llama3_scratch.serving.errors import ApiError

MAX_HEADER_BYTES, MAX_HEADER_SECONDS = 16_384, 10.0
MAX_BODY_BYTES, MAX_BODY_SECONDS = 4 * 2**20, 30.0
MAX_UNREAD_SECONDS = 30.0  # that a client may read nothing of an answer that waits for it
# A connection that is closed while data comes in is reset, and a client that still writes never reads why. So what
# it goes on to send is thrown away for a while.
MAX_IGNORED_BYTES, MAX_IGNORED_SECONDS = 64 * 2**20, 2.0
CLOSE = {"Connection": "close"}


async def read_body(request: Request) -> bytes:
    """All of a request's body. Raises ApiError 413 for more than MAX_BODY_BYTES, told or sent, and 408 where they
    take longer than MAX_BODY_SECONDS."""
    told = request.headers.get("content-length", "0")
    if not told.isdecimal() or len(told) > 18 or int(told) > MAX_BODY_BYTES:  # nothing of it is read
        raise _too_large()
    body = bytearray()
    until = time.monotonic() + MAX_BODY_SECONDS
    more = True
    while more:
        try:
            message = await asyncio.wait_for(request.receive(), max(0.001, until - time.monotonic()))
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body took longer than {MAX_BODY_SECONDS:g} s", headers=CLOSE) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
        more = message.get("more_body", False)
    return bytes(body)


def _too_large() -> ApiError:
    return ApiError(413, f"the body has more than {MAX_BODY_BYTES} bytes", headers=CLOSE)


async def ignore_rest(receive: Receive) -> None:
    """Throw away what a refused client still sends, until it stops or it's enough."""

    async def ignore() -> None:
        ignored = 0
        while ignored < MAX_IGNORED_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return
            ignored += len(message.get("body", b""))

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(ignore(), MAX_IGNORED_SECONDS)


class _Connection(h11.Connection):
    """h11's, which remembers the status that it proposes for what isn't HTTP, and counts a header that came at once."""

    status = 400

    def next_event(self) -> Any:
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.status = error.error_status_hint
            raise
        if isinstance(event, h11.Request):
            size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
            if size > MAX_HEADER_BYTES:
                self.status = 431
                raise h11.RemoteProtocolError("header too large", error_status_hint=431)
        return event


class Protocol(H11Protocol):
    """uvicorn's protocol with a clock that runs while a header comes, and with errors as OpenAI has them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection = self.conn = _Connection(h11.SERVER, MAX_HEADER_BYTES)
        self._header_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._ignored = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_header()
        self._end_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(MAX_UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_unread()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._ignored += len(data)
            if self._ignored > MAX_IGNORED_BYTES:
                self.transport.close()
            return
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._end_header()
        elif self._header_timer is None and self.conn.trailing_data[0]:
            self._begin_header()

    def send_400_response(self, msg: str) -> None:
        status = self._connection.status
        self._refuse(status, "the header is too large" if status == 431 else "this isn't HTTP/1.1")

    def _begin_header(self) -> None:
        self._end_header()
        self._header_timer = self.loop.call_later(MAX_HEADER_SECONDS, self._too_slow)

    def _end_header(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _end_unread(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, f"the header took longer than {MAX_HEADER_SECONDS:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Say why, and close; `conn` may be in any state that has no answer yet."""
        self._end_header()
        self._refused = True
        body = json.dumps(ApiError(status, message).body).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is under way: there's nothing more to be said
            data = self.conn.send(h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status]))
            self.transport.write((data or b"") + (self.conn.send(h11.Data(data=body)) or b""))
            self.conn.send(h11.EndOfMessage())
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(MAX_IGNORED_SECONDS, self.transport.close)
