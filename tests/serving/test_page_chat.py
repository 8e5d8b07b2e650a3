"""The chat in a real browser: typed, stopped, edited, answered anew, reloaded, kept; what is said is only text."""

from __future__ import annotations

import json
import re

import pytest

from tests.serving.browser import HOSTILE, ask, ended, send, texts
from tests.serving.http_client import until

pytestmark = pytest.mark.slow  # a browser's time adds up


def test_a_question_is_answered_in_markdown(visit, says):
    says("Here are **two**:\n\n1. `one`\n2. [two](https://example.com/a_b)\n\n```python\nprint(1)\n```")
    page = visit()
    answer = ask(page, "What is there?")
    assert page.locator(".message.user .body").inner_text() == "What is there?"
    assert answer.locator("strong").inner_text() == "two" and answer.locator("ol li").count() == 2
    assert (
        answer.locator("pre code").inner_text() == "print(1)" and "python" in answer.locator(".code-bar").inner_text()
    )
    link = answer.locator("a")
    assert link.get_attribute("href") == "https://example.com/a_b" and "noopener" in link.get_attribute("rel")
    assert re.search(r"\d+ tokens · [\d.]+ tokens/s · first after [\d.]+ s · seed \d+", answer.inner_text())
    assert page.locator("#write").input_value() == "" and page.evaluate("document.activeElement.id") == "write"


def test_an_answer_is_stopped_and_continued(visit, says):
    says(None)
    page = visit()
    send(page, "Go on for ever")
    page.wait_for_function("() => document.querySelector('.message.assistant .body')?.textContent.length > 5")
    page.keyboard.press("Escape")
    answer = ended(page)
    assert "stopped" in answer.locator(".figures").inner_text()
    begun = answer.locator(".body").inner_text()
    assert set(begun) == {"a"}
    says(" and an end.")
    answer.locator("[data-act=goOn]").click()
    page.wait_for_function(
        "() => document.querySelector('.message.assistant .body').textContent.endsWith('and an end.')"
    )
    assert ended(page).locator(".body").inner_text() == f"{begun} and an end."
    assert page.locator(".message").count() == 2 and "stopped" not in page.locator(".figures").last.inner_text()


def test_edits_and_new_answers_are_branches(visit, says):
    says("First.", "Second.", "Third.", "Fourth.")
    page = visit()
    ask(page, "Question one")
    ask(page, "And then?")
    page.locator(".message.assistant").last.locator("[data-act=again]").click()
    ended(page)
    assert texts(page) == ["Question one", "First.", "And then?", "Third."]
    assert page.inner_text(".versions") == "‹2/2›"
    page.locator(".message.user").first.locator("[data-act=edit]").click()
    page.fill(".editing textarea", "Question two")
    page.click(".editing .primary")
    ended(page)
    assert texts(page) == ["Question two", "Fourth."]
    page.locator("[data-act=before]").click()
    assert texts(page) == ["Question one", "First.", "And then?", "Third."]
    assert page.evaluate("document.activeElement.dataset.act") == "after", "the focus stays on the arrows"
    page.locator("[data-act=before]").last.click()
    assert texts(page)[-1] == "Second."
    page.locator("#write").press("ArrowUp")
    assert page.locator(".editing textarea").input_value() == "And then?"
    page.keyboard.press("Escape")
    assert texts(page)[-1] == "Second." and page.evaluate("document.activeElement.dataset.act") == "edit"


def test_what_the_server_is_sent_is_the_branch_that_is_shown(visit, says):
    says("First.", "Second.", "Third.")
    page = visit()
    sent = []
    page.on("request", lambda request: request.post_data and sent.append(json.loads(request.post_data)))
    page.evaluate(
        "import('/page/settings.js').then((settings) => settings.set({system: 'Be brief.', temperature: 0.5, seed: 7}))"
    )
    ask(page, "One")
    ask(page, "Two")
    page.locator(".message.user").first.locator("[data-act=edit]").click()
    page.fill(".editing textarea", "Three")
    page.keyboard.press("Control+Enter")
    ended(page)
    system, first = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "One"}
    said = {"role": "assistant", "content": "First."}
    assert [one["messages"] for one in sent] == [
        [system, first],
        [system, first, said, {"role": "user", "content": "Two"}],
        [system, {"role": "user", "content": "Three"}],
    ]  # fmt: skip
    assert all(one["temperature"] == 0.5 and one["seed"] == 7 and one["stream"] for one in sent)


def test_all_is_there_after_a_reload(visit, says):
    says("First.", "Second.", None)
    page = visit()
    ask(page, "Question")
    page.locator("[data-act=again]").click()
    ended(page)
    page.fill("#write", "a draft")
    before = texts(page), page.locator(".figures").all_inner_texts(), page.url
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert (texts(page), page.locator(".figures").all_inner_texts(), page.url) == before
    assert page.locator("#write").input_value() == "a draft" and page.locator(".versions").count() == 1
    send(page, "Go on for ever")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.message.assistant .body')].at(-1).textContent.length > 5"
    )
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert set(texts(page)[-1]) == {"a"} and "interrupted" in page.locator(".figures").last.inner_text()
    assert page.locator("#conversations li").count() == 1


def test_an_error_is_told_beside_the_message(visit):
    page = visit()
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=400, json={"error": {"message": "too long for me"}}),
    )
    answer = ask(page, "Hi")
    assert answer.locator(".error").inner_text() == "too long for me"
    assert answer.locator("[data-act=again]").is_visible()
    assert all("400" in one for one in visit.complaints)
    visit.complaints.clear()


def test_the_view_doesnt_jump_while_an_answer_grows(visit, says):
    says("".join(f"Line {i} of many.\n\n" for i in range(60)), None)
    page = visit()
    ask(page, "A long one")
    assert page.evaluate("(({scrollHeight: all, scrollTop: top, clientHeight: view}) => all - top - view)(thread)") < 2
    send(page, "Go on for ever")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.message.assistant .body')].at(-1).textContent.length > 5"
    )
    page.locator("#thread").hover()
    page.mouse.wheel(0, -600)
    page.wait_for_selector("#to-end:not([hidden])")
    at, length = page.evaluate("[thread.scrollTop, thread.textContent.length]")
    page.wait_for_function(f"() => thread.textContent.length > {length + 60}")
    assert page.evaluate("thread.scrollTop") == at
    page.click("#to-end")
    page.wait_for_selector("#to-end[hidden]", state="attached")
    page.click("#stop")
    ended(page)


def test_a_conversation_that_is_deleted_ends_and_stays_deleted(visit, says, client):
    says(None)
    page = visit()
    send(page, "Go on for ever")
    page.wait_for_function("() => document.querySelector('.message.assistant .body')?.textContent.length > 5")
    page.remove_listener("dialog", visit.dismiss)
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    page.wait_for_selector(".greeting")
    until(lambda: not client.server.service.thread.stats.running)
    assert page.locator("#conversations li").count() == 0 and page.locator("#send").is_visible()
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#conversations li").count() == 0


def test_a_conversation_gets_another_name(visit, says):
    says("One.")
    page = visit()
    ask(page, "Hi")
    page.remove_listener("dialog", visit.dismiss)
    page.once("dialog", lambda dialog: dialog.accept("<b>A name</b>"))
    page.get_by_role("button", name="Rename").click()
    assert page.locator("#conversations a").inner_text() == "<b>A name</b>"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_a_model_says_and_people_write_is_only_text(visit, says, hostile):
    says(hostile)
    page = visit()
    answer = ask(page, hostile)
    page.click("#look-toggle")
    assert answer.locator(".token").count() == len(hostile.encode())
    assert answer.locator(".as-tokens").evaluate("(body) => body.textContent") == hostile
    page.click("#look-toggle")
    tags = page.evaluate(
        "[...document.querySelectorAll('#thread *, #conversations *')].map((element) => element.tagName)"
    )
    assert not {"SCRIPT", "IMG", "SVG", "IFRAME", "STYLE", "FORM", "BASE", "META", "OBJECT", "EMBED"} & set(tags)
    attributes = page.evaluate(
        "[...document.querySelectorAll('#thread *')].flatMap((element) => element.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on")]
    for link in answer.locator("a").all():
        assert link.get_attribute("href").startswith(("http://", "https://"))
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("window.hacked") is None


def test_conversations_go_out_and_come_in(visit, says, tmp_path):
    says("One.", "Two.")
    page = visit()
    ask(page, "First")
    page.click("#new")
    ask(page, "Second")
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "all.json")
    page.evaluate("localStorage.clear()")
    page.goto(page.url.partition("#")[0])
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#conversations li").count() == 0
    page.set_input_files("#file", tmp_path / "all.json")
    page.wait_for_selector("#conversations li")
    assert page.inner_text("#file-said") == "2 conversations and 0 stories imported"
    page.set_input_files("#file", tmp_path / "all.json")
    page.get_by_text("0 conversations and 0 stories imported").first.wait_for()  # they are there already
    assert page.locator("#conversations a").all_inner_texts() == ["Second", "First"]
    page.locator("#conversations a").last.click()
    page.wait_for_function("() => document.querySelectorAll('.message').length === 2")
    assert texts(page) == ["First", "One."]
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert texts(page) == ["First", "One."]


FILE = {"file": "llama3_scratch conversations", "stories": []}


@pytest.mark.parametrize(
    "file",
    [
        "no JSON",
        "{}",
        json.dumps({**FILE, "conversations": [{"title": "", "nodes": [{"role": "user", "parent": 0, "text": "x"}]}]}),
        json.dumps({**FILE, "conversations": [{"title": "", "nodes": [{"role": "root", "parent": -1, "text": "x"}]}]}),
        json.dumps({**FILE, "conversations": [{"title": {}, "nodes": []}]}),
    ],
)
def test_other_files_arent_taken_in(visit, file):
    page = visit()
    page.set_input_files("#file", {"name": "a.json", "mimeType": "application/json", "buffer": file.encode()})
    page.wait_for_function("() => document.querySelector('#file-said').textContent")
    assert page.inner_text("#file-said") == "This file holds no conversations of this page."
    assert page.locator("#conversations li").count() == 0


def test_a_hostile_file_is_only_text(visit, tmp_path):
    hostile = HOSTILE[1]
    node = {"role": "assistant", "parent": -1, "text": hostile, "finish": hostile, "error": hostile, "extra": hostile}
    one = {"id": "../x", "title": hostile, "changed": 1, "leaf": 0, "nodes": [node]}
    story = {"id": "aaaaaa", "text": hostile, "hero": hostile, "place": hostile, "mood": "", "words": hostile}
    file = {"file": "llama3_scratch conversations", "version": 1, "conversations": [one], "stories": [story]}
    page = visit()
    page.set_input_files("#file", {"name": "a", "mimeType": "application/json", "buffer": json.dumps(file).encode()})
    page.locator("#conversations a").click()
    page.wait_for_selector(".message")
    assert page.locator(".message .error").inner_text() == hostile
    page.click("#tab-studio")
    page.locator("#stories a").click()
    page.wait_for_selector(".sentence")
    assert page.locator("#story").inner_text() == hostile and page.locator("main img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_without_room_in_the_browser_tokens_are_forgotten_first_and_then_it_is_told(visit, says):
    says("One. " * 20, "Two.", "Three.")
    page = visit()
    ask(page, "First")
    fill = """(size) => {
        let junk = "x".repeat(6_000_000);
        for (let part = junk.length; part >= size; part = Math.floor(part / 2)) {
            try { localStorage.setItem(Math.random(), junk.slice(0, part)); } catch { /* less, then */ }
        }
    }"""
    page.evaluate(fill, 512)
    page.click("#new")
    ask(page, "Second")
    kept = (
        "Object.entries(localStorage).filter(([key]) => key.includes('conversation')).map(([_, value]) => value).sort()"
    )
    first, second = (json.loads(value) for value in sorted(page.evaluate(kept), key=lambda value: "Second" in value))
    assert "tokens" not in first["nodes"][1] and first["nodes"][1]["text"].startswith("One.")
    assert second["nodes"][1]["text"] == "Two." and page.inner_text("#notice") == ""
    page.evaluate(fill, 1)
    ask(page, "Third")
    assert "has no room" in page.inner_text("#notice") and texts(page)[-1] == "Three.", "it's there until it's closed"


def test_two_tabs_show_the_same(visit, says):
    says("One.")
    page = visit()
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("html[data-ready]")
    ask(page, "Hi")
    other.wait_for_selector("#conversations li")
    other.locator("#conversations a").click()
    other.wait_for_selector(".message.assistant")
    assert texts(other) == ["Hi", "One."]
