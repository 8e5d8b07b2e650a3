"""JSON that strangers send: read strictly, so that no two readers of it see different things, and never deep."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from llama3_scratch.serving.errors import ApiError, shown

MAX_DEPTH = 64


def json_object(body: bytes) -> dict[str, Any]:
    """The object that a body is. Raises ApiError 400 for anything else, for a key that stands twice, for NaN and
    infinities, and for more than MAX_DEPTH levels."""
    try:
        value = json.loads(body.decode("utf-8-sig"), object_pairs_hook=_once_each, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body isn't UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None
    except RecursionError:
        raise _deep() from None
    except json.JSONDecodeError as error:
        raise ApiError(
            400, f"the body isn't JSON: line {error.lineno}, column {error.colno}: {error.msg.lower()}"
        ) from None
    except ValueError:  # a whole number of thousands of digits
        raise ApiError(400, "the body isn't JSON that can be read: a number has too many digits") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"expected a JSON object as body, got {shown(value)}")
    _check_depth(value)
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ApiError(400, f"the key {shown(twice)} stands twice in an object of the body", param=twice[:99])
    return found


def _no_number(name: str) -> NoReturn:
    raise ApiError(400, f"the body isn't JSON: {name} is no number that JSON has")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return
    raise _deep()


def _deep() -> ApiError:
    return ApiError(400, f"the body is nested more than {MAX_DEPTH} levels deep")
