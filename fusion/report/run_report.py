"""Writes the report of an evaluated run: one HTML file that can be read offline, on a phone, and printed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fusion.config import Config
from fusion.evaluation.calibration import arrays_of, reliability
from fusion.evaluation.display import MOST_CLASSES, score_rows, shown_scores, top_confusions
from fusion.evaluation.metrics import SCORES
from fusion.explanation.explain import DEFAULT_METHOD, cache_of, explain_cached, features_of_posts
from fusion.report.cards import Card, card, render
from fusion.report.gallery import most_wrong, name_of, rows_of
from fusion.report.plots import curves, reliability_diagram
from fusion.run import Run
from pipeline.common.errors import InputError
from pipeline.encoders.from_fingerprint import same_text_encoder
from pipeline.extraction.sources import Sources

WORST = 12


def write_report(
    run: Run,
    path: str | Path,
    device: torch.device,
    *,
    split: str = "test",
    worst: int = WORST,
    method: str = DEFAULT_METHOD,
    cache: str | Path | None = None,
    image_weights: Path | None = None,
    text_encoder: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the report of a run; what stands in it, in short, is returned: `not_explained` is why no post is explained.

    The posts it got most wrong are explained where the cache is still there; their pictures are shown where the image
    files are. `say` gets a line for what is not as it was when the run was trained. Raises InputError if the run was
    not evaluated on the split.
    """
    path, evaluation, facts = Path(path), run.evaluation(split), run.metadata
    bins, error = reliability(*arrays_of(evaluation["posts"]))
    labels = {post["id"]: post["label"] for post in evaluation["posts"]}
    wrong = {id_: labels[id_] for id_ in most_wrong(evaluation, worst)}
    cards, trouble = _worst(run, wrong, device, method, cache, image_weights, text_encoder, say)
    shares = [[count / max(1, sum(row)) for count in row] for row in evaluation["confusion"]["counts"]]
    render(
        "report.html.j2",
        path,
        name=name_of(run),
        facts=facts,
        result=evaluation,
        scores=shown_scores(evaluation),
        labels=list(evaluation["per_class"]),
        few=len(shares) <= MOST_CLASSES,
        confusions=top_confusions(evaluation),
        shares=shares,
        rows=score_rows(evaluation),
        plots=[] if run.members else curves(run.metrics(), facts["best_epoch"]),
        members=[(member.config, member.metadata) for member in run.members],
        diagram=reliability_diagram(bins),
        bins=bins,
        error=error,
        cards=cards,
        trouble=trouble,
        method=method,
        config=_settings(run),
        fingerprint=list(_flat(facts["fingerprint"])),
    )
    return {
        "report": str(path),
        "split": split,
        **{name: evaluation[name] for name in SCORES},
        "expected_calibration_error": error,
        "explained": [one.id for one in cards],
        **({"not_explained": trouble} if trouble else {}),
    }


def _worst(
    run: Run,
    labels: dict[str, str],
    device: torch.device,
    method: str,
    cache: str | Path | None,
    image_weights: Path | None,
    text_encoder: str | None,
    say: Callable[[str], None],
) -> tuple[list[Card], str]:
    """Cards of posts, given as id -> label; and what to say in their place if their features, the pictures that these
    are made of again, or the tokenizer can't be had any more.
    """
    if not labels:
        return [], "no posts were asked for"
    try:
        opened = cache_of(run, cache)
        if opened.note:
            say(opened.note)
        rows, model = rows_of(opened, list(labels), evaluated=True), run.load_model(device)
        fingerprint = run.metadata["fingerprint"]["text"]
        encoder = same_text_encoder(fingerprint, str(device), folder=text_encoder, owner=run.folder)
        features = features_of_posts(run, opened.cache, rows, device, encoder, image_weights)
    except InputError as error:
        return [], str(error)
    sources = Sources(opened.cache)
    posts = sources.posts
    view = run.metadata["fingerprint"]["image"]["transform"]
    found = explain_cached(model, opened.cache, rows, device, encoder, method, posts=features)
    return [
        card(
            posts[row].id,
            posts[row].text,
            labels[posts[row].id],
            picture,
            [("Where it looks", "", explanation, view)],
        )
        for row, explanation, picture in zip(rows, found, sources.pictures(rows.tolist()), strict=True)
    ], ""


def _settings(run: Run) -> list[tuple[str, Any, Any, bool]]:
    """Each setting: its name, its value, the default, and whether they differ."""
    defaults = Config().model_dump()
    return [(key, value, defaults[key], value != defaults[key]) for key, value in run.settings().items()]


def _flat(fingerprint: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A nested fingerprint as rows: image.name, image.transform.size, ..."""
    rows: list[tuple[str, Any]] = []
    for key, value in fingerprint.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return rows
