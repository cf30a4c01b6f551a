"""Reads an MVSA folder as labelled and split posts, and counts what was kept, merged and dropped, and why.

An MVSA folder holds `data/ID.jpg`, `data/ID.txt` and `labelResultAll.txt` (tab-separated, header first). MVSA-Single
has one `text,image` pair of labels a row, MVSA-Multiple three, one per annotator.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.common.files import regular_bytes
from pipeline.posts.manifest import LABELS, Post, read_lines, require_name, shown
from pipeline.posts.splits import Prepared, class_counts, duplicates_of_training, given_split, stratified_split

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
    """Whether this looks like an MVSA folder: any folder does, so that what is missing in it is named."""
    return source.is_dir()


def prepare(
    folder: str | Path,
    *,
    splits: str | Path | None = None,
    ratios: Sequence[float] = (8, 1, 1),
    seed: int = 0,
    encoding: str | None = None,
    allow_unmatched: bool = False,
) -> Prepared:
    """Read an MVSA folder (either form), apply the label rule and split the posts.

    With `splits` (a file with id,label,split) posts take their split from it, otherwise a stratified split by `ratios`
    (train, val, test) and `seed` is made. A post whose text is missing, is no ordinary file or is not in `encoding`,
    GB18030 unless given, stays in the list with its problem, so that extraction counts it. Raises InputError if the
    folder, its label file or `splits` is unusable.
    """
    folder = Path(folder)
    rows = _label_rows(folder)
    verdicts = {id_: merge_labels(pairs) for id_, pairs in rows.items()}
    kept = [id_ for id_ in sorted(verdicts, key=_by_number) if verdicts[id_].label]
    if not kept:
        raise InputError(f"{folder / 'labelResultAll.txt'}: no row survives the label rule")
    posts = [_read_post(folder / "data", id_, verdicts[id_], encoding or ENCODING) for id_ in kept]
    summary: dict[str, Any] = {
        "form": FORMS[len(next(iter(rows.values())))],
        "label_rows": len(rows),
        "kept": len(kept),
        "how": _count(verdict.reason for verdict in verdicts.values() if verdict.label),
        "dropped": _count(verdict.reason for verdict in verdicts.values() if not verdict.label),
        "files_without_label_row": len({file.stem for file in (folder / "data").iterdir()} - set(rows)),
        "text_problems": {post.id: post.problem for post in posts if post.problem},
        "images_missing": [post.id for post in posts if post.image is not None and not _is_file(post.image)],
    }
    if splits is None:
        posts = stratified_split(posts, ratios, seed)
        summary["split"] = f"stratified {':'.join(f'{ratio:g}' for ratio in ratios)}, seed {seed}"
    else:
        posts, given = given_split(posts, Path(splits), allow_unmatched=allow_unmatched)
        summary.update(given)
    summary["classes"] = class_counts(posts)
    summary["duplicates_of_training"] = duplicates_of_training(posts)
    return Prepared(posts, summary)


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


def _label_rows(folder: Path) -> dict[str, list[tuple[str, str]]]:
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
    rows: dict[str, list[tuple[str, str]]] = {}
    annotators = len(lines[0].rstrip(" \t").split("\t")) - 1
    if annotators not in FORMS:
        raise InputError(f"{path}, line 1: the header must name ID and one or three text,image columns, tab-separated")
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        id_, *cells = line.rstrip(" \t").split("\t")
        pairs = [tuple(part.strip() for part in cell.split(",")) for cell in cells]
        if len(pairs) != annotators or any(len(pair) != 2 or not set(pair) <= set(LABELS) for pair in pairs):
            raise InputError(
                f"{path}, line {number}: not ID and {annotators} text,image pair(s) of {', '.join(LABELS)}: "
                f"{shown(line)}"
            )
        require_name(id_, "ID", f"{path}, line {number}")
        if "/" in id_ or id_ in (".", ".."):
            raise InputError(f"{path}, line {number}: {shown(id_)} can't be the name of a post's files")
        if id_ in rows:
            raise InputError(f"{path}, line {number}: id {shown(id_)} occurs twice")
        rows[id_] = [(text, image) for text, image in pairs]
    if not rows:
        raise InputError(f"{path}: no rows below the header")
    return rows


def _inside(data: Path, name: str) -> Path:
    """A file of the data set. Raises OSError for a link out of its folder: the text would go into the manifest."""
    path = data / name
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(data.parent)):
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
    return Post(id_, text, image, verdict.label, None, verdict.text_label, verdict.image_label, problem)


def _is_file(path: Path) -> bool:
    """As Path.is_file, which raises for names that are too long."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _majority(labels: Sequence[str]) -> str | None:
    label, votes = Counter(labels).most_common(1)[0]
    return label if 2 * votes > len(labels) else None


def _by_number(id_: str) -> tuple[int, str]:
    """2 before 10, and ids that are no numbers after them, by name."""
    return (int(id_), id_) if id_.isascii() and id_.isdigit() and len(id_) < 19 else (10**19, id_)


def _count(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())
