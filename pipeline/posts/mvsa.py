"""Reads an MVSA folder as labelled posts, and counts what was kept, merged and dropped, and why.

An MVSA folder holds `data/ID.jpg`, `data/ID.txt` and `labelResultAll.txt` (tab-separated, header first). MVSA-Single
has one `text,image` pair of labels a row, MVSA-Multiple three, one per annotator. The folder may also hold
`targets.csv`, with further labels of the posts.
"""

import errno
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.common.files import regular_bytes
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions
from pipeline.posts.image_files import is_there
from pipeline.posts.labels import LABEL, MODALITY_TARGETS
from pipeline.posts.manifest import Post, read_lines, require_name
from pipeline.posts.rows import NoPost, Rows, is_below, is_link
from pipeline.posts.shown import shown
from pipeline.posts.spelling import respelled, spelling_facts, spellings
from pipeline.posts.targets_file import read_targets

LABELS = ("positive", "neutral", "negative")
ENCODING = "gb18030"  # of the texts that were published; never guessed
FORMS = {1: "single", 3: "multiple"}
_MOST_TEXT_BYTES = 1 << 20  # of a post; a tweet has a few hundred


@dataclass(frozen=True)
class MergedLabel:
    """The label rule's result for one row: a label and how it was found, or None and why the post is dropped."""

    label: str | None
    text_label: str | None
    image_label: str | None
    reason: str


def reads(source: Path) -> bool:
    """Whether this looks like an MVSA folder: one of its two parts is enough, so that the missing one is named. A data/
    with folders in it, or beside the annotations of TumEmo, is that of another data set.
    """
    if (source / "labelResultAll.txt").exists():
        return True
    if not (source / "data").is_dir() or any(source.glob("*_all_anno.json")):
        return False
    with os.scandir(source / "data") as entries:
        return not any(entry.is_dir() for entry in entries)


def read(folder: Path, options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read an MVSA folder (either form) and apply the label rule; the labels of text and image are further targets,
    and so are those of its targets.csv.

    A post whose text is missing, is no ordinary file or is not in `options.encoding`, GB18030 unless given, stays in
    the list with its problem, so that extraction counts it. Raises InputError if the folder or its label file is
    unusable.
    """
    options.require_only("mvsa", "encoding")
    rows = Rows(folder)
    labelled = _label_rows(folder, rows)
    verdicts = {id_: merge_labels(pairs) for id_, pairs in labelled.items()}
    kept = [id_ for id_ in sorted(verdicts, key=_by_number) if verdicts[id_].label]
    if not kept:
        raise InputError(f"{folder / 'labelResultAll.txt'}: no row survives the label rule")
    posts = [_read_post(folder / "data", id_, verdicts[id_], options.encoding or ENCODING) for id_ in kept]
    facts: dict[str, Any] = {
        "form": FORMS[len(next(iter(labelled.values())))],
        "label_rows": len(labelled),
        "how": _count(verdict.reason for verdict in verdicts.values() if verdict.label),
        "dropped": _count(verdict.reason for verdict in verdicts.values() if not verdict.label),
        "files_without_label_row": len({file.stem for file in (folder / "data").iterdir()} - set(labelled)),
        "text_problems": {post.id: post.problem for post in posts if post.problem},
        "images_missing": [post.id for post in posts if post.image is not None and not is_there(post.image)],
    }
    if (folder / "targets.csv").exists():
        posts, more = _with_targets(posts, folder / "targets.csv", labelled)
        facts |= more
    names = dict.fromkeys((LABEL, *MODALITY_TARGETS), LABELS)
    return DataSet(posts, names, facts=facts, rejected=rows.rejected, first_rejected=rows.first_rejected)


def _with_targets(posts: list[Post], path: Path, label_rows: Collection[str]) -> tuple[list[Post], dict[str, Any]]:
    """The posts with their further labels, and what to report of the file."""
    more = read_targets(path, (LABEL, *MODALITY_TARGETS))
    extended = [replace(post, targets={**post.targets, **more.get(post.id, {})}) for post in posts]
    found = spellings(extended, {})
    facts = {"target_rows_without_post": len(more.keys() - set(label_rows)), "merged": spelling_facts(found)}
    return [respelled(post, found) for post in extended], facts


def merge_labels(pairs: Sequence[tuple[str, str]]) -> MergedLabel:
    """The rule of Xu and Mao (MultiSentiNet, CIKM 2017) for one post's (text label, image label) pairs.

    Per modality the label that most annotators agree on (with three: at least two), else the post is dropped. Then:
    equal -> that label; one neutral -> the other one; positive against negative -> dropped.
    """
    text_label = _majority([text for text, _ in pairs])
    image_label = _majority([image for _, image in pairs])
    if text_label is None or image_label is None:
        return MergedLabel(None, text_label, image_label, "no majority among the annotators")
    if text_label == image_label:
        return MergedLabel(text_label, text_label, image_label, "text and image agree")
    if text_label == "neutral":
        return MergedLabel(image_label, text_label, image_label, "text neutral: the image's label")
    if image_label == "neutral":
        return MergedLabel(text_label, text_label, image_label, "image neutral: the text's label")
    return MergedLabel(None, text_label, image_label, "positive against negative")


def _label_rows(folder: Path, rows: Rows) -> dict[str, list[tuple[str, str]]]:
    """The labels by post id; `rows` counts the rows that are no post."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not (folder / "data").is_dir():
        raise InputError(
            f"{folder}: no folder data/ in it; an MVSA folder has data/ID.jpg, data/ID.txt and labelResultAll.txt"
        )
    path = folder / "labelResultAll.txt"
    if not path.exists():
        raise InputError(f"{path}: no such file; it gives the labels, tab-separated, header first")
    lines = read_lines(path)
    annotators = len(lines[0].rstrip(" \t").split("\t")) - 1
    if annotators not in FORMS:
        raise InputError(f"{path}, line 1: the header must name ID and one or three text,image columns, tab-separated")
    labelled: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            with rows.row():
                id_, pairs = _label_row(line, annotators, f"{path}, line {number}")
                if id_ in labelled:
                    raise NoPost("repeated id", f"{path}, line {number}: id {shown(id_)} occurs twice")
                labelled[id_] = pairs
    if not labelled:
        raise InputError(next(iter(rows.first_rejected.values()), f"{path}: no rows below the header"))
    return labelled


def _label_row(line: str, annotators: int, where: str) -> tuple[str, list[tuple[str, str]]]:
    """The id of a row, and the labels of its text and its image by each annotator. Raises NoPost."""
    id_, *cells = line.rstrip(" \t").split("\t")
    pairs = [tuple(part.strip() for part in cell.split(",")) for cell in cells]
    if len(pairs) != annotators or any(len(pair) != 2 or not set(pair) <= set(LABELS) for pair in pairs):
        known = f"{annotators} text,image pair(s) of {', '.join(LABELS)}"
        raise NoPost("no labels of text and image", f"{where}: not ID and {known}: {shown(line)}")
    try:
        require_name(id_, "ID", where)
    except InputError as error:
        raise NoPost("the id can't be a name", str(error)) from None
    if "/" in id_ or id_ in (".", ".."):
        raise NoPost("the id can't be a name", f"{where}: {shown(id_)} can't be the name of a post's files")
    return id_, [(text, image) for text, image in pairs]


def _inside(data: Path, name: str) -> Path:
    """A file of the data set. Raises OSError for a link out of its folder: the text would go into the manifest."""
    path = data / name
    if is_link(path) and not is_below(path, data.parent):
        raise OSError(errno.ELOOP, "a link to a file outside the data set", str(path))
    return path


def _read_post(data: Path, id_: str, verdict: MergedLabel, encoding: str) -> Post:
    text, problem = None, None
    try:
        text = regular_bytes(_inside(data, f"{id_}.txt"), _MOST_TEXT_BYTES).decode(encoding).strip()
        text.encode()
    except FileNotFoundError:
        problem = f"text: no file {id_}.txt"
    except OSError as error:
        problem = f"text: {id_}.txt: {error.strerror or error}"
    except UnicodeDecodeError as error:
        problem = f"text: {id_}.txt is not {encoding} at byte {error.start}"
    except UnicodeError:  # of encodings that say no more, or that read an unpaired surrogate
        text, problem = None, f"text: {id_}.txt is not {encoding}"
    except (LookupError, ValueError):
        raise InputError(f"{option('encoding', encoding)}: Python knows no such text encoding") from None
    image = data / f"{id_}.jpg"
    others = zip(MODALITY_TARGETS, (verdict.text_label, verdict.image_label), strict=True)
    targets = {name: label for name, label in others if label is not None}
    return Post(id_, text, image, verdict.label, None, targets, problem)


def _majority(labels: Sequence[str]) -> str | None:
    label, votes = Counter(labels).most_common(1)[0]
    return label if 2 * votes > len(labels) else None


def _by_number(id_: str) -> tuple[int, str]:
    """2 before 10, and ids that are no numbers after them, by name."""
    return (int(id_), id_) if id_.isascii() and id_.isdigit() and len(id_) < 19 else (10**19, id_)


def _count(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())
