"""The page: its files, from a fixed table and under a policy, and all that people do with it, in a real browser."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest
from playwright.sync_api import sync_playwright

from llama3_scratch.serving import page as page_module
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


# What follows drives a real browser: the page as people use it, against a server on sockets whose model is told what to
# say. Nothing may be logged to the console, and nothing be fetched from anywhere else.

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 1'>",
    "<svg/onload=window.hacked=1>",
    '" onfocus="window.hacked = 1" autofocus="',
    "[a link](javascript:window.hacked=1) and [another](JaVaScRiPt&#58;window.hacked=1)",
    "[data](data:text/html,<script>window.hacked=1</script>) [vb](vbscript:x) [file](file:///etc/passwd)",
    "![picture](https://evil.example/track.png) ![x](javascript:window.hacked=1)",
    '<https://evil.example/"onmouseover="window.hacked=1> https://evil.example/"onclick=window.hacked=1',
    "```<img src=x onerror=window.hacked=1>\n</code></pre><script>window.hacked=1</script>\n```",
    "| <b onmouseover=window.hacked=1> | `</td><script>window.hacked=1</script>` |\n|---|---|\n| <iframe src=/> | x |",
    "# <style>*{display:none}</style>\n> <form action=https://evil.example><button>go</button></form>",
    "<a href='javascript:window.hacked=1'>a</a><base href='https://evil.example/'><meta http-equiv=refresh content=0>",
    "${window.hacked=1} {{constructor.constructor('window.hacked=1')()}} __proto__",
    "\u202eabc \u0000 \u2028 שלום 👩‍👩‍👧",
]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
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
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        context.on("request", lambda request: requests.append(request.url))
        page.goto(client.server.address + path)
        page.wait_for_selector("html[data-ready]")
        return page

    visit.complaints = complaints
    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests and all(url.startswith((client.server.address, "blob:", "data:")) for url in requests)


def send(page, text):
    page.fill("#write", text)
    page.press("#write", "Enter")


def ended(page):
    page.wait_for_selector("#send:not([hidden])")
    return page.locator(".message.assistant").last


def ask(page, text):
    send(page, text)
    return ended(page)


def texts(page):
    return page.locator(".message .body").all_inner_texts()


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
    system = {"role": "system", "content": "Be brief."}
    assert [one["messages"] for one in sent] == [
        [system, {"role": "user", "content": "One"}],
        [system, {"role": "user", "content": "One"}, {"role": "assistant", "content": "First."}, {"role": "user", "content": "Two"}],
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


def test_what_was_read_stays_while_an_answer_grows(visit):
    """Blocks that are done aren't made anew: a selection in them lasts."""
    page = visit()
    kept = page.evaluate("""async () => {
        const { render } = await import("/page/markdown.js"), element = document.createElement("div");
        render("# One\\n\\nTwo *thr", element);
        const [first, second] = element.children;
        render("# One\\n\\nTwo *three*\\n\\n- four", element);
        return [element.children[0] === first, element.children[1] === second, element.innerHTML];
    }""")
    assert kept == [True, False, "<h3>One</h3><p>Two <em>three</em></p><ul><li>four</li></ul>"]


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("a **b** *c* ~~d~~ `e` ***f***", "<p>a <strong>b</strong> <em>c</em> <del>d</del> <code>e</code> <strong><em>f</em></strong></p>"),
        ("one\ntwo", "<p>one<br>two</p>"),
        ("snake_case_name and 2*3*4", "<p>snake_case_name and 2<em>3</em>4</p>"),
        ("**open and `open", "<p>**open and `open</p>"),
        ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", '<div class="scroll" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>'),
        (r"\*not\* \[this\]", "<p>*not* [this]</p>"),
        ("你好，**世界**。https://a.b/c。", '<p>你好，<strong>世界</strong>。<a href="https://a.b/c" target="_blank" rel="noopener noreferrer nofollow">https://a.b/c</a>。</p>'),
        ("1 < 2 & 3", "<p>1 &lt; 2 &amp; 3</p>"),
    ],
)  # fmt: skip
def test_markdown(markdown, source, html):
    assert markdown(source)[0] == html


@pytest.mark.parametrize(
    "part",
    [
        "*",
        "**a ",
        "[",
        "](",
        "`",
        "``a",
        "> ",
        "- ",
        "|",
        "_a",
        "~~",
        "![](",
        "https://",
        "\\",
        "#",
        "```\n",
        "1. a\n  ",
    ],
)
def test_no_text_takes_markdown_long(markdown, part):
    html, milliseconds = markdown(part * (20_000 // len(part)))
    assert html and milliseconds < 1500


@pytest.fixture(scope="module")
def markdown(browser, client):
    """A text as HTML, and how long that took."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(client.server.address)
    yield lambda source: page.evaluate(
        """async (source) => {
            const { render } = await import("/page/markdown.js"), element = document.createElement("div");
            const began = performance.now();
            render(source, element);
            return [element.innerHTML, performance.now() - began];
        }""",
        source,
    )
    context.close()


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


def test_attention_and_trace_of_a_token(visit, says):
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
    assert page.locator("#view-studio").is_visible() and page.evaluate("location.hash") == "#studio"


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
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator(f"#view-{view}").is_visible()
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
    assert page.locator("#conversations a").all_inner_texts() == ["Second", "First"]
    page.locator("#conversations a").last.click()
    page.wait_for_function("() => document.querySelectorAll('.message').length === 2")
    assert texts(page) == ["First", "One."]
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert texts(page) == ["First", "One."]


@pytest.mark.parametrize(
    "file",
    [
        "no JSON",
        "{}",
        '{"file": "llama3_scratch conversations", "conversations": [{"nodes": [{"role": "user", "parent": 0, "text": "x"}]}], "stories": []}',
        '{"file": "llama3_scratch conversations", "conversations": [{"title": "", "nodes": [{"role": "root", "parent": -1, "text": "x"}]}], "stories": []}',
        '{"file": "llama3_scratch conversations", "conversations": [{"title": {}, "nodes": []}], "stories": []}',
    ],
)  # fmt: skip
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
    assert page.locator("#story").inner_text().split() == [
        "A",
        "fox",
        "had",
        "a",
        "lantern.",
        "It",
        "was",
        "dark.",
        "It",
        "crossed",
        "a",
        "bridge.",
    ]
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


def test_the_files_say_what_they_are():
    for path in page_module.FOLDER.iterdir():
        if path.suffix in (".js", ".css"):
            assert re.match(r"/\* [A-Z].*[.:;,]", path.read_text(encoding="utf-8")), path.name
        text = path.read_text(encoding="utf-8")
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)[a-z]", text), "nothing from elsewhere"
