"""Reads Hateful Memes (Kiela et al., NeurIPS 2020) and sets in the same format, MMBT's: Food-101, MVSA and others.

The folder holds `train.jsonl`, and `dev` and `test` likewise, each line {"id": 42953, "img": "img/42953.png", "label":
0, "text": "..."}. A label may be a string.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions
from pipeline.posts.labels import LABEL
from pipeline.posts.manifest import Post, read_lines
from pipeline.posts.rows import NoPost, Rows, id_in, json_object, label_in
from pipeline.posts.shown import shown

# The files of each split, in the order of preference. The seen ones are those of the competition's first phase, which
# papers report; the unseen ones are read only where none of these is there.
FILES = {"train": ("train",), "val": ("dev_seen", "dev"), "test": ("test_seen", "test")}
UNSEEN = {"train": "", "val": "dev_unseen", "test": "test_unseen"}
_FIELDS = ("id", "img", "image", "label", "text")
_DIGITS = 5  # of a number in the name of an image
_LAYOUT = "the format has train.jsonl, dev.jsonl and test.jsonl, each line with id, img, label and text"


_Line = tuple[int, str, dict[str, Any] | NoPost]  # its number, where it is, and its fields


@dataclass
class _Found:
    """What reading comes across: posts and what to report of them."""

    rows: Rows
    ids_made: int = 0
    renumbered: dict[str, str] = field(default_factory=dict)
    unused: dict[str, None] = field(default_factory=dict)


def reads(source: Path) -> bool:
    """Whether a folder has a file of the format's names."""
    return bool(_present(source))


def read(folder: Path, options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the splits that the folder has, of the seen posts where it has both.

    Ids stay as they are written; a line without one is called after its file and its number. Rows without a label are
    posts without one. Raises InputError if the folder has no file of the format.
    """
    options.require_only("hateful-memes")
    present = _present(folder)
    if not present:
        raise InputError(f"{folder}: no train.jsonl, dev.jsonl or test.jsonl in it; {_LAYOUT}")
    found = _Found(Rows(folder))
    used: dict[str, str] = {}
    for split in FILES:
        chosen = _chosen(folder, [name for name in (*FILES[split], UNSEEN[split]) if name in present], UNSEEN[split])
        if chosen is not None:
            used[split] = chosen[0]
            _add_posts(split, *chosen, found)
    facts: dict[str, Any] = {"files": [f"{name}.jsonl" for name in used.values()]}
    others = {path.name for path in folder.glob("*.jsonl")} - set(facts["files"])
    facts["files_not_used"] = sorted(name.encode(errors="backslashreplace").decode() for name in others)
    names = _names(found.rows.posts)
    if names == ("0", "1"):
        facts["label_names"] = "0 and 1 as the files have them; in Hateful Memes 1 is hateful"
    if "test" in used and not any(post.label for post in found.rows.posts if post.split == "test"):
        way_out = f"{option('test_split', 'val')} tests on the validation posts"
        facts["test_without_labels"] = f"{used['test']}.jsonl has no labels; {way_out}"
    if unseen := [f"{name}.jsonl" for name in used.values() if name in UNSEEN.values()]:
        facts["unseen"] = f"{', '.join(unseen)} read: the posts of the seen files, which papers report, are not there"
    facts |= {"ids_made": found.ids_made, "images_under_another_number": found.renumbered}
    facts |= {"fields_not_used": [shown(name) for name in list(found.unused)[:20]]}
    return found.rows.data_set({LABEL: names} if names else {}, f"{', '.join(facts['files'])} of {folder}", facts)


def _present(folder: Path) -> list[str]:
    """The names of the files that are there."""
    names = [name for split in FILES for name in (*FILES[split], UNSEEN[split]) if name]
    return [name for name in names if (folder / f"{name}.jsonl").exists()]


def _chosen(folder: Path, names: Sequence[str], unseen: str) -> tuple[str, list[_Line]] | None:
    """The first file that has a label, else the first one; an unseen one only if it is alone."""
    candidates = [(name, _rows(folder / f"{name}.jsonl")) for name in names if name != unseen or len(names) == 1]
    labelled = (
        (name, rows)
        for name, rows in candidates
        if any(isinstance(record, dict) and record.get("label") not in (None, "") for _, _, record in rows)
    )
    return next(labelled, candidates[0] if candidates else None)


def _rows(path: Path) -> list[_Line]:
    lines = ((number, f"{path}, line {number}", line) for number, line in enumerate(read_lines(path), start=1))
    return [(number, where, _record(line, where)) for number, where, line in lines if line.strip()]


def _record(line: str, where: str) -> dict[str, Any] | NoPost:
    try:
        return json_object(line, where)
    except NoPost as problem:
        return problem


def _add_posts(split: str, name: str, lines: list[_Line], found: _Found) -> None:
    rows = found.rows
    for number, where, record in lines:
        with rows.row():
            if isinstance(record, NoPost):
                raise record
            label = label_in(_whole(record.get("label")), where)
            made = record.get("id") in (None, "")
            id_ = rows.claim(f"{name}-{number}" if made else id_in(record["id"], where), where)
            found.ids_made += made
            found.unused.update(dict.fromkeys(key for key in record if key not in _FIELDS))
            image = record.get("img") if record.get("img") is not None else record.get("image")
            if rows.image_file(image) is None and (other := _renumbered(rows, image)) is not None:
                image = other
                found.renumbered[id_] = PurePosixPath(other).name
            rows.add(id_, record.get("text"), image, label, split)


def _whole(value: Any) -> Any:
    """A label; tables with an empty cell make 1.0 of 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _renumbered(rows: Rows, image: Any) -> str | None:
    """The file whose name has the same number with or without leading zeros: 5349.png and 05349.png."""
    if rows.folder.image(image)[1]:
        return None
    name = PurePosixPath(image)
    if not (name.stem.isascii() and name.stem.isdigit()):
        return None
    plain = name.stem.lstrip("0") or "0"
    others = (str(name.with_name(stem + name.suffix)) for stem in (plain.zfill(_DIGITS), plain))
    return next(filter(rows.image_file, others), None)


def _names(posts: Sequence[Post]) -> tuple[str, ...]:
    """The names of labels that are numbers, by number: 2 before 10; none if one is no number."""
    labels = {post.label for post in posts if post.label is not None}
    if not labels or not all(label.isascii() and label.isdigit() for label in labels):
        return ()
    both = {"0", "1"} if labels <= {"0", "1"} else set()
    return tuple(sorted(labels | both, key=lambda label: (int(label), label)))
