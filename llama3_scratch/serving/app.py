"""The server's ASGI application: who may call, which path leads where, a line in the log for each request."""

from __future__ import annotations

import time

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama3_scratch.serving import health, models, tokenize
from llama3_scratch.serving.chat import chat
from llama3_scratch.serving.completions import completions
from llama3_scratch.serving.embeddings import embeddings
from llama3_scratch.serving.endpoint import Endpoint, Handler
from llama3_scratch.serving.errors import ApiError
from llama3_scratch.serving.images import images
from llama3_scratch.serving.log import Told, log_request
from llama3_scratch.serving.look import TRACE_PATH, Look
from llama3_scratch.serving.page import Page
from llama3_scratch.serving.security import check_caller, preflight_headers
from llama3_scratch.serving.service import Service

# Each at /v1/… and, for clients that leave it out, at /…; GET stands for HEAD too.
API: list[tuple[str, str, Handler]] = [
    ("POST", "/chat/completions", chat),
    ("POST", "/completions", completions),
    ("POST", "/embeddings", embeddings),
    ("POST", "/images/generations", images),
    ("GET", "/models", models.models),
    ("GET", "/models/{id:path}", models.model),
    ("POST", "/tokenize", tokenize.tokenize),
    ("POST", "/detokenize", tokenize.detokenize),
    ("POST", "/apply-template", tokenize.apply_template),
    ("GET", "/health", health.health),
    ("GET", "/metrics", health.metrics),
]
# And all of the page, which asks for the key; a trace's name is one.
WITHOUT_KEY = ("/", "/health", "/v1/health", TRACE_PATH)


def make_app(service: Service, page: Page | None = None) -> ASGIApp:
    look = Look()
    looks: list[tuple[str, str, Handler]] = [
        ("POST", "/look/lens", look.lens),
        ("POST", "/look/attention", look.attention),
        ("POST", "/look/trace", look.trace),
        ("GET", "/look/pages", look.pages),
    ]
    routes = [
        Route(prefix + path, Endpoint(service, handler), methods=[method])
        for method, path, handler in API + looks
        for prefix in ("/v1", "")
    ]
    routes.append(Route(TRACE_PATH, Endpoint(service, look.traced), methods=["GET"]))
    served = Endpoint(service, (page or Page()).serve)
    routes += [Route(path, served, methods=["GET"]) for path in ("/", "/page/{name:path}")]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _as_openai})
    app.router.redirect_slashes = False
    return Gate(app, service)


async def _as_openai(request: Request, error: Exception) -> Response:
    """What starlette refuses by itself: paths and methods that there aren't."""
    assert isinstance(error, HTTPException)
    said = {404: "there is no such path here", 405: "this path takes no such method"}
    message = said.get(error.status_code, error.detail)
    return ApiError(error.status_code, message, headers=error.headers).response()


class Gate:
    """What every request passes: the checks of `security`, and the log."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began, told, status = time.perf_counter(), Told(), 0
        more: tuple[tuple[bytes, bytes], ...] = ()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        scope["told"] = told
        try:
            headers, path = Headers(scope=scope), scope["path"]
            preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
            keyless = preflight or path in WITHOUT_KEY or path.startswith("/page/")
            try:
                caller = check_caller(headers, self._service.choice, needs_key=not keyless)
            except ApiError as refused:
                told.ended = refused.object["code"] or refused.object["type"]
                await refused.response()(scope, receive, watched)
                return
            scope["caller"], more = caller, caller.headers
            if preflight:
                more = (*more, *preflight_headers())
                await Response(status_code=204)(scope, receive, watched)
                return
            await self._app(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - began
            self._service.metrics.asked(status, seconds)
            log_request(scope["method"], scope["path"], status, seconds, told)
