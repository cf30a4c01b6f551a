"""Makes the pictures in docs/ of what a person sees: the web page, and with --ids the report and a gallery.

    python docs/make_screenshots.py artifacts/demo/run --out docs
    python docs/make_screenshots.py artifacts/demo/run --ids 3,40 --compare artifacts/demo/plain --out screens

Needs the extras report and web, Playwright and a Chromium (`--chromium`). Meant for a run of the drawn demonstration
data. The page is that of a real server, and what it answers are its own drawn examples.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parent.parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
PATH = click.Path(path_type=Path, resolve_path=True)


@click.command(context_settings={"show_default": True})
@click.argument("run", type=PATH)
@click.option("--ids", help="Posts of the run's cache for the gallery: a,b,c. Without them only the page is shown.")
@click.option("--compare", multiple=True, type=PATH, help="Further runs for the gallery.")
@click.option(
    "--out", required=True, type=PATH, help="The folder for the pictures; the report and the gallery as well."
)
@click.option("--chromium", type=PATH, default=Path("/usr/bin/chromium"))
def main(run: Path, ids: str | None, compare: tuple[Path, ...], out: Path, chromium: Path) -> None:
    """Make page.png, page-360.png and page-dark.png; with --ids also report*.png and gallery.png."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=FLAGS)
        with served(run) as address:
            shoot(answered(browser, address, 1280, 900), out / "page.png", whole=True)
            shoot(answered(browser, address, 1280, 900, dark=True), out / "page-dark.png", whole=True)
            shoot(answered(browser, address, 360, 740, phone=True), out / "page-360.png", whole=True)
        if ids:
            others = [part for other in compare for part in ("--compare", str(other))]
            command("report", run, "--out", out / "report.html", "--overwrite", "--quiet")
            command("explain", run, "--ids", ids, *others, "--out", out / "gallery", "--overwrite", "--quiet")
            report, gallery = (out / "report.html").as_uri(), (out / "gallery" / "index.html").as_uri()
            shoot(opened(browser, report, 1120, 1500), out / "report.png")
            shoot(opened(browser, f"{report}#wrong", 1120, 1300), out / "report-wrong.png")
            shoot(opened(browser, f"{report}#wrong", 390, 844, dark=True), out / "report-phone.png")
            shoot(opened(browser, gallery, 1180, 900), out / "gallery.png", whole=True)
        browser.close()


def opened(browser: Browser, address: str, width: int, height: int, *, dark: bool = False, phone: bool = False) -> Page:
    size = {"width": width, "height": height}
    scheme = "dark" if dark else "light"
    tab = browser.new_page(viewport=size, color_scheme=scheme, is_mobile=phone, has_touch=phone)
    tab.goto(address)
    return tab


def answered(
    browser: Browser, address: str, width: int, height: int, *, dark: bool = False, phone: bool = False
) -> Page:
    """The page after each of its examples was read."""
    tab = opened(browser, address, width, height, dark=dark, phone=phone)
    examples = tab.locator("#example-list button")
    examples.first.wait_for()
    for number in (2, 1, 0):
        examples.nth(number).click()
        tab.get_by_role("button", name="Read the post").click()
        tab.locator("#history-list li").nth(2 - number).wait_for(timeout=120_000)
        tab.locator("#form[aria-busy=false]").wait_for()
    tab.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    tab.mouse.move(0, 0)
    tab.wait_for_timeout(1000)
    return tab


def shoot(tab: Page, path: Path, *, whole: bool = False) -> None:
    """A PNG of 256 colours: a third of the size."""
    tab.screenshot(path=path, full_page=whole)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2)
    small.save(path, optimize=True)
    click.echo(f"wrote {path}: {small.width} x {small.height}, {path.stat().st_size / 1024:.0f} KiB")


def command(*arguments: object) -> None:
    subprocess.run([sys.executable, ROOT / "cli.py", *map(str, arguments)], cwd=ROOT, check=True)


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The page's address while `serve` runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, ROOT / "cli.py", "serve", str(run), "--port", str(port), "--quiet"]
    with subprocess.Popen(arguments, cwd=ROOT, env=os.environ) as server:
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()


def wait_for(port: int, seconds: int = 180) -> None:
    for _ in range(seconds):
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(1)
    raise click.ClickException(f"`serve` did not answer on port {port} within {seconds} s")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
