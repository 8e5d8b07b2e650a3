"""Pictures of the server's page as people see it, for its documents: a real browser, the default model, a fixed seed.

    python scripts/page_pictures.py

writes page-chat.png (an answer looked into) and page-studio.png (a story) to .pictures/. Needs `chromium`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.run import serving
from llama3_scratch.system import cli

PICTURES = Path(__file__).resolve().parent.parent / ".pictures"
SIZE: Any = {"width": 1360, "height": 860}
QUESTION = "Why is the sky blue? Answer in three sentences."
TOKEN = 14  # of the answer, which is looked into


def make_parser() -> cli.Parser:
    parser = cli.script("page_pictures", __doc__)
    parser.add_argument("--out", type=Path, default=PICTURES, metavar="DIR", help="(.pictures)")
    parser.add_argument("--seed", type=cli.number(int, minimum=0), default=3, metavar="N", help="(%(default)s)")
    return parser


def take(address: str, out: Path, seed: int) -> None:
    """Both pictures of the page at `address`."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise UsageError("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, locale="en-US")
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        page.evaluate("(seed) => import('/page/settings.js').then((kept) => kept.set({ seed, look: true }))", seed)
        page.fill("#write", QUESTION)
        page.press("#write", "Enter")
        page.wait_for_selector("#send:not([hidden])", timeout=120_000)
        page.locator(".message.assistant .token").nth(TOKEN).click()
        page.wait_for_selector(".lens")
        page.mouse.move(0, 0)
        page.screenshot(path=out / "page-chat.png")
        page.click("#tab-studio")
        page.fill("#story-hero", "a brave mouse")
        page.click("#story-form .primary")
        page.wait_for_selector("#story-print:not([hidden])", timeout=120_000)
        page.screenshot(path=out / "page-studio.png")
        browser.close()


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    with serving(ServeChoice(port=0), model=ModelChoice(quantize="int4")) as server:
        take(server.address, options.out, options.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
