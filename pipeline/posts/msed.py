"""Reads MSED (Jia et al., NAACL 2022) as posts with a sentiment, an emotion and a desire.

An MSED folder holds `SPLIT/SPLIT.csv` and `SPLIT/images/NUMBER.jpg` for train, dev and test, or some of them. The
images have no column: row 1 below the header is the post of `1.jpg`. The sentiment is the label. It follows from the
emotion (happiness is positive, neutral is neutral, the others are negative), so the two are no independent targets.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions
from pipeline.posts.labels import LABEL
from pipeline.posts.manifest import Post
from pipeline.posts.rows import Rows, label_in
from pipeline.posts.source_files import fields_of, table_rows

SPLITS = {"train": "train", "dev": "val", "test": "test"}
COLUMNS = ("Title", "Caption", "Sentiment", "Emotion", "Desire")
NAMES = {
    LABEL: ("positive", "neutral", "negative"),
    "emotion": ("happiness", "neutral", "sad", "anger", "fear", "disgust"),
    "desire": ("none", "family", "romance", "curiosity", "social-contact", "vengeance", "tranquility"),
}
_LAYOUT = "an MSED folder has SPLIT/SPLIT.csv and SPLIT/images/1.jpg for train, dev or test"


def reads(source: Path) -> bool:
    """Whether a folder has the table of one of the splits in its own folder."""
    return bool(_present(source))


def read(folder: Path, options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the splits of MSED that the folder has; the posts are called `train-1` and so on.

    The text is the title and the caption, or one of the two where they are equal or the other one is empty. Raises
    InputError if there is no split, or a split has no images or not the columns of MSED.
    """
    options.require_only("msed")
    present = _present(folder)
    if not present:
        raise InputError(f"{folder}: no train/train.csv, dev/dev.csv or test/test.csv in it; {_LAYOUT}")
    rows = Rows(folder)
    counts, unnamed = {}, {}
    for split in present:
        images = folder / split / "images"
        if not images.is_dir():
            raise InputError(f"{images}: no such folder; {_LAYOUT}")
        counts[split] = _add_posts(rows, split)
        names = {f"{number}.jpg" for number in range(1, counts[split] + 1)}
        unnamed[split] = sum(file.name not in names for file in images.iterdir())
    facts = {"rows": counts, "files_without_row": unnamed, **_unknown_labels(rows.posts)}
    return rows.data_set(NAMES, f"the folders {', '.join(present)} of {folder}", facts)


def _present(folder: Path) -> list[str]:
    return [split for split in SPLITS if (folder / split / f"{split}.csv").exists()]


def _add_posts(rows: Rows, split: str) -> int:
    """Add the posts of a split. The number of its rows, also of those that are no post."""
    number = 0
    for number, where, fields in table_rows(rows.root / split / f"{split}.csv", COLUMNS):
        with rows.row():
            cells = fields_of(fields)
            label, emotion, desire = (label_in(cells[column], where, column) for column in COLUMNS[2:])
            targets = {"emotion": emotion, "desire": desire}
            text = _text(cells["Title"], cells["Caption"])
            rows.add(f"{split}-{number}", text, f"{split}/images/{number}.jpg", label, SPLITS[split], targets)
    return number


def _text(title: str, caption: str) -> str:
    return " ".join(dict.fromkeys(filter(None, (title, caption))))


def _unknown_labels(posts: list[Post]) -> dict[str, Any]:
    """Labels that MSED does not have: they become classes, so a misspelt one must be seen."""
    counts = {
        target: dict(Counter(label for post in posts if (label := post.label_of(target)) not in (None, *known)))
        for target, known in NAMES.items()
    }
    found = {target: others for target, others in counts.items() if others}
    return {"labels_not_of_msed": found} if found else {}
