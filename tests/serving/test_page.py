"""The page as a whole: its files, from a fixed table and under a policy; keys, languages, colours, phones, settings."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace

import pytest

from llama3_scratch.serving import page as page_module
from llama3_scratch.serving.errors import ApiError
from llama3_scratch.serving.page import Page
from tests.serving.browser import ask, ended

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


def test_the_files_say_what_they_are():
    for path in page_module.FOLDER.iterdir():
        if path.suffix in (".js", ".css"):
            assert re.match(r"/\* [A-Z].*[.:;,]", path.read_text(encoding="utf-8")), path.name
        text = path.read_text(encoding="utf-8")
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)[a-z]", text), "nothing from elsewhere"


def test_every_word_is_in_both_languages(visit):
    page = visit()
    words = page.evaluate("""async () => {
        const { t } = await import("/page/i18n.js"), settings = await import("/page/settings.js");
        const names = (await (await fetch("/page/i18n.js")).text()).matchAll(/^  (\\w+): \\[/gm), found = {};
        for (const [, name] of names) {
            found[name] = ["en", "zh"].map((language) => (settings.set({ language }), t(name)));
        }
        return found;
    }""")
    assert len(words) > 100 and all(english and chinese for english, chinese in words.values())
    same = {name for name, (english, chinese) in words.items() if english == chinese}
    assert same == {"top_p", "min_p"} or same == {"top_p"}
    used = set()
    for path in page_module.FOLDER.iterdir():
        used |= set(re.findall(r'\bt\("(\w+)"|data-t[\w-]*="(\w+)"', path.read_text(encoding="utf-8")))
    assert {a or b for a, b in used} <= set(words)


def test_in_chinese(visit, says):
    says("你好，世界。🙂")
    page = visit(locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh-CN" and page.inner_text("#send") == "发送"
    page.fill("#write", "你好")
    page.dispatch_event("#write", "keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    assert page.locator(".message").count() == 0, "Enter ends a word of an input method and sends nothing"
    page.press("#write", "Enter")
    answer = ended(page)
    assert answer.locator(".body").inner_text() == "你好，世界。🙂" and "个词元" in answer.inner_text()
    page.click("#settings-open")
    page.locator("#settings select").first.select_option("en")
    assert page.locator("html").get_attribute("lang") == "en" and page.inner_text("#settings h2") == "Settings"


def test_at_night(visit):
    page = visit(color_scheme="dark")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(19, 21, 25)"
    page.click("#settings-open")
    page.locator("#settings select").last.select_option("light")
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("html").get_attribute("data-theme") == "light"


def test_on_a_phone(visit, says):
    says("Hello **you**.\n\n```\n" + "x" * 300 + "\n```")
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.fill("#write", "Hi")
    page.press("#write", "Enter")
    page.type("#write", "there")
    assert page.locator("#write").input_value() == "Hi\nthere", "Enter is a new line"
    page.tap("#send")
    ended(page)
    for view in ("chat", "studio", "engine"):
        page.tap(f"#tab-{view}")
        page.wait_for_selector(f"#view-{view}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.tap("#tab-chat")
    page.tap("#menu")
    assert page.locator("#conversations li").count() == 1
    page.locator("#new").tap()
    assert page.locator("#list").is_hidden() and page.locator(".greeting").is_visible()


def test_settings_are_kept_and_sent(visit, says):
    says("One.")
    page = visit()
    page.click("#settings-open")
    page.fill("#settings [name=temperature]", "0.35")
    page.fill("#settings [name=max_tokens]", "77")
    page.locator("#settings textarea").fill("Be kind.")
    page.click("#settings .close")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "Hi")
    sent = json.loads(asked.value.post_data)
    assert (sent["temperature"], sent["max_tokens"], sent["messages"][0]["content"]) == (0.35, 77, "Be kind.")
    assert isinstance(sent["seed"], int)


def test_by_keyboard_alone(visit, says):
    says("Hello you.", "Again.")
    page = visit()
    assert page.evaluate("document.activeElement.id") == "write"
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    ended(page)
    page.keyboard.press("Tab")  # what can't be done now is left out
    for _ in range(4):
        if page.evaluate("document.activeElement.id") == "look-toggle":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_selector(".token")
    for _ in range(12):
        if page.evaluate("document.activeElement.className") == "token":
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "H2" and "Token 2 of 10" in page.inner_text("#look")
    page.wait_for_selector(".lens")
    page.keyboard.press("Escape")
    assert page.locator("#look").is_hidden() and page.evaluate("document.activeElement.className") == "token"
    for _ in range(12):
        if page.evaluate("document.activeElement.dataset.act") == "again":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.versions')?.textContent.includes('2/2')")
    ended(page)
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.locator("#tab-chat").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#view-studio")
    assert page.evaluate("location.hash") == "#studio" and page.locator("#view-chat").is_hidden()


def test_screen_readers_are_told(visit, says):
    says("One sentence. Another one!")
    page = visit()
    page.evaluate("""() => {
        window.heard = [];
        new MutationObserver(() => heard.push(said.textContent)).observe(said, { childList: true });
    }""")
    ask(page, "Hi")
    page.wait_for_function("() => heard.join(' ').includes('Another one!')")
    heard = page.evaluate("heard")
    assert heard[0] == "Answering…" and all(part.strip().endswith((".", "!", "…")) for part in heard), "whole sentences"
    assert (
        page.locator("#thread").get_attribute("role") == "log"
        and page.locator("#said").get_attribute("aria-live") == "polite"
    )
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, textarea, select, a")]
        .filter((element) => element.id !== "file" && !(element.textContent.trim() || element.getAttribute("aria-label")
            || element.labels?.[0]?.textContent.trim()))
        .map((element) => element.outerHTML)""")
    assert nameless == []
    assert page.locator(".message.assistant").get_attribute("aria-label") == "Model"


def test_a_key_is_asked_for(visit):
    page = visit()
    wants = {"error": {"message": "this server wants an API key"}}

    def models(route, request):
        if request.headers.get("authorization") == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, json=wants)

    page.route("**/v1/models", models)
    page.reload()
    page.wait_for_selector("#settings[open]")
    assert "API key" in page.inner_text("#notice")
    page.fill("#settings [type=password]", "secret")
    page.click("#settings .close")
    page.wait_for_function("() => document.querySelector('#notice').textContent === ''")
    assert all("401" in one for one in visit.complaints)
    visit.complaints.clear()
