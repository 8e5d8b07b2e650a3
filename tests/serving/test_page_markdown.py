"""Markdown as the page makes it: elements from texts, only the last block anew, and no text takes long."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow  # a browser's time adds up


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


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("a **b** *c* ~~d~~ `e`", "<p>a <strong>b</strong> <em>c</em> <del>d</del> <code>e</code></p>"),
        ("***f***", "<p><strong><em>f</em></strong></p>"),
        ("one\ntwo", "<p>one<br>two</p>"),
        ("snake_case_name and 2*3*4", "<p>snake_case_name and 2<em>3</em>4</p>"),
        ("**open and `open", "<p>**open and `open</p>"),
        ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        (
            "| a | b |\n|---|---|\n| 1 | 2 |",
            '<div class="scroll" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
            "<tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>",
        ),
        (r"\*not\* \[this\]", "<p>*not* [this]</p>"),
        ("你好，**世界**。", "<p>你好，<strong>世界</strong>。</p>"),
        (
            "https://a.b/c。",
            '<p><a href="https://a.b/c" target="_blank" rel="noopener noreferrer nofollow">https://a.b/c</a>。</p>',
        ),
        ("1 < 2 & 3", "<p>1 &lt; 2 &amp; 3</p>"),
    ],
)
def test_markdown(markdown, source, html):
    assert markdown(source)[0] == html


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
