"""What the fields of a choice take: numbers within bounds, one of some names, texts. The command line reads the same.

    @dataclass(frozen=True)
    class Choice(Checked):
        temperature: float = number(0.0, minimum=0)

A message names the field in backquotes, as a setting of the library; `cli` says its flag in the place of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llama3_scratch.errors import UsageError


@dataclass(frozen=True)
class Number:
    """A finite number within bounds, of `kind` int or float; its text says which."""

    kind: type = float
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None

    def __str__(self) -> str:
        limits = [
            *([f"at least {self.minimum:g}"] if self.minimum is not None else []),
            *([f"above {self.above:g}"] if self.above is not None else []),
            *([f"at most {self.maximum:g}"] if self.maximum is not None else []),
        ]
        return f"a{' whole' if self.kind is int else ''} number" + (" " + " and ".join(limits) if limits else "")

    def admits(self, value: Any) -> bool:
        kind = numbers.Integral if self.kind is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        number: Any = value
        return (
            (isinstance(number, numbers.Integral) or math.isfinite(number))  # a huge whole number is no float
            and (self.minimum is None or number >= self.minimum)
            and (self.above is None or number > self.above)
            and (self.maximum is None or number <= self.maximum)
        )


@dataclass(frozen=True)
class OneOf:
    """One of a few values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"

    def admits(self, value: Any) -> bool:
        return not isinstance(value, bool) and value in self.values


@dataclass(frozen=True)
class Of:
    """A value of a type, told in words."""

    kind: type
    words: str

    def __str__(self) -> str:
        return self.words

    def admits(self, value: Any) -> bool:
        return isinstance(value, self.kind)


def number(default: float | None, kind: type = float, **bounds: float) -> Any:
    """A field that takes a finite number: minimum=, above=, maximum=."""
    return field(default=default, metadata={"takes": Number(kind, **bounds)})


def whole(default: int | None, **bounds: float) -> Any:
    """A field that takes a whole number: minimum=, above=, maximum=."""
    return number(default, int, **bounds)


def one_of(default: Any, values: tuple[Any, ...]) -> Any:
    return field(default=default, metadata={"takes": OneOf(values)})


def text(default: str | None = None) -> Any:
    return field(default=default, metadata={"takes": Of(str, "a text")})


def switch(default: bool = False) -> Any:
    return field(default=default, metadata={"takes": Of(bool, "True or False")})


def meant(name: str, known: Collection[str]) -> str:
    """What a name that isn't among the known ones may have been meant for, and if nothing like it is there, all."""
    begun = [one for one in known if name and one.startswith(name)]
    close = begun or difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


class Checked:
    """A dataclass whose fields are checked as it is made: UsageError for one that takes no such value.

    None is taken where it is the default.
    """

    def __new__(cls, *values: Any, **named: Any) -> Any:
        known = [one.name for one in dataclasses.fields(cls)]  # type: ignore[arg-type]  # subclasses are dataclasses
        for name in named:
            if name not in known:
                raise UsageError(f"{cls.__name__} has no `{name}`; {meant(name, known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value, takes = getattr(self, one.name), one.metadata.get("takes")
            if takes is not None and not (takes.admits(value) or (value is None and one.default is None)):
                raise UsageError(f"`{one.name}`: expected {takes}, got {value!r:.99}")


def takes(kind: type, name: str) -> Any:
    """What the field `name` of a dataclass takes."""
    return {one.name: one for one in dataclasses.fields(kind)}[name].metadata["takes"]


T = TypeVar("T")


def updated(choice: T, settings: Mapping[str, Any]) -> T:
    """The choice with those of the settings that are fields of it; None leaves a field as it is."""
    known = {one.name for one in dataclasses.fields(choice)}  # type: ignore[arg-type]
    new = {name: value for name, value in settings.items() if name in known and value is not None}
    return dataclasses.replace(choice, **new)  # type: ignore[type-var]
