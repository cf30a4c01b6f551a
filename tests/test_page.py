"""The page in a real browser, as a person uses it. Needs Debian's chromium; nothing may leave loopback."""

import io
import shutil
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from fusion.predict import RawPost
from pipeline.records import LABELS
from tests.test_predict import raw
from tests.test_serve import EQUAL, files_of

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 60_000  # ms: other work may share the machine


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """The page, open. Ends by looking at every address that the browser asked for."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(server[0])
    page.get_by_role("button", name="Read the post").wait_for()
    yield page
    page.close()
    hosts = {urlsplit(url).hostname for url in asked if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}
    assert failed == []


def fill(page: Page, image: bytes | None, text: str | None, name: str = "photo.jpg") -> None:
    if image is not None:
        page.locator("input[type=file]").first.set_input_files(
            {"name": name, "mimeType": "image/jpeg", "buffer": image}
        )
        page.wait_for_function("document.querySelector('[data-testid=image] img, .image-frame img, img[alt=\"\"]')")
    if text is not None:
        page.get_by_label("Text").fill(text)


def submit(page: Page) -> None:
    page.get_by_role("button", name="Read the post").click()


def shown(page: Page) -> dict[str, float]:
    """The probabilities as they stand in the page."""
    bars = page.locator("#answer .share")
    expect(bars).to_have_count(3, timeout=PATIENCE)
    return {
        bars.nth(i).get_attribute("data-label"): float(bars.nth(i).get_attribute("data-probability")) for i in range(3)
    }


def test_upload_type_submit_and_see_what_predict_says(page, predictor, drawn_posts):
    post = drawn_posts[1]
    fill(page, post.image.read_bytes(), post.text)
    submit(page)
    found = shown(page)
    (expected,) = predictor.predict([raw(post)])
    assert list(found) == list(LABELS)
    assert found == pytest.approx(expected.probabilities, abs=EQUAL)
    expect(page.locator("#answer .label")).to_have_text(expected.label)
    for label in LABELS:
        expect(page.locator(f"#answer .row.{label} .share")).to_have_text(f"{expected.probabilities[label]:.1%}")
    heat = page.locator("#answer img")
    expect(heat).to_have_count(1)
    assert heat.evaluate("image => image.complete && image.naturalWidth") > 50
    words = page.locator("#answer .words > span")
    assert [word.evaluate("span => span.firstChild.textContent") for word in words.all()] == post.text.split()


def test_the_text_may_be_changed_and_asked_again(page, predictor, drawn_posts):
    image = drawn_posts[2].image.read_bytes()
    fill(page, image, "what a lovely surprise")
    submit(page)
    first = shown(page)
    fill(page, None, "the worst day of all")
    submit(page)
    page.wait_for_function(
        "before => document.querySelector('#answer .share').dataset.probability != before",
        arg=page.locator("#answer .share").first.get_attribute("data-probability"),
    )
    (expected,) = predictor.predict([RawPost("", "the worst day of all", image)])
    assert shown(page) == pytest.approx(expected.probabilities, abs=EQUAL)
    assert shown(page) != first


def test_an_example_is_a_click_away(page):
    page.locator("tbody tr, .gallery-item").first.click()
    expect(page.get_by_label("Text")).not_to_have_value("")
    submit(page)
    assert sum(shown(page).values()) == pytest.approx(1, abs=1e-5)


def test_script_tags_are_shown_and_not_run(page, drawn_posts):
    text = "<script>document.title='run'</script> <img src=x onerror=\"document.title='run'\"> </span><b>bold</b>"
    fill(page, drawn_posts[0].image.read_bytes(), text)
    submit(page)
    shown(page)
    expect(page.locator("#answer .words")).to_contain_text("<script>document.title='run'</script>")
    expect(page.locator("#answer .words")).to_contain_text("</span><b>bold</b>")
    expect(page.locator("#answer script, #answer b, #answer img[src=x]")).to_have_count(0)
    assert page.title() == "mscf"


def problem(page: Page) -> str:
    message = page.locator("#answer [role=alert]")
    message.wait_for(timeout=PATIENCE)
    return message.inner_text()


def test_a_bad_file_gets_a_message_and_is_not_kept(page, server):
    before = files_of(server[2])
    fill(page, b"\xff\xd8 this is no photo", "a text")
    submit(page)
    assert "image: not an image" in problem(page)
    assert files_of(server[2]) == before


def test_no_text_and_no_photo_get_a_message(page):
    data = io.BytesIO()
    Image.new("RGB", (31, 29), "teal").save(data, "PNG")
    submit(page)
    assert "neither text nor image" in problem(page)
    fill(page, None, "only a text")
    submit(page)
    expect(page.locator("#answer [role=alert]")).to_contain_text("image: none", timeout=PATIENCE)
    fill(page, data.getvalue(), "", "square.png")
    submit(page)
    expect(page.locator("#answer [role=alert]")).to_contain_text("text: none", timeout=PATIENCE)
