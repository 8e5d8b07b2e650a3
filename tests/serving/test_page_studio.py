"""The storyteller's studio in a real browser: told, changed, chosen, kept, printed; and a model that doesn't chat."""

from __future__ import annotations

import json

import pytest

from tests.serving.browser import ended

pytestmark = pytest.mark.slow  # a browser's time adds up


def test_a_story_is_told_changed_and_kept(visit, says):
    says("A fox had a lantern. It sang a song. The end.", " It crossed a bridge.")
    page = visit("/#studio")
    page.fill("#story-hero", "a fox")
    page.click("#story-form .primary")
    page.wait_for_selector("#story-print:not([hidden])")
    assert [one.strip() for one in page.locator(".sentence").all_inner_texts()] == [
        "A fox had a lantern.", "It sang a song.", "The end.",
    ]  # fmt: skip
    assert page.locator("#story-chips .came").all_inner_texts() == ["✓ lantern", "✓ song"]
    page.locator(".sentence").nth(1).click()
    page.fill(".changing textarea", "It was dark.")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.click(".changing .primary")
    sent = json.loads(asked.value.post_data)["messages"]
    assert "a fox" in sent[0]["content"] and "lantern, bridge, song" in sent[0]["content"]
    assert sent[1] == {"role": "assistant", "content": "A fox had a lantern. It was dark. "}
    page.wait_for_selector("#story-print:not([hidden])")
    told = page.locator("#story").inner_text().split()
    assert " ".join(told) == "A fox had a lantern. It was dark. It crossed a bridge."
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert (
        page.locator("#story").inner_text().endswith("It crossed a bridge.")
        and page.input_value("#story-hero") == "a fox"
    )
    assert page.locator("#stories a").inner_text() == "a fox, a snowy mountain"
    page.emulate_media(media="print")
    assert page.locator("#story").is_visible() and page.locator("#story-title").is_visible()
    assert not page.locator("#story-form").is_visible() and not page.locator("#top").is_visible()


def test_one_of_three_stories_is_chosen(visit, says):
    says("One way.", "Another way.", "A third way.")
    page = visit("/#studio")
    page.click("#story-form [value='3']")
    page.wait_for_selector(".way button")
    ways = page.locator(".way p").all_inner_texts()
    assert sorted(ways) == ["A third way.", "Another way.", "One way."]
    page.locator(".way button").nth(1).click()
    assert page.locator("#story").inner_text() == ways[1] and page.locator(".way").count() == 0
    assert page.evaluate("document.activeElement.className") == "sentence"


def test_three_stories_stand_one_below_the_other_on_a_phone(visit, says):
    says("One way.", "Another way.", "A third way.")
    page = visit("/#studio", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.tap("#story-form [value='3']")
    page.wait_for_selector(".way button")
    boxes = [way.bounding_box() for way in page.locator(".way").all()]
    assert len({box["x"] for box in boxes}) == 1 and all(box["x"] + box["width"] <= 390 for box in boxes)


def test_pictures_are_offered_where_a_model_makes_them(visit, says):
    says("A story.")
    page = visit("/#studio")
    page.click("#story-form .primary")
    page.wait_for_selector("#story-print:not([hidden])")
    assert page.locator("#story-illustrate").is_hidden(), "no model here makes pictures"
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    painter = {"id": "painter", "meta": {"images": True, "chat": False}}

    def with_painter(route):
        models = route.fetch().json()
        route.fulfill(json={"data": [*models["data"], painter]})

    page.route("**/v1/models", with_painter)
    page.route("**/v1/images/generations", lambda route: route.fulfill(json={"data": [{"b64_json": dot}]}))
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.click("#story-illustrate")
    assert (
        page.locator("#story-pictures img").evaluate("(picture) => picture.decode().then(() => picture.naturalWidth)")
        == 1
    )


def test_a_model_that_goes_on_with_text_does_so(browser, stories):
    context = browser.new_context(locale="en-US")
    context.set_default_timeout(20_000)
    page = context.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(stories.server.address)
    page.wait_for_selector("html[data-ready]")
    assert "goes on with a text" in page.inner_text(".greeting")
    page.evaluate("import('/page/settings.js').then((settings) => settings.set({max_tokens: 12, look: true}))")
    page.fill("#write", "Once upon a time")
    page.press("#write", "Enter")
    answer = ended(page)
    assert answer.locator(".token").count() >= 3
    answer.locator(".token").nth(1).click()
    page.wait_for_selector(".lens")
    page.click("#tab-studio")
    page.click("#story-form .primary")
    page.wait_for_selector("#story-print:not([hidden])")
    assert page.inner_text("#story").startswith("Once upon a time there was a small dragon.")
    assert complaints == []
    context.close()
