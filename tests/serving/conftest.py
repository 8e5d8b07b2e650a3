"""Servers that all tests of the room share, on real sockets: a tiny model that chats, and the storyteller's."""

from __future__ import annotations

import pytest

from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.serving import answering
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.run import serving
from tests import tiny
from tests.serving.browser import CHROMIUM
from tests.serving.http_client import Client


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def client(folder):
    """Of a server with the tiny model, four answers at once and four that wait."""
    with serving(ServeChoice(port=0, max_concurrent=4, queue=4), model=ModelChoice(model=folder)) as server:
        yield Client(server)


@pytest.fixture(scope="session")
def stories():
    """Of a server with a model that goes on with text."""
    with serving(ServeChoice(port=0), model=ModelChoice(model="storyteller")) as server:
        yield Client(server)


@pytest.fixture
def says(monkeypatch):
    """Have the model say these texts, the first answer the first one and so on, each ended by its stop token; None:
    never end."""

    def says(*texts: str | None, tokenizer=None):
        tokenizer = tokenizer or tiny.tokenizer()
        scripts = [
            [*tokenizer.encode(text, bos=False, allowed_special="all"), tokenizer.stop_tokens[0]]
            if text is not None
            else None
            for text in texts
        ]
        left = iter(scripts)

        def make(choice, prompt_tokens):
            script = next(left)
            said = iter(script if script is not None else iter(lambda: tokenizer.encode("a", bos=False)[0], None))
            return lambda logits_V, seen: next(said)

        monkeypatch.setattr(answering, "make_sampler", make)

    return says


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request):
    """After every test no answer is under way, and no page is held."""
    yield
    for name in ("client", "stories"):
        if name in request.fixturenames:
            from tests.serving.http_client import until

            thread = request.getfixturevalue(name).server.service.thread
            until(lambda thread=thread: not thread.stats.running and not thread.stats.waiting)
            assert thread.stats.pages_held == 0


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, client):
    """Open the page; at the end of the test nothing may have been complained about or fetched from elsewhere."""
    contexts, complaints, requests = [], [], []

    def visit(path="/", **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-US", **options})
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", visit.dismiss)
        context.on("request", lambda request: requests.append(request.url))
        page.goto(client.server.address + path)
        page.wait_for_selector("html[data-ready]")
        return page

    def dismiss(dialog):
        complaints.append(dialog.message)
        dialog.dismiss()

    visit.complaints, visit.dismiss = complaints, dismiss
    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests and all(url.startswith((client.server.address, "blob:", "data:")) for url in requests)
