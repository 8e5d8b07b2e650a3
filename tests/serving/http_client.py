"""A client that shows everything: status, headers, bodies, and the frames of a stream, over sockets of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llama3_scratch.serving.run import Server


@dataclass
class Got:
    status: int
    headers: dict[str, str]  # by names in small letters
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; every error has its four fields, and nothing stands beside it."""
        assert set(self.json) == {"error"} and {"message", "type", "param", "code"} <= set(self.json["error"])
        assert "Traceback" not in self.json["error"]["message"] and "<class" not in self.json["error"]["message"]
        return self.json["error"]


class Client:
    """Of one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        at = urlsplit(server.address)
        assert at.hostname and at.port
        self.host, self.port = at.hostname, at.port

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Got:
        """One request, on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return Got(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str, **headers: str) -> Got:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Got:
        return self.ask("POST", path, body, headers)

    def chat(self, *messages: Any, **fields: Any) -> Got:
        """A chat; texts are the user's messages."""
        said = [{"role": "user", "content": one} if isinstance(one, str) else one for one in messages]
        return self.post("/v1/chat/completions", {"messages": said, "temperature": 0, **fields})

    def complete(self, prompt: Any, **fields: Any) -> Got:
        return self.post("/v1/completions", {"prompt": prompt, "temperature": 0, **fields})

    def frames(self, path: str, body: dict[str, Any], *, comments: bool = False) -> list[Any]:
        """All frames of a stream: objects, "[DONE]", and comments, if wanted, as texts that begin with a colon."""
        got = self.post(path, {"temperature": 0, **body, "stream": True})
        assert got.status == 200, got.body
        assert got.headers["content-type"].startswith("text/event-stream")
        frames = map(_frame, got.body.decode().removesuffix("\n\n").split("\n\n"))
        return [frame for frame in frames if comments or not str(frame).startswith(":")]

    @contextlib.contextmanager
    def opened(self, data: bytes = b"") -> Iterator[socket.socket]:
        """A socket, connected; `data` is sent."""
        with socket.create_connection((self.host, self.port), timeout=60) as connection:
            connection.sendall(data)
            yield connection

    def request(self, path: str, body: Any, method: str = "POST") -> bytes:
        """The bytes of a request."""
        data = json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        return head.encode() + data


def _frame(text: str) -> Any:
    if text.startswith(":"):
        return text
    assert text.startswith("data: ") and "\n" not in text
    return "[DONE]" if text == "data: [DONE]" else json.loads(text.removeprefix("data: "))


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes, or resets."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            got += data
    return got


def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait until it's true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.005)
