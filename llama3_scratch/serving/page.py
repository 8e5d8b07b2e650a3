"""The page at `/`: files that are read once, when the server starts, and served from a table of their names."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.responses import Response

from llama3_scratch.serving.endpoint import Call
from llama3_scratch.serving.errors import ApiError

FOLDER = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Page:
    """The files of a folder by the paths at which they're served: `/` for index.html, `/page/NAME` for each."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files: dict[str, Response] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix in TYPES and path.is_file():
                data = path.read_bytes()
                tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"'}
                self._files[f"/page/{path.name}"] = Response(data, headers=HEADERS | tag, media_type=TYPES[path.suffix])
        if "/page/index.html" in self._files:
            self._files["/"] = self._files["/page/index.html"]

    async def serve(self, call: Call) -> Response:
        file = self._files.get(call.request.url.path)
        if file is None:
            raise ApiError(404, "there is no such page")
        if call.request.headers.get("if-none-match") == file.headers["etag"]:
            return Response(status_code=304, headers={**HEADERS, "ETag": file.headers["etag"]})
        return file
