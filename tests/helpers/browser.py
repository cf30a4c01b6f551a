"""Debian's chromium for tests: pages that note what goes wrong in them, and the page of `serve` as a person uses it."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
PATIENCE = 60_000  # ms: other work may share the machine
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP box.lan 127.0.0.1",
)
_WATCH = """addEventListener("securitypolicyviolation", (violation) =>
  console.error(`policy: ${violation.violatedDirective} ${violation.blockedURI}`))"""
# An answer of POST /explain.
ANSWER: dict[str, Any] = {
    "label": "calm",
    "probabilities": {"calm": 0.9, "wild": 0.1},
    "flags": [],
    "method": "gradient",
    "heat_map": None,
    "legend": [],
    "words": [{"text": "one", "weight": 1.0, "rank": 1, "read": True}],
    "text_share": None,
}


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        yield browser
        browser.close()


@dataclass
class Window:
    """A page, the hosts that it asked for, and what failed in it: errors of scripts and of the security policy."""

    page: Page
    hosts: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


@contextmanager
def window(browser: Browser, **options: Any) -> Iterator[Window]:
    """A page in a context of its own. Afterwards: it asked nobody but 127.0.0.1, and nothing has failed in it."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    context.add_init_script(_WATCH)
    opened = Window(context.new_page())

    def asked(url: str) -> None:
        if urlsplit(url).scheme not in ("data", "blob", "file"):
            opened.hosts.add(urlsplit(url).hostname or url)

    def said(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            opened.faults.append(message.text)

    opened.page.on("request", lambda request: asked(request.url))
    opened.page.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.page.on("console", said)
    yield opened
    context.close()
    assert opened.hosts <= {"127.0.0.1"}
    assert opened.faults == []


def visit(page: Page, address: str) -> None:
    page.goto(address)
    page.locator("#examples").wait_for()  # the last of what it loads


def png(width: int = 31, height: int = 29, colour: str = "teal") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(data, "PNG")
    return data.getvalue()


def fill(page: Page, image: bytes | None, text: str | None, name: str = "photo.jpg") -> None:
    if image is not None:
        page.locator("#file").set_input_files({"name": name, "mimeType": "image/jpeg", "buffer": image})
        expect(page.locator("#photo-name")).to_contain_text(name)
    if text is not None:
        page.get_by_label("Text", exact=True).fill(text)


def submit(page: Page) -> None:
    page.get_by_role("button", name="Read the post").click()


def shown(page: Page) -> dict[str, float]:
    """The probabilities as they stand in the page, once it has answered."""
    bars = page.locator("#answer .odds li")
    bars.first.wait_for()
    expect(page.locator("#form")).to_have_attribute("aria-busy", "false", timeout=PATIENCE)
    return {bar.get_attribute("data-label"): float(bar.get_attribute("data-probability")) for bar in bars.all()}


def problem(page: Page) -> str:
    message = page.get_by_role("alert")
    message.wait_for()
    return message.inner_text()


def answers(page: Page, **changes: Any) -> None:
    """From now on the page gets this answer, and not the server's."""
    replies(page, json={**ANSWER, **changes})


def replies(page: Page, **response: Any) -> None:
    """From now on the page gets this response, and not the server's."""
    page.route("**/explain", lambda route: route.fulfill(**response))
