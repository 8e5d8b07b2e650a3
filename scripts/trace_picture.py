"""Take the README's picture of a run: the page that --trace-out wrote, in headless Chromium, as a PNG.

    python -m llama3_scratch.generate "What is the capital of France?" --trace-out run.html
    python scripts/trace_picture.py run.html --out .pictures/run.png

opens the page with the steps of a layer beside its grid, scrolled to a function. Times on it are the run's own, so that
no two pictures are equal to the last pixel. Needs Chromium, and pip install -e ".[dev]".
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system import cli
from llama3_scratch.system.writing import write_whole

WIDTH, HEIGHT, SCALE = 1440, 960, 1.25  # in CSS pixels, and how many pixels each has
# Bring the first steps of a function beneath the bar of the panel; whether there are any.
SCROLL = """name => {
  const heads = [...document.querySelectorAll("#steps .function")];
  const head = heads.find((one) => one.querySelector("h3").firstChild.textContent === name);
  const edge = document.querySelector("#steps > .bar").getBoundingClientRect().bottom;
  if (head) document.querySelector("#steps").scrollTop += head.getBoundingClientRect().top - edge;
  return head !== undefined;
}"""


def make_parser() -> cli.Parser:
    parser = cli.script("trace_picture", __doc__)
    parser.add_argument("page", type=Path, metavar="RUN.html", help="what --trace-out wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture")
    parser.add_argument(
        "--layer", type=cli.number(int, minimum=0), default=3, metavar="N", help="whose steps are shown (%(default)s)"
    )
    parser.add_argument(
        "--function", default="attend", metavar="NAME", help="of the model, whose steps come first (%(default)s)"
    )
    parser.add_argument("--scheme", choices=("light", "dark"), default="light", help="(%(default)s)")
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UsageError(f'{error.name} is missing: pip install -e ".[dev]"') from error

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise UsageError("no Chromium is installed: apt-get install chromium")
    if not options.page.is_file():
        raise FileError(f"{options.page}: no such file; python -m llama3_scratch.generate … --trace-out writes it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE, color_scheme=options.scheme
        )
        page.goto(options.page.resolve().as_uri())
        if page.locator("#data").count() == 0:
            raise FileError(f"{options.page}: no page of a trace")
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        row = page.locator(f".layers tr[data-group='{options.layer}'] th")
        if row.count() == 0:
            raise UsageError(f"--layer {options.layer}: the trace has no such layer")
        row.click()
        page.mouse.move(0, 0)  # the pointer marks what is beneath it
        if not page.evaluate(SCROLL, options.function):
            raise UsageError(f"--function {options.function}: has no step in layer {options.layer}")
        picture = page.screenshot()
        browser.close()
    write_whole(options.out, picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
