"""Fields of a request's body, checked one by one: each has a type, bounds and a default, and an error that names it.

What isn't asked for is ignored, as OpenAI's own server does: clients send fields of other servers. null is as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama3_scratch.serving.errors import ApiError, shown
from llama3_scratch.system.fields import Number


class Fields:
    """An object of a body; `path` is what stands before its names in a message: "" or `stream_options.`."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values, self._path = values, path

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def wrong(self, name: str, expected: str) -> ApiError:
        """The error of a field that isn't as expected."""
        param = f"{self._path}{name}"
        value = self.get(name)
        got = "nothing" if value is None else shown(value)
        return ApiError(400, f"{param}: expected {expected}, got {got}", param=param)

    def number(self, name: str, default: Any, **bounds: float) -> Any:
        return self._admitted(name, default, Number(float, **bounds))

    def whole(self, name: str, default: Any, **bounds: float) -> Any:
        return self._admitted(name, default, Number(int, **bounds))

    def _admitted(self, name: str, default: Any, bounds: Number) -> Any:
        value = self.get(name)
        if value is None:
            return default
        if not bounds.admits(value):
            raise self.wrong(name, str(bounds))
        return bounds.kind(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: Any = None, *, longest: int | None = None) -> Any:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or (longest is not None and len(value) > longest):
            raise self.wrong(name, "a text" + (f" of at most {longest} characters" if longest is not None else ""))
        return value

    def one_of(self, name: str, values: tuple[str, ...], default: str) -> str:
        value = self.get(name)
        if value is None:
            return default
        if value not in values:
            raise self.wrong(name, f"one of {', '.join(values)}")
        return value

    def object(self, name: str) -> Fields | None:
        """The fields of an object within; None where there is none."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self._path}{name}.")

    def objects(self, name: str, most: int) -> list[Fields]:
        """The objects of a list within; none where it is absent."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most:
            raise self.wrong(name, f"a list of at most {most}")
        for index, one in enumerate(value):
            if not isinstance(one, dict):
                raise Fields({f"{name}[{index}]": one}, self._path).wrong(f"{name}[{index}]", "an object")
        return [Fields(one, f"{self._path}{name}[{index}].") for index, one in enumerate(value)]
