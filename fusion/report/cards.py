"""Shows an explained post on a page: the picture under its heat map, the words shaded by weight."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from fusion.explanation.explain import NO_PLACES, Explanation
from fusion.report.heatmap import MARKED, STOPS, overlay
from pipeline.common.files import write_text

LONGER_SIDE = 360  # pixels of a picture on a page


@dataclass(frozen=True)
class Word:
    """A word, its weight in [0, 1], and its rank if it is among the strongest."""

    text: str
    weight: float
    rank: int | None


@dataclass(frozen=True)
class Panel:
    """One run's explanation of a post. `heat` is a data URI or None; `missing_heat` explains what is not shown."""

    title: str
    note: str
    explanation: Explanation
    words: list[Word]
    heat: str | None
    missing_heat: str


@dataclass(frozen=True)
class Card:
    """A post with a panel for each run. `picture` is a data URI, or None and `missing` says why."""

    id: str
    text: str
    label: str | None
    picture: str | None
    missing: str
    panels: list[Panel]


def card(
    post_id: str,
    text: str | None,
    label: str | None,
    picture: Image.Image | str,
    looks: Sequence[tuple[str, str, Explanation, Mapping[str, Any]]],
) -> Card:
    """A post as a page shows it.

    Args:
        picture: upright RGB, or why there is none.
        looks: for each run its title, a note, the explanation, and its image encoder's transform.
    """
    small = picture if isinstance(picture, str) else shrunk(picture)
    panels = []
    for title, note, explanation, view in looks:
        heat, missing_heat = None, ""
        if explanation.heat is None:
            missing_heat = NO_PLACES if NO_PLACES in explanation.note else "this run does not look at the image"
        elif isinstance(small, str):
            missing_heat = f"no heat map: {small}"
        else:
            heat = data_uri(overlay(small, explanation.heat, view))
        panels.append(Panel(title, note, explanation, shaded(explanation.words), heat, missing_heat))
    shown, missing = (None, small) if isinstance(small, str) else (data_uri(small), "")
    return Card(post_id, text or "", label, shown, missing, panels)


def shaded(words: Sequence[tuple[str, float]]) -> list[Word]:
    """Words with their rank, 1 for the highest weight, for as many as are marked in the picture."""
    order = sorted(range(len(words)), key=lambda i: -words[i][1])[:MARKED]
    ranks = {i: rank for rank, i in enumerate(order, start=1) if words[i][1] > 0}
    return [Word(word, weight, ranks.get(i)) for i, (word, weight) in enumerate(words)]


def shrunk(picture: Image.Image) -> Image.Image:
    """A copy whose longer side is at most LONGER_SIDE."""
    small = picture.copy()
    small.thumbnail((LONGER_SIDE, LONGER_SIDE))
    return small


def data_uri(picture: Image.Image, kind: str = "jpeg") -> str:
    """The picture as a file of this kind, `jpeg` or `png`, that is part of the page itself."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=82)  # PNG has no quality, and ignores it
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def as_written(value: Any) -> str:
    """A setting as a configuration file has it: true, null, 0.25, rollout."""
    return value if isinstance(value, str) else json.dumps(value)


def render(template: str, path: Path, **values: Any) -> None:
    """Fill a template of this folder and write it, complete or absent. All text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value, digits=1: "-" if value is None else f"{100 * value:.{digits}f}"
    environment.filters["as_written"] = as_written
    environment.filters["isolated"] = lambda value: f"\u2068{value}\u2069"  # where an attribute can't hold a <bdi>
    scale = ", ".join(f"rgb{colour} {at:.0%}" for at, colour in STOPS)
    write_text(path, environment.get_template(template).render(scale=scale, marked=MARKED, **values))
