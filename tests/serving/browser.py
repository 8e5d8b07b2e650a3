"""What the tests of the page share: where a browser is, what people do in it, texts that try to be more."""

from __future__ import annotations

import shutil

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


def send(page, text):
    """Send a message by Enter."""
    page.fill("#write", text)
    page.press("#write", "Enter")


def ended(page):
    """The last answer, once it is complete."""
    page.wait_for_selector("#send:not([hidden])")
    return page.locator(".message.assistant").last


def ask(page, text):
    """Send a message, and wait for its answer."""
    send(page, text)
    return ended(page)


def texts(page):
    """What the messages on the page say."""
    return page.locator(".message .body").all_inner_texts()
