"""A load on a server that speaks OpenAI's API: users who each ask, read the stream to its end, and ask again.

Over plain sockets, in a process of its own (`python -m llama3_scratch.benchmark.load`, a Load as JSON on stdin, its
result on stdout), so that what the client costs isn't the server's.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 120.0  # seconds that an answer may take to go on


@dataclass(frozen=True)
class Load:
    """Each user's chats: a chat is bodies that are asked one after the other, of which a later one gets the answers
    before it where its messages say so. A user begins `delays` seconds after the start."""

    address: str
    users: list[list[dict[str, Any]]]
    delays: list[float] = field(default_factory=list)
    watch_health: bool = False


@dataclass
class Answered:
    """One answer: seconds from the start of the load."""

    user: int
    asked: float
    times: list[float] = field(default_factory=list)  # of each piece of text
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0


async def run(load: Load) -> dict[str, Any]:
    """Every answer's times, the seconds that /health took if it was watched, and this process's CPU seconds."""
    begun, cpu = time.perf_counter(), time.process_time()
    answers: list[Answered] = []
    over = asyncio.Event()

    async def user(number: int, bodies: list[dict[str, Any]]) -> None:
        if load.delays:
            await asyncio.sleep(load.delays[number])
        said: list[dict[str, str]] = []
        for body in bodies:
            own = dict(body)
            if own.pop("continues", False):
                own["messages"] = [*said, *own["messages"]]
            else:
                said = []
            answer = Answered(number, time.perf_counter() - begun)
            text = await ask(load.address, own, answer, begun)
            said = [*own["messages"], {"role": "assistant", "content": text}]
            answers.append(answer)

    watching = asyncio.ensure_future(_watch(load.address, over)) if load.watch_health else None
    await asyncio.gather(*(user(number, bodies) for number, bodies in enumerate(load.users)))
    over.set()
    return {
        "seconds": time.perf_counter() - begun,
        "answers": [asdict(answer) for answer in answers],
        "health": await watching if watching else [],
        "client_cpu": time.process_time() - cpu,
    }


async def ask(address: str, body: dict[str, Any], answer: Answered, begun: float) -> str:
    """Stream an answer; its text. Raises OSError where the server doesn't answer as it should."""
    whole = body | {"stream": True, "stream_options": {"include_usage": True}}
    reader, writer = await _send(address, "POST /v1/chat/completions", json.dumps(whole).encode())
    text = ""
    try:
        while True:
            line = await asyncio.wait_for(reader.readline(), PATIENCE)
            if not line:
                raise OSError("the stream ended before its end")
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                break
            event = json.loads(line[6:])
            if "error" in event:
                raise OSError(event["error"]["message"])
            if piece := "".join(choice["delta"].get("content") or "" for choice in event["choices"]):
                answer.times.append(time.perf_counter() - begun)
                text += piece
            if usage := event.get("usage"):
                answer.tokens, answer.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
                answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    finally:
        writer.close()
    answer.ended = time.perf_counter() - begun
    return text


async def _send(address: str, what: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of its own, on which the head of a good response has been read."""
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=2**22)
    head = f"{what} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).split(b"\r\n")[0]
    if b" 200" not in status:
        raise OSError(f"{status.decode(errors='replace')}: {(await reader.read(500)).decode(errors='replace')}")
    return reader, writer


async def _watch(address: str, over: asyncio.Event) -> list[float]:
    """How long /health takes, twenty times a second."""
    found = []
    while not over.is_set():
        begun = time.perf_counter()
        reader, writer = await _send(address, "GET /health")
        await reader.read()
        writer.close()
        found.append(time.perf_counter() - begun)
        await asyncio.sleep(0.05)
    return found


def main() -> None:
    print(json.dumps(asyncio.run(run(Load(**json.loads(sys.stdin.read()))))))


if __name__ == "__main__":
    main()
