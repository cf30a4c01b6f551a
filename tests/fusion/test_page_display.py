"""What the page shows of answers, refusals and faults, on screens of every kind, and that hostile text stays text."""

import os

import pytest
from playwright.sync_api import expect

from tests.helpers.browser import (
    ANSWER,
    answers,
    fill,
    needs_chromium,
    png,
    problem,
    replies,
    shown,
    submit,
    visit,
    window,
)

pytestmark = needs_chromium


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
        visit(page, server.address)
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
    address = server.address.replace("127.0.0.1", "box.lan")
    visit(far, address)
    expect(far.locator("#destination")).to_have_text(f"A post is sent to {address[7:]}, without encryption.")
    context.close()


def test_a_run_that_reads_no_image_asks_for_none(browser, server):
    with window(browser) as opened:
        known = opened.page.request.get(f"{server.address}/model").json()
        changed = {"reads": {"image": False, "text": True}, "needs": {"image": False, "text": False}}
        opened.page.route("**/model", lambda route: route.fulfill(json={**known, **changed}))
        answers(opened.page)
        visit(opened.page, server.address)
        expect(opened.page.locator("#photo-field")).to_be_hidden()
        submit(opened.page)
        assert problem(opened.page) == "Not sent: there is neither a photo nor a text yet."
        opened.page.locator("#examples button").first.click()
        submit(opened.page)
        assert shown(opened.page) == ANSWER["probabilities"]


def test_without_javascript_the_page_says_how_to_ask(browser, server):
    with window(browser, java_script_enabled=False) as opened:
        opened.page.goto(server.address)
        expect(opened.page.get_by_text("This page needs JavaScript")).to_be_visible()
        expect(opened.page.locator("#form")).to_be_hidden()
