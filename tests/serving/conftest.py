"""Servers that all tests of the room share, on real sockets: a tiny model that chats, and the storyteller's."""

from __future__ import annotations

import pytest

from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.serving import answering
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.run import serving
from tests import tiny
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
