"""Who is answered: hosts, origins, keys; what the log shows; files."""

from __future__ import annotations

import logging

import pytest

from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.serving import security
from llama3_scratch.serving.choices import ServeChoice, is_loopback
from llama3_scratch.serving.log import printable
from llama3_scratch.serving.run import serving
from tests.serving.http_client import Client, read_all

HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def keyed(folder):
    """Of a server with two keys, which pages of one other origin may call."""
    choice = ServeChoice(port=0, api_keys=("first-key", "second-key"), allow_origins=("http://localhost:3000",))
    with serving(choice, model=ModelChoice(model=folder)) as server:
        yield Client(server)


@pytest.mark.parametrize("host", ["evil.com", "evil.com:8080", "localhost.evil.com", "192.168.0.1", "[2001:db8::1]:80"])
def test_f170_on_loopback_another_host_is_refused(client, host):
    got = client.get("/v1/models", Host=host)
    assert got.status == 403 and got.error["type"] == "permission_error"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:80", "page.localhost", "localhost.", "127.8.9.1"]
)
def test_on_loopback_its_names_are_answered(client, host):
    assert client.get("/v1/models", Host=host).status == 200


def test_what_knows_no_hosts_is_answered(client):
    with client.opened(b"GET /health HTTP/1.0\r\n\r\n") as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_what_loopback_is():
    assert not is_loopback("0.0.0.0") and not is_loopback("") and not is_loopback("127.0.0.1.evil.com")
    assert not ServeChoice(host="0.0.0.0").local and ServeChoice().local


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "https://localhost.evil.com", "http://localhost:3000"])
def test_f171_a_foreign_origin_is_refused_even_without_preflight(client, origin):
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/health")):
        got = client.ask(method, path, HI if method == "POST" else None, {"Origin": origin})
        assert got.status == 403 and not any(name.startswith("access-control") for name in got.headers)


def test_f171_a_foreign_preflight_is_refused(client):
    asked = {"Origin": "http://evil.com", "Access-Control-Request-Method": "POST"}
    got = client.ask("OPTIONS", "/v1/chat/completions", headers=asked)
    assert got.status == 403 and not any(name.startswith("access-control") for name in got.headers)


def test_the_servers_own_page_may_call(client):
    at = f"{client.host}:{client.port}"
    assert client.get("/v1/models", Origin=f"http://{at}").status == 200


def test_an_allowed_origin_may_call_and_sees_errors(keyed):
    allowed = {"Origin": "http://localhost:3000"}
    asked = {**allowed, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    got = keyed.ask("OPTIONS", "/v1/chat/completions", headers=asked)
    assert got.status == 204 and got.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "Authorization" in got.headers["access-control-allow-headers"] and got.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in got.headers
    got = keyed.get("/v1/models", **allowed, Authorization="Bearer first-key")
    assert got.status == 200 and got.headers["access-control-allow-origin"] == "http://localhost:3000"
    got = keyed.get("/v1/models", **allowed)
    assert got.status == 401 and got.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert keyed.get("/v1/models", Origin="http://localhost:3001", Authorization="Bearer first-key").status == 403


def test_f169_without_the_key_nothing_but_health_and_the_page_is_answered(keyed):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "first-key"}, {"X-Api-Key": "first"}):
        for path in ("/v1/models", "/metrics", "/models"):
            got = keyed.get(path, **headers)
            assert got.status == 401 and got.error["code"] == "invalid_api_key"
            assert got.error["type"] == "authentication_error" and got.headers["www-authenticate"].startswith("Bearer")
        assert keyed.post("/v1/chat/completions", HI, **headers).status == 401
    assert keyed.get("/health").status == 200


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_a_key_is_a_bearer_token_or_x_api_key(keyed, key):
    assert keyed.get("/v1/models", Authorization=f"Bearer {key}").status == 200
    assert keyed.get("/v1/models", Authorization=f"bearer  {key}").status == 200
    assert keyed.get("/v1/models", **{"X-Api-Key": key}).status == 200


def test_keys_are_compared_in_equal_time(monkeypatch, keyed):
    compared = []
    real = security.secrets.compare_digest
    monkeypatch.setattr(security.secrets, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    assert keyed.get("/v1/models", **{"X-Api-Key": "first-key"}).status == 200
    assert compared == [(b"first-key", b"first-key"), (b"second-key", b"first-key")]


def test_prefixes_are_shared_within_a_key_and_not_across(keyed):
    """Else the time to the first token would tell one key what another has asked."""
    text = "a secret that somebody else may have typed " * 8

    def cached(key: str) -> int:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
        used = keyed.post("/v1/chat/completions", body, **{"X-Api-Key": key}).json["usage"]
        return used["prompt_tokens_details"]["cached_tokens"]

    assert cached("first-key") == 0 and cached("first-key") >= 256
    assert cached("second-key") == 0 and cached("second-key") >= 256


def test_the_log_has_a_line_a_request_with_sizes_and_nothing_that_was_said(client, says, caplog):
    says("a secret answer")
    with caplog.at_level(logging.INFO, "llama3_scratch"):
        client.chat("a secret question")
        client.get("/v1/models/%0d%0aFORGED%1b[31m")
        client.get("/health")
    lines = [record.getMessage() for record in caplog.records]
    assert not any("secret" in line for line in lines)
    told, forged = lines
    assert told.startswith("POST /v1/chat/completions 200 · ") and "+ 16 tokens · stop" in told
    assert "\r" not in forged and "\n" not in forged and "\\r\\nFORGED\\x1b" in forged


def test_what_drives_a_terminal_is_escaped():
    assert printable("a\r\nb\x1b[0m\u202e", 99) == "a\\r\\nb\\x1b[0m\\u202e"
    assert len(printable("x" * 1000, 99)) == 100


def test_a_server_that_others_can_reach_takes_any_host(folder, caplog):
    with (
        caplog.at_level(logging.WARNING, "llama3_scratch"),
        serving(ServeChoice(host="0.0.0.0", port=0), model=ModelChoice(model=folder)) as server,
    ):
        assert Client(server).get("/v1/models", Host="my-machine.lan").status == 200
        assert Client(server).get("/v1/models", Origin="http://evil.com").status == 403
    assert any("api_keys" in record.getMessage() for record in caplog.records)
