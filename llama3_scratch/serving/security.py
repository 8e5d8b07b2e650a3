"""Who is answered: the host and the origin that a request names, and its key.

A web page anywhere can have a browser send requests to this machine. Two things tell them: the page's origin, and,
where its own name was made to lead here (DNS rebinding), the host.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers

from llama3_scratch.serving.choices import ServeChoice, is_loopback
from llama3_scratch.serving.errors import ApiError

METHODS, HEADERS = "GET, HEAD, POST, OPTIONS", "Authorization, Content-Type, X-Api-Key"
LONGEST_PREFLIGHT = "600"  # seconds for which a browser may remember the answer


@dataclass(frozen=True)
class Caller:
    """Whoever may be answered: the salt of what they say (one a key), and headers for the answer."""

    salt: str
    headers: tuple[tuple[bytes, bytes], ...]


def check_caller(headers: Headers, choice: ServeChoice, *, needs_key: bool) -> Caller:
    """Raises ApiError 403 for a host or an origin that isn't ours, 401 for a key that is missing or wrong."""
    check_host(headers, choice)
    cors = cors_headers(headers, choice)
    try:
        salt = check_key(headers, choice.api_keys) if needs_key else ""
    except ApiError as error:
        error.headers.update({name.decode(): value.decode() for name, value in cors})
        raise
    return Caller(salt, cors)


def check_host(headers: Headers, choice: ServeChoice) -> None:
    """On loopback the host must be a loopback's name (ollama's rule); browsers always name one."""
    host = headers.get("host", "")
    if choice.local and host and not is_loopback(host_of(host)):
        raise ApiError(403, "this server answers to localhost alone; the request is for another host")


def host_of(authority: str) -> str:
    """The host of `host:port`, `[::1]:port` or a host alone."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.rpartition(":")[0] if authority.count(":") == 1 else authority


def cors_headers(headers: Headers, choice: ServeChoice) -> tuple[tuple[bytes, bytes], ...]:
    """What an allowed page's browser wants to see. Raises ApiError 403 for a page of another origin."""
    origin = headers.get("origin")
    if origin is None or _own(origin, headers.get("host", "")):
        return ()
    if "*" in choice.allow_origins:
        return ((b"access-control-allow-origin", b"*"),)
    if origin.lower() in (allowed.lower() for allowed in choice.allow_origins):
        return ((b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin"))
    raise ApiError(403, "web pages of this origin may not call the server, unless they're allowed when it is started")


def preflight_headers() -> tuple[tuple[bytes, bytes], ...]:
    """What a browser asks for before it sends a request for an allowed page."""
    told = {"allow-methods": METHODS, "allow-headers": HEADERS, "max-age": LONGEST_PREFLIGHT}
    return tuple((f"access-control-{name}".encode(), value.encode()) for name, value in told.items())


def _own(origin: str, host: str) -> bool:
    return bool(host) and origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


def check_key(headers: Headers, keys: Iterable[str]) -> str:
    """The salt of the key that was given, which is the same for no other; "" where no key is needed."""
    keys = tuple(keys)
    if not keys:
        return ""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
    found = None
    for number, key in enumerate(keys):  # all of them, each in the same time whatever is given
        if secrets.compare_digest(key.encode(), given.encode("utf-8", "replace")):
            found = number
    if found is None:
        what = "the API key isn't one of this server's" if given else "this server wants an API key"
        raise ApiError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": 'Bearer realm="llama3_scratch"'})
    return f"key {found}"
