"""Writes a page that shows where one or several runs look, as in table 5, with the same as JSON and every picture as a
file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fusion.explanation.explain import (
    DEFAULT_METHOD,
    Explanation,
    cache_of,
    explain_cached,
    explain_posts,
    features_of_posts,
)
from fusion.inference.predictor import Predictor, RawPost
from fusion.report.cards import as_written, card, render
from fusion.report.heatmap import overlay
from fusion.run import Run, RunCache
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, option
from pipeline.common.files import complete_or_absent, regular_bytes, write_json
from pipeline.common.folders import remove_file, require_no_link
from pipeline.encoders.fingerprint import first_difference, require_images
from pipeline.encoders.from_fingerprint import same_text_encoder
from pipeline.encoders.load import TextEncoder
from pipeline.extraction.sources import Sources, decoding_problem

PAGE, DATA = "index.html", "explanations.json"


@dataclass(frozen=True)
class RunView:
    """One run's explanations of all posts in a gallery. `note`: the settings in which it differs from the first run."""

    title: str
    note: str
    explanations: list[Explanation]
    view: dict[str, Any]  # the image encoder's transform


@dataclass(frozen=True)
class PostView:
    """A post of a gallery. `picture`: upright RGB, or why there is none."""

    id: str
    text: str | None
    label: str | None
    picture: Image.Image | str


def view_cached_posts(
    runs: Sequence[Run],
    ids: Sequence[str],
    device: torch.device,
    *,
    method: str = DEFAULT_METHOD,
    cache: str | Path | None = None,
    image_weights: Path | None = None,
    text_encoder: str | None = None,
    evaluated: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[PostView], list[RunView]]:
    """Posts of the runs' caches by id, as `evaluate` predicts them. Raises InputError on an id that a cache lacks, or
    that is another post in one of them.

    evaluated: the ids come from an evaluation, so each post must still be the one that was evaluated. `say` gets a line
    for what is not as it was when a run was trained.
    """
    _require_same_classes(runs)
    opened = [cache_of(run, cache) for run in runs]
    rows = [rows_of(one, ids, evaluated=evaluated) for one in opened]
    _require_same_posts([one.cache for one in opened], rows)
    models = [run.load_model(device) for run in runs]
    looks: list[RunView] = []
    encoder: TextEncoder | None = None
    for run, model, one, rows_here in zip(runs, models, opened, rows, strict=True):
        if one.note:
            say(one.note)
        fingerprint = run.metadata["fingerprint"]["text"]
        if encoder is None or first_difference(fingerprint, encoder.fingerprint):
            encoder = same_text_encoder(fingerprint, str(device), folder=text_encoder, owner=run.folder)
        features = features_of_posts(run, one.cache, rows_here, device, encoder, image_weights)
        found = explain_cached(model, one.cache, rows_here, device, encoder, method, posts=features)
        looks.append(_look(run, runs[0], found))
    return _shown(opened[0].cache, rows[0]), looks


def view_raw_post(
    predictors: Sequence[Predictor], text: str | None, image: Path | None, method: str
) -> tuple[list[PostView], list[RunView]]:
    """One post that is in no cache: the same as `view_cached_posts`."""
    _require_same_classes([predictor.run for predictor in predictors])
    try:
        post = RawPost(image.stem if image else "text", text, regular_bytes(image) if image else None)
    except OSError as error:
        raise InputError(f"{option('image', image)}: {error.strerror or error}") from None
    looks = []
    picture: Image.Image | str = "none was given"
    for predictor in predictors:
        require_images(predictor.run.metadata["fingerprint"], predictor.run.folder, "explaining needs images")
        if post.image is not None and (problem := decoding_problem(post.image, predictor.image.transform)):
            raise InputError(f"{option('image', image)}: {problem}")
        inputs = predictor.inputs(post)
        picture = inputs.picture or picture
        explanations = explain_posts(predictor, [inputs], method=method)
        looks.append(_look(predictor.run, predictors[0].run, explanations))
    return [PostView(post.id, text, None, picture)], looks


def name_of(run: Run) -> str:
    """A run's folder with the one above it: many are called `run`."""
    return "/".join(run.folder.resolve().parts[-2:])


def rows_of(opened: RunCache, ids: Sequence[str], *, evaluated: bool = False) -> np.ndarray:
    """The rows of posts in a run's cache. Raises InputError naming the first id that has no features there, or that is
    `evaluated` and is another post now.
    """
    cache = opened.cache
    row_of = {id_: row for row, id_ in enumerate(cache.ids)}
    for id_ in ids:
        if id_ not in row_of:
            raise InputError(f"{option('ids', id_)}: no such post in {cache.folder}")
        if not cache.ok[row_of[id_]]:
            raise InputError(
                f"{option('ids', id_)}: this post failed in extraction; see failures.csv in {cache.folder}"
            )
        if evaluated and opened.match.post[row_of[id_]] < 0:
            raise InputError(f"{cache.folder}: post {id_} has another text or image than the one that was evaluated")
    return np.array([row_of[id_] for id_ in ids], np.int64)


def _require_same_classes(runs: Sequence[Run]) -> None:
    """Raises InputError naming a run of another target or of other classes than the first: a page has one label for
    each post.
    """
    first, *others = (run.metadata for run in runs)
    for run, metadata in zip(runs[1:], others, strict=True):
        if metadata["target"] != first["target"] or set(metadata["labels"]) != set(first["labels"]):
            raise InputError(
                f"{run.folder}: learnt the target {metadata['target']!r} with {len(metadata['labels'])} classes, and "
                f"{runs[0].folder} {first['target']!r} with {len(first['labels'])}; explain them one by one"
            )


def _require_same_posts(caches: Sequence[Cache], rows: Sequence[np.ndarray]) -> None:
    """Raises InputError naming a post that is another one in the first cache, whose text and pictures are shown."""
    first, *others = zip(caches, rows, strict=True)
    for cache, found in others:
        for ours, theirs in zip(found, first[1], strict=True):
            post, shown = cache.records[ours], first[0].records[theirs]
            if (post.text_sha256, post.image_sha256) != (shown.text_sha256, shown.image_sha256):
                raise InputError(
                    f"{cache.folder}: post {post.id} has another text or image than in {first[0].folder}; "
                    f"give one cache for all runs with {option('cache')}"
                )


def most_wrong(evaluation: dict[str, Any], count: int) -> list[str]:
    """Ids of the posts whose label got the lowest probability, the worst first."""
    posts = sorted(evaluation["posts"], key=lambda post: post["probabilities"][post["label"]])
    return [post["id"] for post in posts[:count]]


def write_gallery(folder: Path, posts: Sequence[PostView], looks: Sequence[RunView]) -> dict[str, Any]:
    """Write the page, the JSON, and heat/NNN-K.jpg: post NNN as run K looks at it. Returns what the JSON holds."""
    require_no_link(folder / "heat", folder)
    for old in folder.glob("heat/[0-9]*-[0-9]*.jpg"):
        remove_file(old)
    by_post = list(zip(*(look.explanations for look in looks), strict=True))
    cards, records = [], []
    for number, (post, found) in enumerate(zip(posts, by_post, strict=True), start=1):
        seen = [(look.title, look.note, one, look.view) for look, one in zip(looks, found, strict=True)]
        cards.append(card(post.id, post.text, post.label, post.picture, seen))
        entry: dict[str, Any] = {"id": post.id, "text": post.text, "label": post.label, "runs": []}
        for place, (look, one) in enumerate(zip(looks, found, strict=True), start=1):
            picture = None
            if one.heat is not None and not isinstance(post.picture, str):
                picture = f"heat/{number:03d}-{place}.jpg"
                with complete_or_absent(folder / picture) as temporary:
                    overlay(post.picture, one.heat, look.view).save(temporary, "JPEG", quality=90)
            entry["runs"].append({"run": look.title, "picture": picture, **one.summary()})
        records.append(entry)
    method = looks[0].explanations[0].method
    result = {"method": method, "labels": list(looks[0].explanations[0].probabilities), "posts": records}
    write_json(folder / DATA, result)
    render("gallery.html.j2", folder / PAGE, title=", ".join(look.title for look in looks), cards=cards, method=method)
    return result


def _look(run: Run, first: Run, explanations: list[Explanation]) -> RunView:
    ours, theirs = run.settings(), first.settings()
    note = ", ".join(
        f"{key}: {as_written(value)}" for key, value in ours.items() if value != theirs[key] and key != "seed"
    )
    return RunView(name_of(run), note, explanations, run.metadata["fingerprint"]["image"]["transform"])


def _shown(cache: Cache, rows: np.ndarray) -> list[PostView]:
    sources = Sources(cache)
    posts = [sources.posts[row] for row in rows]
    pictures = sources.pictures(rows.tolist())
    return [PostView(post.id, post.text, post.label, found) for post, found in zip(posts, pictures, strict=True)]
