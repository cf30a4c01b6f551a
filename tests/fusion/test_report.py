"""The report as a person gets it: one file, nothing fetched, nothing injected, the evaluation's own figures."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.config import Config
from fusion.evaluation.calibration import arrays_of, reliability
from fusion.explanation.explain import DEFAULT_METHOD
from fusion.report import cards
from fusion.report import run_report as page
from fusion.report.gallery import most_wrong, view_cached_posts, write_gallery
from fusion.report.plots import reliability_diagram
from fusion.run import Run
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import invoke, refused
from tests.helpers.reported_run import ToyTokenizer, make_run

CPU = torch.device("cpu")
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        run = make_run(folder, "epochs=3", monkeypatch=patch)
        summary = page.write_report(run, folder / "report.html", CPU, worst=9)
        shown, looks = view_cached_posts([run, run], ["31", "33"], CPU)
        write_gallery(folder / "gallery", shown, looks)
    return run, folder / "report.html", summary, folder / "gallery"


@pytest.mark.parametrize("planted", [b"root:x:0:0:secret", "29.png", None])
def test_a_picture_that_is_not_the_one_of_the_features_is_not_shown(planted, reported, tmp_path, monkeypatch):
    """A cache may name any file of this machine."""
    run, *_ = reported
    path = run.folder.parent / "31.png"
    whole = path.read_bytes()
    monkeypatch.setattr(
        "fusion.report.gallery.same_text_encoder", lambda *_, **__: ToyTokenizer(Cache(run.cache_folder))
    )
    try:
        if planted is None:
            path.unlink()
        else:
            path.write_bytes(planted if isinstance(planted, bytes) else (path.parent / planted).read_bytes())
        shown, looks = view_cached_posts([run], ["31", "32"], CPU)
    finally:
        path.write_bytes(whole)
    reason = "No such file or directory" if planted is None else "the file has changed since extraction"
    assert shown[0].picture == f"31.png: {reason}"
    assert shown[1].picture.size == (52, 30)
    write_gallery(tmp_path, shown, looks)
    html = (tmp_path / "index.html").read_text()
    assert f"no picture: <bdi>31.png: {reason}</bdi>" in html
    assert "secret" not in html
    assert [file.name for file in (tmp_path / "heat").iterdir()] == ["002-1.jpg"]


class Page(HTMLParser):
    """Every tag with its attributes, and the text between."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += f" {data}"


@pytest.mark.parametrize("which", ["report", "gallery"])
def test_nothing_is_fetched_and_nothing_is_injected(reported, which):
    _, report, _, gallery = reported
    html = (report if which == "report" else gallery / "index.html").read_text(encoding="utf-8")
    parsed = Page(html)
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/", "#"))
    assert not re.search(r"url\(\s*['\"]?\s*(?!#)", html)
    assert "@import" not in html
    assert '<script>alert("x")</script>' in parsed.text  # as text
    assert any(attributes.get("src", "").startswith("data:image/jpeg") for _, attributes in parsed.tags)


def test_every_section_is_there_and_reachable(reported):
    parsed = Page(reported[1].read_text(encoding="utf-8"))
    anchors = [attributes["href"][1:] for tag, attributes in parsed.tags if tag == "a"]
    assert anchors == ["scores", "classes", "training", "calibration", "wrong", "config", "fingerprint"]
    assert [attributes["id"] for tag, attributes in parsed.tags if tag == "h2"] == anchors
    drawings = [attributes["aria-label"] for tag, attributes in parsed.tags if tag == "svg"]
    assert drawings == [
        "Validation scores", "Classification loss (nats)", "Masked-language loss (nats)", "Reliability diagram"
    ]  # fmt: skip
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len([one for one in ids if one in anchors]) == len(anchors)


def test_the_figures_are_the_evaluations(reported):
    run, report, summary, _ = reported
    evaluation = run.evaluation("test")
    text = " ".join(Page(report.read_text(encoding="utf-8")).text.split())
    for name in page.SCORES:
        assert f"{100 * evaluation[name]:.2f} %" in text
        low, high = evaluation["interval"][name]
        assert f"{100 * low:.1f} to {100 * high:.1f}" in text
        assert f"{100 * evaluation['versus_probe']['difference'][name]:+.2f}" in text
        assert f"{100 * evaluation['controls']['image_shuffled'][name]:.2f}" in text
        assert summary[name] == evaluation[name]
    for label, one in evaluation["per_class"].items():
        shares = " ".join(f"{100 * one[name]:.1f}" for name in ("precision", "recall", "f1"))
        assert f"{label} {shares} {one['support']}" in text
    for label, counts in zip(LABELS, evaluation["confusion"]["counts"], strict=True):
        shown = " ".join(f"{count} {100 * count / sum(counts):.0f} %" for count in counts)
        assert f"{label} {shown}" in text
    assert f"layers 1 default {Config().layers}" in text
    assert "image.transform.crop_pct 0.8" in text


def test_the_worst_posts_are_those_whose_label_got_least(reported):
    run, report, summary, _ = reported
    posts = run.evaluation("test")["posts"]
    given = [post["probabilities"][post["label"]] for post in posts]
    assert summary["explained"] == [posts[i]["id"] for i in np.argsort(given, kind="stable")[:9]]
    assert summary["explained"] == most_wrong(run.evaluation("test"), 9)
    parsed = Page(report.read_text(encoding="utf-8"))
    assert parsed.text.count("no picture:") == sum(int(id_) % 3 == 0 for id_ in summary["explained"]) > 0
    assert parsed.text.count("✗ wrong") + parsed.text.count("✓ right") == 9


def test_weights_show_without_colour(reported):
    """Ranks on the strongest words, and underlines that follow the weight."""
    parsed = Page(reported[1].read_text(encoding="utf-8"))
    weights = [float(a["style"].removeprefix("--s: ")) for _, a in parsed.tags if "w" in a.get("class", "").split()]
    assert weights
    assert min(weights) >= 0
    assert max(weights) == 1
    assert sum(a.get("class") == "rank" for _, a in parsed.tags) > 9
    css = (Path(cards.__file__).parent / "style.css").read_text(encoding="utf-8")
    assert "border-bottom: calc(var(--s) * 4px)" in css
    for query in ("@media print", "prefers-color-scheme: dark", "max-width"):
        assert query in css


def test_the_gallery_holds_the_same_as_its_json_and_pictures(reported):
    gallery = reported[3]
    data = json.loads((gallery / "explanations.json").read_text(encoding="utf-8"))
    assert [post["id"] for post in data["posts"]] == ["31", "33"]
    assert [len(post["runs"]) for post in data["posts"]] == [2, 2]
    first, missing = data["posts"]
    assert first["runs"][0]["words"] == first["runs"][1]["words"]
    assert {run["picture"] for run in missing["runs"]} == {None}  # the image of post 33 is not there
    for run in first["runs"]:
        with Image.open(gallery / run["picture"]) as picture:
            assert picture.size == (51, 30)


@pytest.mark.parametrize(
    "settings",
    [("mlm=false", "epochs=1"), ("modalities=text", "mlm=false", "epochs=1"),
     ("modalities=image", "mlm=false", "epochs=1"), ("cross_attention=false", "mlm=false", "epochs=1")],
)  # fmt: skip
def test_every_kind_of_run_can_be_reported(tmp_path, monkeypatch, settings):
    run = make_run(tmp_path, *settings, monkeypatch=monkeypatch)
    page.write_report(run, tmp_path / "report.html", CPU, worst=2)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Masked-language" not in html
    assert ("this run does not look at the image" in html) == ("modalities=text" in settings)
    assert ("of the strongest word" in html) == ("modalities=image" not in settings)


def test_without_an_evaluation_it_says_which_command_makes_one(reported, tmp_path):
    run = reported[0]
    with pytest.raises(InputError, match=r"evaluation-val.json: no such file; run evaluate\(\)"):
        page.write_report(run, tmp_path / "report.html", CPU, split="val")
    assert not (tmp_path / "report.html").exists()


def test_it_can_do_without_posts(reported, tmp_path):
    assert page.write_report(reported[0], tmp_path / "report.html", CPU, worst=0)["explained"] == []


def test_without_the_cache_the_rest_is_reported(reported, tmp_path):
    run = reported[0]
    summary = page.write_report(run, tmp_path / "report.html", CPU, cache=tmp_path / "gone")
    assert summary["explained"] == []
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert f"Not shown:  {tmp_path / 'gone'}: no such cache" in text
    assert f"{100 * run.evaluation('test')['accuracy']:.2f} %" in text


def test_calibration_by_hand():
    """0.7 and 0.65 share a bin (one right of two), 0.4 is right alone: 2/3 |1/2 - 0.675| + 1/3 |1 - 0.4| = 0.31667."""
    posts = [
        {"label": "positive", "probabilities": {"positive": 0.7, "neutral": 0.2, "negative": 0.1}},
        {"label": "negative", "probabilities": {"positive": 0.65, "neutral": 0.25, "negative": 0.1}},
        {"label": "neutral", "probabilities": {"positive": 0.3, "neutral": 0.4, "negative": 0.3}},
    ]
    bins, error = reliability(*arrays_of(posts))
    assert [(one.low, one.high, one.posts) for one in bins] == [(0.3, 0.4, 1), (0.6, 0.7, 2)]
    assert [one.accuracy for one in bins] == [1, 0.5]
    assert [one.confidence for one in bins] == pytest.approx([0.4, 0.675])
    assert error == pytest.approx(0.95 / 3)


def test_drawings_take_the_pages_colour_and_have_no_size_of_their_own():
    drawing = reliability_diagram(
        reliability(*arrays_of([{"label": "neutral", "probabilities": {"neutral": 1.0, "positive": 0.0}}]))[0]
    )
    head = drawing[: drawing.index(">")]
    assert "viewBox" in head
    assert " width=" not in head
    assert "currentColor" in drawing
    assert not re.search(r"<style|<metadata|#000000", drawing)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_it_opens_in_a_browser_and_fits_its_width(reported, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}; apt-get install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        tab = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        ).new_page()
        trouble = []
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("console", lambda message: trouble.append(message.text))
        tab.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: trouble.append(request.url) if request.url.startswith("http") else None)
        for file in (reported[1], reported[3] / "index.html"):
            tab.goto(file.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert trouble == []
        browser.close()


def test_the_commands_write_once_and_say_where(reported, tmp_path, monkeypatch):
    run, *_ = reported
    tokenizer = ToyTokenizer(Cache(Path(run.metadata["cache"])))
    for module in ("fusion.report.run_report", "fusion.report.gallery"):
        monkeypatch.setattr(f"{module}.same_text_encoder", lambda *_, **__: tokenizer)
    out, summary = tmp_path / "report.html", tmp_path / "summary.json"
    output = invoke("report", run.folder, "--out", out, "--worst", 2, "--json", summary)
    assert f"wrote {out}" in output
    assert json.loads(summary.read_text())["explained"] == most_wrong(run.evaluation("test"), 2)
    assert "already exists" in refused("report", run.folder, "--out", out)
    gallery = tmp_path / "gallery"
    output = invoke("explain", run.folder, "--worst", 3, "--out", gallery, "--compare", run.folder)
    assert f"wrote {gallery / 'index.html'}: 3 posts, 2 runs, method {DEFAULT_METHOD}" in output
    assert "already exists" in refused("explain", run.folder, "--ids", "1", "--out", gallery)
    assert "--ids nobody: no such post" in refused("explain", run.folder, "--ids", "1,nobody", "--out", tmp_path / "g")
    invoke("explain", run.folder, "--out", gallery, code=2)
    invoke("explain", run.folder, "--ids", " ,", "--out", gallery, code=2)
    invoke("explain", run.folder, "--ids", "31", "--out", gallery, "--overwrite", "--quiet")
    assert [file.name for file in (gallery / "heat").iterdir()] == ["001-1.jpg"]  # nothing of the earlier one is left
    invoke("explain", run.folder, "--ids", "1", "--worst", 2, "--out", gallery, code=2)
    invoke("explain", run.folder, "--faithfulness", "--out", gallery, code=2)


def test_a_run_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        page.write_report(Run(tmp_path), tmp_path / "report.html", CPU)
