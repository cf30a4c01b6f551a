"""Models of the JSON files of `reproduce`: a table, and the predictions of one fit. They may come from a stranger."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fusion.experiments.tables.rows import DATA_SETS, FULL, STUDY, TABLES, Kind
from fusion.run_files import Epoch, LabelNames, Parameters, Sha256
from pipeline.common.documents import PLAIN, Document, Line, Name, Number, Post, Share, one_line, read_json
from pipeline.posts.labels import MOST_NAMES
from pipeline.posts.mvsa import LABELS

MOST_POSTS = 50_000
_MOST_PREDICTIONS = 1 << 30  # bytes of answers.json, with probabilities of as many posts and classes as there may be
_MOST_COMPARED = 2_000_000  # rows times posts: each row's interval resamples all posts


def _codes(codes: str | list[int]) -> str | list[int]:
    if isinstance(codes, str) and not (codes.isascii() and codes.isdecimal()):
        raise ValueError("must be class codes, a digit a post")
    return codes


def _known_table(name: str) -> str:
    if name not in (*TABLES, STUDY):
        raise ValueError(f"must be one of {', '.join((*TABLES, STUDY))}")
    return name


def _known_data(published: dict[str, list[float]]) -> dict[str, list[float]]:
    if unknown := published.keys() - set(DATA_SETS):
        raise ValueError(f"{min(unknown)!r:.100} is not one of {', '.join(DATA_SETS)}")
    return published


# Class codes, one a post: a digit each, or numbers where there are over ten classes.
Codes = Annotated[
    Annotated[str, Field(min_length=1, max_length=MOST_POSTS)]
    | Annotated[list[Annotated[int, Field(ge=0, lt=MOST_NAMES)]], Field(min_length=1, max_length=MOST_POSTS)],
    AfterValidator(_codes),
]
Probabilities = Annotated[list[Share], Field(min_length=2, max_length=MOST_NAMES)]  # of a post
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Percent = Annotated[float, Field(ge=0, le=100)]
Published = Annotated[
    dict[str, Annotated[list[Percent], Field(min_length=2, max_length=2)]], AfterValidator(_known_data)
]


class Scored(Document):
    """Validation scores; a linear probe has the accuracy alone."""

    accuracy: Share
    weighted_f1: Share | None = None
    macro_f1: Share | None = None
    loss: Number | None = None
    loss_mlm: Number | None = None


class Repeat(Document):
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None
    predicted: Codes
    validation: Scored | None = None
    seconds: Seconds | None = None
    best_epoch: Annotated[float, Field(ge=0, le=1e6)] | None = None
    parameters: Parameters | None = None
    precision: Line | None = None


class RowFacts(Document):
    key: Name
    title: Annotated[Line, Field(pattern=r"^\S", max_length=200)]
    group: Annotated[Line, Field(max_length=200)]
    kind: Kind
    settings: Annotated[dict[str, Any], PLAIN] = Field(default={})
    published: Published = Field(default={})
    repeats: Annotated[list[Repeat], Field(max_length=1000)]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        seeds = [repeat.seed for repeat in self.repeats]
        if len(set(seeds)) < len(seeds):
            raise ValueError("repeats: a seed is there twice")
        for repeat in self.repeats if self.kind == "trained" else ():
            if None in (repeat.seconds, repeat.best_epoch, repeat.parameters, repeat.seed):
                raise ValueError("repeats: of a trained row each has seed, seconds, best_epoch and parameters")
        return self


class LeftOut(Document):
    title: Annotated[Line, Field(pattern=r"^\S", max_length=200)]
    why: Annotated[str, Field(max_length=2000), AfterValidator(one_line)]


class Table(Document):
    """table-N.json."""

    table: Annotated[str, AfterValidator(_known_table)]
    published: Literal["mvsa-single", "mvsa-multiple", "none"]
    made_of: Annotated[dict[str, Any], PLAIN]
    classes: LabelNames = Field(default=list(LABELS))
    ids: Annotated[list[Post], Field(max_length=MOST_POSTS)] = Field(default=[])
    labels: Codes
    rows: Annotated[list[RowFacts], Field(min_length=1, max_length=100)]
    left_out: Annotated[list[LeftOut], Field(max_length=100)] = Field(default=[])
    failed: Annotated[list[LeftOut], Field(max_length=10_000)] = Field(default=[])
    reference: Name = Field(default=FULL)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if twice := [key for key, count in Counter(row.key for row in self.rows).items() if count > 1]:
            raise ValueError(f"rows: {twice[0]} is there twice")
        if self.reference not in (row.key for row in self.rows):
            raise ValueError(f"rows: there is no row {self.reference}")
        if any(len(repeat.predicted) != len(self.labels) for row in self.rows for repeat in row.repeats):
            raise ValueError("rows: a repeat has not one prediction for each label")
        for codes in (self.labels, *(repeat.predicted for row in self.rows for repeat in row.repeats)):
            if max(map(int, codes)) >= len(self.classes):
                raise ValueError(f"class codes go up to {len(self.classes) - 1}")
        if not any(row.repeats for row in self.rows):
            raise ValueError("rows: none has repeats")
        if len(self.rows) * len(self.labels) > _MOST_COMPARED:
            raise ValueError(f"rows: {len(self.rows)} rows of {len(self.labels)} posts are too many to compare")
        return self


class FitSource(Document):
    """What a fit was made from: its posts with label, split and content, and the fingerprint of their features."""

    posts_sha256: Sha256
    fingerprint_sha256: Sha256


class FitPredictions(Document):
    """answers.json."""

    made_of: FitSource | None = None  # fits of older versions do not say

    ids: Annotated[list[Post], Field(min_length=1, max_length=MOST_POSTS)]
    predicted: Codes
    probabilities: Annotated[list[Probabilities], Field(max_length=MOST_POSTS)] | None = None
    image_shuffled: Codes | None = Field(default=None, alias="image-shuffled")
    text_shuffled: Codes | None = Field(default=None, alias="text-shuffled")
    validation: Scored | None = None
    epochs: Epoch | None = None
    best_epoch: Epoch | None = None
    seconds: Seconds | None = None
    parameters: Parameters | None = None
    precision: Line | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for digits in (self.predicted, self.image_shuffled, self.text_shuffled):
            if digits is not None and len(digits) != len(self.ids):
                raise ValueError("there is not one prediction for each id")
        if self.probabilities is not None:
            widths = {len(values) for values in self.probabilities}
            if len(self.probabilities) != len(self.ids) or len(widths) > 1:
                raise ValueError("probabilities: there is not one of each class for each id")
        return self


def read_table(path: Path) -> dict[str, Any]:
    """A table's JSON, checked. Raises InputError naming file and field."""
    table = read_json(path, Table).model_dump(exclude_none=True)
    for row in table["rows"]:
        for repeat in row["repeats"]:
            repeat.setdefault("seed", None)  # of what needs no seed
    return table


def read_predictions(path: Path) -> dict[str, Any]:
    """The predictions of one fit, checked, without fields that the fit does not have. Raises InputError naming file and
    field.
    """
    return read_json(path, FitPredictions, _MOST_PREDICTIONS).model_dump(exclude_none=True, by_alias=True)
