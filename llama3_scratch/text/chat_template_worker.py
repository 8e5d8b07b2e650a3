"""The process that renders chat templates: requests come as lines of JSON on stdin, answers go to stdout the same way.

It is run by its path, imports jinja2 alone, and is killed by `chat_template` where it takes too long: a template is a
program out of a model's files, and one operation of it can outlast or outgrow anything that could be counted inside.
The environment is the one that transformers renders chat templates in (`utils/chat_template_utils.py`).
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import functools
import json
import signal
import sys
from typing import Any

MAX_MEMORY_BYTES = 1 << 29  # bytes of address space, where the system has such a limit
_MAX_SECONDS = 15.0  # seconds for a request whose parent is gone; else the parent's deadline is shorter


def _confine() -> None:
    """Limit what the process may take and write, where the system can."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is the parent's to act on
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, whatever it is at
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


def _count_down(seconds: float) -> None:
    """End the process when it has computed that long from now, where the system can count it; 0: don't."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


@functools.lru_cache(maxsize=4)
def _compiled(source: str) -> Any:
    import jinja2
    import jinja2.ext
    import jinja2.utils
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the assistant writes; it prints what is in it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_printed"), [], [], body).set_lineno(line)

        def _printed(self, caller: Any) -> Any:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """Without names that begin with an underscore, which lead into Python's own objects."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=…)` is one more name
            self, *given = args
            jinja2.utils.Namespace.__init__(self)
            for name, value in dict(*given, **kwargs).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a namespace takes no name that begins with an underscore, got {name}")
            super().__setitem__(name, value)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: Any) -> None:
        raise jinja2.TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["namespace"] = Namespace
    return environment.from_string(source)


def _clock(date: str | None) -> Any:
    """`strftime_now`: of this moment, or of a date like "26 Jul 2024"."""

    def strftime_now(form: str) -> str:
        if date is None:
            return datetime.datetime.now().strftime(form)
        try:
            return datetime.datetime.strptime(date, "%d %b %Y").strftime(form)
        except ValueError:
            return date

    return strftime_now


def _rendered(request: dict[str, Any], chat: dict[str, Any]) -> dict[str, str]:
    """{"text": …}, or what went wrong under its kind: "raised" (the template's own words), "syntax", "limit" …"""
    import jinja2
    from jinja2.exceptions import SecurityError, UndefinedError

    try:
        template = _compiled(request["template"])
        dated = {} if request["date"] is None else {"date_string": request["date"]}
        variables = {**request["variables"], **dated, "strftime_now": _clock(request["date"])}
        pieces, room = [], request["limit"]
        for piece in template.generate(
            messages=chat["messages"],
            tools=request.get("tools"),
            documents=None,
            add_generation_prompt=chat["add_generation_prompt"],
            **variables,
        ):
            room -= len(piece)
            if room < 0:
                return {"limit": "output"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"limit": "memory"}
    except jinja2.TemplateSyntaxError as error:
        return {"syntax": f"line {error.lineno}: {error.message}"}
    except (SecurityError, UndefinedError) as error:
        return {"refused" if isinstance(error, SecurityError) else "failed": str(error)}
    except jinja2.TemplateError as error:
        return {"raised": str(error)}
    except RecursionError:
        return {"failed": "it calls itself without end"}
    except Exception as error:  # whatever an expression of the template can raise
        return {"failed": f"{type(error).__name__}: {error}"}


def serve() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.path[:] = json.loads(requests.readline())
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401

    _confine()
    answers.write(b"{}\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        faulthandler.dump_traceback_later(_MAX_SECONDS, exit=True)
        _count_down(request["seconds"])
        found = [_rendered(request, chat) for chat in request["chats"]]
        _count_down(0.0)
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(found).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    serve()
