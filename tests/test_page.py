"""The page in a real browser, as a person uses it. Needs Debian's chromium; nothing may leave loopback."""

import base64
import io
import os

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from fusion.predict import RawPost
from tests.browser import PATIENCE, chromium, needs_chromium, window
from tests.test_predict import raw

pytestmark = needs_chromium
# Another number of threads sums in another order and moves a float16 feature by a step now and then: 1.2e-5 was seen.
EQUAL = 1e-4
FILE = """([data, name, type]) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, {type}));
  window.files = files;
}"""
DRAG = "kind => document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: files, bubbles: true}))"
PASTE = "() => document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: files, bubbles: true}))"
ANSWER = {
    "label": "calm",
    "probabilities": {"calm": 0.9, "wild": 0.1},
    "flags": [],
    "method": "gradient",
    "heat_map": None,
    "legend": [],
    "words": [{"text": "one", "weight": 1.0, "rank": 1, "read": True}],
    "text_share": None,
}


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser, server):
    with window(browser, viewport={"width": 1280, "height": 900}) as opened:
        visit(opened.page, server[0])
        yield opened


@pytest.fixture
def page(opened):
    return opened.page


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


def answers(page: Page, **changes) -> None:
    """From now on the page gets this answer, and not the server's."""
    replies(page, json={**ANSWER, **changes})


def replies(page: Page, **response) -> None:
    page.route("**/explain", lambda route: route.fulfill(**response))


def test_a_photo_and_a_text_get_the_probabilities_of_predict(page, predictor, drawn_posts):
    post = drawn_posts[1]
    with page.expect_file_chooser() as dialogue:
        page.get_by_role("button", name="Choose a photo").click()
    dialogue.value.set_files(post.image)
    fill(page, None, post.text)
    submit(page)
    found = shown(page)
    (expected,) = predictor.predict([raw(post)])
    assert found == pytest.approx(expected.probabilities, abs=EQUAL)
    assert list(found) == sorted(expected.probabilities, key=expected.probabilities.get, reverse=True)
    expect(page.locator("#answer .label")).to_have_text(expected.label)
    for label, share in expected.probabilities.items():
        bar = page.locator(f"#answer li[data-label={label}]")
        expect(bar).to_contain_text(f"{100 * share:.1f} %")
        track, width = (bar.locator(part).bounding_box()["width"] for part in (".track", "i"))
        assert width == pytest.approx(max(2, share * track), abs=1)
    heat = page.get_by_role("img", name="heat map")
    assert heat.evaluate("image => image.complete && image.naturalWidth") > 50
    words = page.locator("#answer .words > span")
    assert [word.evaluate("span => span.firstChild.textContent") for word in words.all()] == post.text.split()
    expect(page.locator("#answer .words .rank")).to_have_count(3)


def test_the_text_may_be_changed_and_asked_again(page, predictor, drawn_posts):
    image = drawn_posts[2].image.read_bytes()
    fill(page, image, "what a lovely surprise")
    submit(page)
    first = shown(page)
    fill(page, None, "the worst day of all")
    submit(page)
    expect(page.locator("#history li")).to_have_count(2)
    (expected,) = predictor.predict([RawPost("", "the worst day of all", image)])
    assert shown(page) == pytest.approx(expected.probabilities, abs=EQUAL)
    assert shown(page) != first


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photo_may_be_dropped_or_pasted_anywhere(page, predictor, way):
    image = png()
    page.evaluate(FILE, [base64.b64encode(image).decode(), "square.png", "image/png"])
    if way == "drop":
        page.evaluate(DRAG, "dragover")
        expect(page.locator("#drop")).to_have_class("drop over")
        page.evaluate(DRAG, "drop")
        expect(page.locator("#drop")).to_have_class("drop")
    else:
        page.evaluate(PASTE)
    expect(page.locator("#photo-name")).to_have_text(f"square.png, {len(image)} bytes")
    fill(page, None, "a square")
    submit(page)
    (expected,) = predictor.predict([RawPost("", "a square", image)])
    assert shown(page) == pytest.approx(expected.probabilities, abs=EQUAL)


def test_a_dropped_address_is_not_fetched(page):
    page.evaluate(
        """() => {
          const address = new DataTransfer();
          address.setData('text/uri-list', 'http://203.0.113.7/photo.jpg');
          document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: address, bubbles: true}));
        }"""
    )
    assert "Addresses are not fetched" in problem(page)


def test_the_keyboard_alone_leads_from_the_page_to_the_answer_and_back(page, drawn_posts):
    def tab_to(name: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("() => document.activeElement.id") == name:
                assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        raise AssertionError(f"the tabulator does not reach {name}")

    page.on("filechooser", lambda dialogue: dialogue.set_files(drawn_posts[0].image))
    tab_to("choose")
    page.keyboard.press("Enter")
    expect(page.locator("#chosen")).to_be_visible()
    tab_to("text")
    page.keyboard.type("all by keys")
    tab_to("ask")
    page.keyboard.press("Enter")
    shown(page)
    expect(page.locator("#answer-title")).to_be_focused()
    tab_to("forget")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#answer-title")).to_be_focused()
    page.get_by_label("Text", exact=True).focus()
    page.keyboard.type(" again")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#history li")).to_have_count(2)
    page.locator("#remove").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#choose")).to_be_focused()


def test_an_example_fills_the_post(page):
    example = page.locator("#examples button").nth(1)
    example.click()
    expect(page.get_by_label("Text", exact=True)).to_have_value(example.inner_text())
    expect(page.locator("#ask")).to_be_focused()
    submit(page)
    assert sum(shown(page).values()) == pytest.approx(1, abs=1e-5)
    expect(page.get_by_role("img", name="heat map")).to_be_visible()


def test_markup_in_a_text_and_in_a_name_stays_text(page, drawn_posts):
    text = "<script>document.title='run'</script> <img src=x onerror=\"document.title='run'\"> </span><b>bold</b>"
    name = "<img src=x onerror=document.title='run'>.jpg"
    fill(page, drawn_posts[0].image.read_bytes(), text, name)
    submit(page)
    shown(page)
    expect(page.locator("#photo-name")).to_contain_text(name)
    expect(page.locator("#answer .words")).to_contain_text("<script>document.title='run'</script>")
    expect(page.locator("#history")).to_contain_text("</span><b>bold</b>")
    expect(page.locator("#app script, #answer .words b:not(.rank), img[src=x]")).to_have_count(0)
    assert page.title() == "mscf: what does a post say?"


def test_labels_may_be_many_and_long_and_hold_markup(page):
    page.set_viewport_size({"width": 360, "height": 740})
    names = ["<b>bold</b>", "שלום", "d" * 300, *(f"label {i}" for i in range(97))]
    answers(page, label=names[0], probabilities={name: (100 - i) / 5050 for i, name in enumerate(names)})
    fill(page, png(), "one two")
    submit(page)
    assert list(shown(page)) == names
    expect(page.locator("#answer .label")).to_have_text("<b>bold</b>")
    bars = page.locator("#answer .odds li")
    expect(bars.locator("visible=true")).to_have_count(10)
    page.get_by_role("button", name="Show all 100 labels").click()
    expect(bars.locator("visible=true")).to_have_count(100)
    expect(page.get_by_role("button", name="Show the first 10")).to_have_attribute("aria-expanded", "true")
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360


def test_between_words_stands_what_stood_there_in_the_post(page):
    text = "שלום  עולם\n😀 我喜歡 " + 40 * "long"
    words = [
        {"text": word, "weight": 0, "rank": None, "read": True}
        for word in ("שלום", "עולם", "😀", *"我喜歡", 40 * "long")
    ]
    page.set_viewport_size({"width": 360, "height": 740})
    answers(page, words=words)
    fill(page, png(), text)
    submit(page)
    shown(page)
    shaded = page.locator("#answer .words")
    assert shaded.text_content() == text
    assert shaded.evaluate("words => getComputedStyle(words).direction") == "rtl"
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360


def test_what_the_server_flags_is_said_in_sentences(page):
    answers(page, flags=["rotated", "<new>"], words=[], heat_map=None)
    fill(page, png(), "one")
    submit(page)
    shown(page)
    expect(page.locator("#answer .notes li")).to_have_text(
        ["The photo was turned upright, as its camera noted.", "<new>"]
    )
    expect(page.locator("#answer")).to_contain_text("no heat map and no word weights")


def test_a_bad_file_gets_the_servers_line(page):
    fill(page, b"\xff\xd8 this is no photo", "a text")
    expect(page.locator("#no-preview")).to_be_visible()
    submit(page)
    assert "image: " in problem(page)
    expect(page.locator("#history")).to_be_hidden()
    fill(page, png(), None)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_what_would_be_refused_is_not_sent(page, tmp_path):
    large = tmp_path / "<b>.png"
    with large.open("wb") as file:
        file.truncate(21 << 20)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    submit(page)
    assert problem(page) == "Not sent: this run needs a photo and a text."
    fill(page, None, "only a text")
    submit(page)
    expect(page.get_by_role("alert")).to_have_text("Not sent: this run needs a photo.")
    page.locator("#file").set_input_files(large)
    expect(page.get_by_role("alert")).to_have_text("Not sent: <b>.png has 21 MiB; this server takes up to 20 MiB.")
    fill(page, png(), "é" * 9_001)
    expect(page.locator("#count-spoken")).to_have_text("9,001 of 10,000 characters")
    fill(page, None, "é" * 10_001)
    submit(page)
    expect(page.get_by_role("alert")).to_have_text("Not sent: the text is longer than 10,000 characters.")
    os.truncate(large, 20 << 20)
    page.locator("#file").set_input_files(large)
    expect(page.locator("#photo-name")).to_have_text("<b>.png, 20 MiB")
    fill(page, None, "one")
    submit(page)
    expect(page.get_by_role("alert")).to_have_text("Not sent: photo and text are more than 20 MiB together.")
    assert [url for url in sent if not url.startswith("blob:")] == []


def test_the_last_eight_answers_are_kept_in_the_page_alone(page):
    fill(page, png(), "")
    for number in range(9):
        answers(page, label=f"label {number}", probabilities={f"label {number}": 0.75, "other": 0.25})
        fill(page, None, f"post {number}")
        submit(page)
        expect(page.locator("#answer .label")).to_have_text(f"label {number}")
    kept = page.locator("#history button:not(#forget)")
    expect(kept).to_have_count(8)
    expect(kept.first.locator("img")).to_be_visible()
    kept.last.click()
    expect(page.locator("#answer .label")).to_have_text("label 1")
    expect(kept.last).to_have_attribute("aria-current", "true")
    assert page.evaluate("() => [localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    page.reload()
    page.locator("#examples").wait_for()
    expect(page.locator("#history")).to_be_hidden()
    expect(page.get_by_label("Text", exact=True)).to_have_value("")


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_a_request_can_be_cancelled(page, way):
    held: list[Route] = []
    page.route("**/explain", lambda route: held.append(route))
    fill(page, png(), "one")
    submit(page)
    expect(page.locator("#form")).to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("status")).to_have_text("Reading the post …")
    if way == "button":
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#ask")).to_be_focused()
    else:
        page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Cancelled.")
    expect(page.locator("#cancel")).to_be_hidden()
    expect(page.locator("#history")).to_be_hidden()


def test_a_second_request_takes_the_place_of_the_first(page):
    ended: list[str] = []
    page.on("requestfailed", lambda request: ended.append(request.failure))
    page.route("**/explain", lambda route: None)
    fill(page, png(), "one")
    page.locator("#ask").click()
    answers(page, label="wild")
    page.locator("#ask").click()
    expect(page.locator("#answer .label")).to_have_text("wild")
    expect(page.locator("#history li")).to_have_count(1)
    assert ended == ["net::ERR_ABORTED"]


def test_a_busy_a_failing_and_a_stopped_server_get_a_message_and_the_post_is_kept(page):
    fill(page, png(), "one")
    busy = {"status": 503, "headers": {"Retry-After": "7"}, "json": {"detail": "too many requests"}}
    failing = {"status": 502, "body": "<h1>Bad gateway</h1>"}
    lines = "too many requests (try again in 7 s)", "the server answered with status 502"
    for what, line in zip((busy, failing), lines, strict=True):
        replies(page, **what)
        submit(page)
        expect(page.get_by_role("alert")).to_have_text(line)
    page.route("**/explain", lambda route: route.abort("connectionrefused"))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    page.unroute("**/explain")
    submit(page)
    shown(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_an_error_in_the_page_is_shown(opened):
    opened.page.evaluate("() => void setTimeout(() => { throw new Error('boom'); })")
    assert "Something in this page went wrong (boom)" in problem(opened.page)
    assert opened.faults == ["boom"]
    opened.faults.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_has_one_column_and_no_horizontal_scroll(browser, server, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    with window(browser, **phone) as opened:
        page = opened.page
        visit(page, server[0])
        fill(page, png(), "one two three")
        submit(page)
        shown(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360
        post, answer = (page.locator(part).bounding_box() for part in ("#form", "#answer"))
        assert post["x"] == answer["x"]
        ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 31)")


def test_the_answer_is_printed_and_the_controls_are_not(page):
    page.locator("#examples button").first.click()
    submit(page)
    shown(page)
    page.emulate_media(media="print")
    for part in ("#form", "#examples", "#history", "#destination"):
        expect(page.locator(part)).to_be_hidden()
    for part in ("#answer .label", "#answer .heat img", "#answer .words", "#about"):
        expect(page.locator(part)).to_be_visible()


def test_who_gets_the_post_is_said(browser, page, server):
    expect(page.locator("#destination")).to_have_text("Nothing leaves this machine.")
    context = browser.new_context()
    far = context.new_page()
    name = "http://posts.example"
    far.route(
        f"{name}/**",
        lambda route: route.fulfill(response=context.request.get(route.request.url.replace(name, server[0]))),
    )
    visit(far, name)
    expect(far.locator("#destination")).to_have_text("A post is sent to posts.example, without encryption.")
    context.close()


def test_a_run_that_reads_no_image_asks_for_none(browser, server):
    with window(browser) as opened:
        known = opened.page.request.get(f"{server[0]}/model").json()
        changed = {"reads": {"image": False, "text": True}, "needs": {"image": False, "text": False}}
        opened.page.route("**/model", lambda route: route.fulfill(json={**known, **changed}))
        answers(opened.page)
        visit(opened.page, server[0])
        expect(opened.page.locator("#photo-field")).to_be_hidden()
        submit(opened.page)
        assert problem(opened.page) == "Not sent: there is neither a photo nor a text yet."
        opened.page.locator("#examples button").first.click()
        submit(opened.page)
        assert shown(opened.page) == ANSWER["probabilities"]


def test_without_javascript_the_page_says_how_to_ask(browser, server):
    with window(browser, java_script_enabled=False) as opened:
        opened.page.goto(server[0])
        expect(opened.page.get_by_text("This page needs JavaScript")).to_be_visible()
        expect(opened.page.locator("#form")).to_be_hidden()
