"""axe-core finds nothing wrong with the page, the report and the gallery, in any state, in light and in dark."""

from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page

from fusion.report import run_report as report
from fusion.report.gallery import view_cached_posts, write_gallery
from tests.helpers.browser import answers, fill, needs_chromium, png, shown, submit, visit, window
from tests.helpers.reported_run import make_run

AXE = Path(__file__).parents[2] / ".venv" / "node_modules" / "axe-core" / "axe.min.js"
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
WORDS = [{"text": f"word{i}", "weight": i / 10, "rank": 11 - i if i > 7 else None, "read": i < 11} for i in range(12)]
MANY = {f"label {i}": (12 - i) / 78 for i in range(12)}
CPU = torch.device("cpu")
pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not AXE.is_file(), reason="no axe-core here: npm install --prefix .venv --no-save axe-core"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder of a report and a gallery of posts with and without pictures."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        run = make_run(folder, "epochs=2", monkeypatch=patch)
        report.write_report(run, folder / "report.html", CPU, worst=5)
        for name, runs in (("gallery", [run]), ("several", [run, run])):
            shown, looks = view_cached_posts(runs, ["31", "33"], CPU)
            write_gallery(folder / name, shown, looks)
    return folder


def violations(page: Page) -> list[str]:
    """What axe-core finds: a line for each element."""
    page.add_script_tag(path=AXE)
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    assert len(found["passes"]) > 10  # it has looked
    return [
        f"{one['id']}: {node['html'][:200]}: {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"viewport": {"width": 1280, "height": 900}}, PHONE], ids=["desktop", "phone"])
def test_the_page_is_accessible_in_every_state(browser, server, scheme, size):
    with window(browser, bypass_csp=True, color_scheme=scheme, reduced_motion="reduce", **size) as opened:
        page = opened.page
        visit(page, server.address)
        assert violations(page) == [], "empty"
        submit(page)
        page.get_by_role("alert").wait_for()
        assert violations(page) == [], "refused"
        page.locator("#examples button").first.click()
        submit(page)
        shown(page)
        assert violations(page) == [], "answered"
        page.route("**/explain", lambda route: None)
        page.locator("#ask").click()
        page.locator("#cancel").wait_for()
        assert violations(page) == [], "busy"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_answers_of_every_kind_are_accessible(browser, server, scheme):
    with window(browser, bypass_csp=True, color_scheme=scheme, reduced_motion="reduce") as opened:
        page = opened.page
        visit(page, server.address)
        changes = {"label": "label 0", "probabilities": MANY, "flags": ["truncated", "no_image"], "words": WORDS}
        answers(page, **changes)
        fill(page, png(), "x" * 9_990)
        submit(page)
        shown(page)
        page.get_by_role("button", name="Show all 12 labels").click()
        assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report.html", "gallery/index.html", "several/index.html"])
def test_the_report_and_the_gallery_are_accessible(browser, pages, name, scheme):
    with window(browser, color_scheme=scheme) as opened:
        opened.page.goto((pages / name).as_uri())
        assert violations(opened.page) == []
