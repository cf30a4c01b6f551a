"""Debian's chromium for tests: pages that note what goes wrong in them and which addresses they ask for."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
PATIENCE = 60_000  # ms: other work may share the machine
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_WATCH = """addEventListener("securitypolicyviolation", (violation) =>
  console.error(`policy: ${violation.violatedDirective} ${violation.blockedURI}`))"""


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
