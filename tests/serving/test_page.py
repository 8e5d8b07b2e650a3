"""The page's files: from a fixed table, with types and a policy, and nothing else of the disk."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from llama3_scratch.serving.errors import ApiError
from llama3_scratch.serving.page import Page

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; frame-ancestors 'none'"
)


@pytest.fixture
def page(tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><p>你好", encoding="utf-8")
    (folder / "chat.js").write_text("1", encoding="utf-8")
    (folder / "notes.txt").write_text("secret", encoding="utf-8")
    (tmp_path / "outside.js").write_text("secret", encoding="utf-8")
    return Page(folder)


def get(page, path, **headers):
    call = SimpleNamespace(request=SimpleNamespace(url=SimpleNamespace(path=path), headers=headers))
    return asyncio.run(page.serve(call))


def test_files_have_their_types_and_the_policy(page):
    first = get(page, "/")
    assert (
        first.body == "<!doctype html><p>你好".encode() and first.headers["content-type"] == "text/html; charset=utf-8"
    )
    assert first.headers["content-security-policy"] == POLICY and first.headers["x-content-type-options"] == "nosniff"
    assert get(page, "/page/chat.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert get(page, "/page/index.html").body == first.body


def test_what_the_browser_has_is_not_sent_again(page):
    tag = get(page, "/").headers["etag"]
    again = get(page, "/", **{"if-none-match": tag})
    assert again.status_code == 304 and again.body == b"" and again.headers["content-security-policy"] == POLICY
    assert get(page, "/", **{"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/notes.txt", "/page/../outside.js", "/page/", "/page//etc/passwd", "/page/chat.js/"]
)
def test_nothing_else_is_served(page, path):
    with pytest.raises(ApiError) as refused:
        get(page, path)
    assert refused.value.status == 404


def test_on_sockets_paths_lead_nowhere_else(client):
    for path in (
        "/page/../../../../etc/passwd",
        "/page/%2e%2e/%2e%2e/etc/passwd",
        "/page/..%2fapp.py",
        "/page/nothing.js",
    ):
        got = client.get(path)
        assert got.status == 404 and set(got.json) == {"error"}
