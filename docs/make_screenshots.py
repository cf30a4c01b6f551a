"""A run in, pictures of what a person sees out: the report on a desk and on a phone, a gallery, and the page.

    python docs/make_screenshots.py artifacts/demo/run --ids 3,40 --compare artifacts/demo/plain --out screens

Needs the extras report and web, Playwright and a Chromium (`--chromium`). Meant for the drawn demonstration data: what
stands in docs/ was made with it.
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
@click.option("--ids", required=True, help="Posts of the run's cache for the gallery: a,b,c; the page shows the first.")
@click.option("--compare", multiple=True, type=PATH, help="Further runs for the gallery.")
@click.option("--out", required=True, type=PATH, help="The folder for the pictures, and for the pages themselves.")
@click.option("--chromium", type=PATH, default=Path("/usr/bin/chromium"))
def main(run: Path, ids: str, compare: tuple[Path, ...], out: Path, chromium: Path) -> None:
    """Make report.png, report-phone.png, report-wrong.png, gallery.png and page.png."""
    others = [part for other in compare for part in ("--compare", str(other))]
    command("report", run, "--out", out / "report.html", "--overwrite", "--quiet")
    command("explain", run, "--ids", ids, *others, "--out", out / "gallery", "--overwrite", "--quiet")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=FLAGS)
        report, gallery = (out / "report.html").as_uri(), (out / "gallery" / "index.html").as_uri()
        shoot(opened(browser, report, 1120, 1500), out / "report.png")
        shoot(opened(browser, f"{report}#wrong", 1120, 1300), out / "report-wrong.png")
        shoot(opened(browser, f"{report}#wrong", 390, 844, dark=True), out / "report-phone.png")
        shoot(opened(browser, gallery, 1180, 900), out / "gallery.png", whole=True)
        with served(run) as address:
            shoot(answered(browser, address, run, ids.split(",")[0]), out / "page.png", whole=True)
        browser.close()


def opened(browser: Browser, address: str, width: int, height: int, *, dark: bool = False) -> Page:
    window = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    tab = window.new_page()
    tab.goto(address)
    return tab


def answered(browser: Browser, address: str, run: Path, post: str) -> Page:
    """The page after a post of the run's cache was asked."""
    from fusion.checkpoint import Run
    from pipeline import hdf5

    (found,) = [one for one in hdf5.read_posts(Path(Run(run).facts["cache"])) if one.id == post]
    tab = opened(browser, address, 1180, 900)
    tab.locator("input[type=file]").first.set_input_files(found.image)
    tab.get_by_label("Text").first.fill(found.text or "")
    tab.get_by_role("button", name="Read the post").click()
    tab.locator("#answer img").wait_for(timeout=120_000)
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
