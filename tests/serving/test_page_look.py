"""Looking inside in a real browser: tokens, alternatives, layers, attention, traces, pages, and the proof."""

from __future__ import annotations

import math

import pytest

from tests.serving.browser import ask, ended, send, texts

pytestmark = pytest.mark.slow  # a browser's time adds up


def test_tokens_tell_their_probability_and_another_can_be_taken(visit, says, client):
    says("Hello you.", " And so on.")
    page = visit()
    page.check("#look-toggle")
    answer = ask(page, "Hi")
    tokens = answer.locator(".token")
    assert tokens.all_inner_texts() == list("Hello you.")
    says("Hello you.")
    told = client.chat("Hi", logprobs=True, top_logprobs=6).json["choices"][0]["logprobs"]["content"]
    labels = [token.get_attribute("aria-label") for token in tokens.all()]
    for label, one in zip(labels, told, strict=True):
        assert float(label.split(", ")[1].strip("< %")) == pytest.approx(
            100 * math.exp(one["logprob"]), rel=0.05, abs=1e-3
        )
    place, other = next(
        (place, top)
        for place, one in enumerate(told)
        for top in one["top_logprobs"]
        if place and top["token"].isalnum() and top["token"].isascii() and top["token"] != one["token"]
    )
    tokens.nth(place).click()
    assert f"Token {place + 1} of 10" in page.locator("#look").inner_text()
    shown = page.locator(".alternative .token-name").all_inner_texts()
    assert len(shown) == 6
    page.wait_for_selector(".lens tbody tr")
    assert page.locator(".lens tbody tr").count() == 5
    says(" And so on.")
    page.locator(".alternative:enabled", has=page.get_by_text(other["token"], exact=True)).click()
    ended(page)
    assert texts(page)[-1] == f"{'Hello you.'[:place]}{other['token']} And so on."
    assert page.inner_text(".versions") == "‹2/2›" and page.locator("#look").is_hidden()
    assert answer.locator(".token").count() == place + 1 + len(" And so on.")


def test_attention_of_a_token(visit, says):
    says("Hello.")
    page = visit()
    page.check("#look-toggle")
    ask(page, "Hi").locator(".token").nth(3).click()
    page.click("#look [data-view=attention]")
    page.wait_for_selector(".heads button")
    assert page.locator(".heads button").count() == 5 * 6
    assert page.locator(".attended").inner_text().endswith("Hel")
    page.locator(".heads button").nth(8).click()
    assert "layer 1 · head 2" in page.locator("#look-view").inner_text()
    page.locator(".attended .token").nth(2).click()
    assert page.locator(".attended .token.open").count() == 1


@pytest.mark.slow
def test_the_trace_of_a_token(visit, says):
    says("Hello.")
    page = visit()
    page.check("#look-toggle")
    ask(page, "Hi").locator(".token").nth(3).click()
    page.click("#look [data-view=trace]")
    page.click("#look-view button")
    with page.context.expect_page() as opened:
        page.click("#look-view a.button")
    trace = opened.value
    trace.wait_for_selector("html[data-ready]")
    assert trace.locator("#answered").inner_text() == "l" and "Hi" in trace.locator("#asked").inner_text()
    assert trace.evaluate("window.origin") == "null", "it has no part in what the chat keeps"


def test_looking_inside_tells_why_it_cant(visit, says):
    says("Hello.")
    page = visit()
    page.route(
        "**/v1/look/lens", lambda route: route.fulfill(status=400, json={"error": {"message": "the text is too long"}})
    )
    page.check("#look-toggle")
    ask(page, "Hi").locator(".token").first.click()
    assert page.locator("#look .error").inner_text() == "the text is too long"
    assert ["400 (Bad Request)" in one for one in visit.complaints] == [True]
    visit.complaints.clear()


def test_the_pages_of_the_cache_are_live(visit, says, client):
    says(None)
    page = visit()
    send(page, "Go on for ever")
    page.wait_for_function("() => document.querySelector('.message.assistant .body')?.textContent.length > 5")
    page.click("#tab-engine")
    page.wait_for_selector("#pages-requests b")
    n = client.server.service.thread.stats.pages
    assert page.locator("#pages i").count() == n and page.inner_text("#pages-sum").startswith(f"{n} pages: ")
    assert page.locator("#pages i:not([data-state='']):not([data-state=cached])").count() >= 1
    page.click("#tab-chat")
    page.click("#stop")
    page.click("#tab-engine")
    page.wait_for_function("() => document.querySelector('#pages-requests').textContent.includes('No requests')")
    assert " 0 held" in page.inner_text("#pages-sum")


def test_alone_and_in_company_are_compared(visit):
    page = visit("/#engine")
    page.click("#proof-run")
    page.wait_for_selector(".verdict.same", timeout=60_000)
    alone, company = page.locator(".proof-text").all_inner_texts()
    assert alone and alone == company and "64 tokens" in page.inner_text(".verdict")


def test_what_differs_in_company_is_told(visit, says):
    says("The same.", *[None] * 4, "The other.")
    page = visit("/#engine")
    page.click("#proof-run")
    page.wait_for_selector(".verdict.different", timeout=60_000)
    assert page.inner_text(".verdict").startswith("They differ from token 4 on")
