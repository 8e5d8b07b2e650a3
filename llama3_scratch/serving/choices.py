"""Where a server listens, whom it answers and how much it takes on: a frozen value, as of `inference.choices`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import BATCH_SIZE
from llama3_scratch.system.fields import Checked, number, text, whole

_ADAPTER = re.compile(r"[A-Za-z0-9][\w.:-]{0,99}", re.ASCII)  # a name that fits a URL and a line of a log


@dataclass(frozen=True)
class ServeChoice(Checked):
    """What a server is started with, beside the model and the form of its cache."""

    host: str = text("127.0.0.1")  # an address of this machine, or a name of one; 0.0.0.0: all of IPv4
    port: int = whole(8080, minimum=0, maximum=65535)  # 0: a free one
    api_keys: tuple[str, ...] = ()  # whoever names none of them is refused; none: everybody is answered
    allow_origins: tuple[str, ...] = ()  # of web pages that may call besides the server's own; "*": any
    max_concurrent: int = whole(BATCH_SIZE, minimum=1, maximum=1024)  # answers that are generated at once
    queue: int = whole(64, minimum=0)  # answers that may wait; beyond them: 503
    pool_gb: float | None = number(None, above=0)  # of keys and values, for all answers; None: see `engine.plan_pool`
    adapters: Mapping[str, Path] = field(default_factory=dict)  # name → folder as PEFT writes it; a model each
    model_name: str | None = text()  # what clients call the model; None: its folder's name
    max_seconds: float = number(600.0, above=0)  # of an answer, which then ends with `length`
    drain_seconds: float = number(30.0, minimum=0)  # that answers under way have when the server is to end

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("api_keys", "allow_origins"):
            given = getattr(self, name)
            values = (given,) if isinstance(given, str) else tuple(given)
            if not all(isinstance(value, str) for value in values):
                raise UsageError(f"`{name}`: expected texts, got {given!r:.99}")
            object.__setattr__(self, name, values)
        if any(not key.isascii() or not key.isprintable() or not key.strip() for key in self.api_keys):
            raise UsageError("`api_keys`: expected a key of printable ASCII, which a header can hold")
        for origin in self.allow_origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise UsageError(f"`allow_origins`: expected an origin as http://localhost:3000, or *, got {origin!r}")
        for name in self.adapters:
            if not _ADAPTER.fullmatch(name):
                raise UsageError(f"`adapters`: expected a name of letters, digits and any of . _ : -, got {name!r}")
        object.__setattr__(self, "adapters", MappingProxyType({n: Path(p) for n, p in self.adapters.items()}))

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own loopback: localhost, 127.0.0.1, ::1 …"""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
