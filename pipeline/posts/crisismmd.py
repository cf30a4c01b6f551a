"""Reads CrisisMMD 2.0 (Ofli et al., ISCRAM 2020): tweets of disasters, each image of a tweet a post of its own.

The folder holds `task_TASK_text_img_SPLIT.tsv`, tab-separated, for the tasks informative and humanitarian, and
`task_TASK_text_img_agreed_lab_SPLIT.tsv`, which has those rows alone whose text and image have the same label. Their
column `image` names files below `data_image`. Quotation marks are part of the texts.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.common.errors import InputError
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions
from pipeline.posts.labels import LABEL, MODALITY_TARGETS
from pipeline.posts.manifest import Post
from pipeline.posts.rows import ImageFolder, Rows, label_in
from pipeline.posts.source_files import fields_of, table_rows

TASKS = ("informative", "humanitarian")
SPLITS = {"train": "train", "dev": "val", "test": "test"}
COLUMNS = ("image_id", "tweet_text", "image", "label", "label_text", "label_image")
_IMAGES = "data_image"
_LAYOUT = "CrisisMMD has task_informative_text_img_train.tsv, dev and test likewise, and those of humanitarian"


@dataclass(frozen=True)
class _Files:
    """The files of one task: `paths` by split; `others`: files of the task that are there and are not read."""

    task: str
    paths: Mapping[str, Path]
    others: tuple[Path, ...]


def reads(source: Path) -> bool:
    """Whether a folder, or a folder in it, has a file of one of the two tasks."""
    return any(_present(folder, task, agreed) for folder in _folders(source) for task in TASKS for agreed in (0, 1))


def read(source: Path, options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the task informative, or humanitarian where it is alone; the id of a post is that of its image.

    The labels of text and image alone are the targets `text_label` and `image_label`. Where both tasks are there, the
    label of the second one is the target `humanitarian`, by the id of the image; the splits are those of the first.
    Files of agreed labels are read in place of all. Raises InputError if there is no file or a column is missing.
    """
    options.require_only("crisismmd")
    tasks = [files for task in TASKS if (files := _files(source, task))]
    if not tasks:
        raise InputError(f"{source}: no file of CrisisMMD in it or one level down; {_LAYOUT}")
    first, *more = tasks
    root = _image_root(source, next(iter(first.paths.values())).parent)
    rows = _read(first, source, root)
    facts: dict[str, Any] = {
        "label": first.task,
        "files": [path.name for files in tasks for path in files.paths.values()],
        "files_not_used": [path.name for files in tasks for path in files.others],
        "images": str(root / _IMAGES),
    }
    for files in more:
        rows.posts, facts[files.task] = _with_target(rows.posts, files, source, root)
    targets = (LABEL, *MODALITY_TARGETS)
    used = {label for post in rows.posts for target in targets if (label := post.label_of(target)) is not None}
    how = f"the files of {first.task} of {source}: {', '.join(first.paths)}"
    return rows.data_set(dict.fromkeys(targets, tuple(sorted(used))), how, facts)


def _folders(source: Path) -> list[Path]:
    """The folder and those in it; a file has none."""
    return [source, *sorted(path for path in source.iterdir() if path.is_dir())] if source.is_dir() else []


def _present(folder: Path, task: str, agreed: int) -> dict[str, Path]:
    """The files of a task that a folder has, by split."""
    start = f"task_{task}_text_img_{'agreed_lab_' * agreed}"
    paths = {split: folder / f"{start}{split}.tsv" for split in SPLITS}
    return {split: path for split, path in paths.items() if os.path.lexists(path)}  # no error in a closed folder


def _files(source: Path, task: str) -> _Files | None:
    """The files of a task: those of agreed labels, if there are some. Raises InputError if two folders have them."""
    found = []
    for agreed in (1, 0):
        places = [files for folder in _folders(source) if (files := _present(folder, task, agreed))]
        if len(places) > 1:
            one, other = (next(iter(files.values())) for files in places[:2])
            raise InputError(
                f"{source}: {one.name} in {one.parent} and {other.name} in {other.parent}; name one folder"
            )
        found += places
    if not found:
        return None
    return _Files(task, found[0], tuple(path for files in found[1:] for path in files.values()))


def _image_root(source: Path, tables: Path) -> Path:
    """The folder that has the images: the source, that of the tables, or the one that the source lies in."""
    above = Path(os.path.realpath(source)).parent
    return next((folder for folder in (source, tables, above) if (folder / _IMAGES).is_dir()), source)


def _read(files: _Files, source: Path, root: Path) -> Rows:
    """The posts of a task, with the label that it gives them; `root` holds the folder of images."""
    rows, images = Rows(source), ImageFolder(root)
    for split, path in files.paths.items():
        for _, where, fields in table_rows(path, COLUMNS, tabs=True):
            with rows.row():
                cells = fields_of(fields)
                label, text_label, image_label = (label_in(cells[column], where, column) for column in COLUMNS[3:])
                id_ = rows.claim(cells["image_id"], where, "image_id")
                targets = {"text_label": text_label, "image_label": image_label}
                folder = images if PurePosixPath(cells["image"]).parts[:1] == (_IMAGES,) else None
                rows.add(id_, cells["tweet_text"], cells["image"], label, SPLITS[split], targets, folder=folder)
    return rows


def _with_target(posts: list[Post], files: _Files, source: Path, root: Path) -> tuple[list[Post], dict[str, Any]]:
    """Posts with the label that a further task gives them as a target of its name, and what to report of it."""
    rows = _read(files, source, root)
    others = {post.id: post for post in rows.posts}
    pairs = [(post, others.get(post.id)) for post in posts]
    matched = [(post, other) for post, other in pairs if other is not None]
    posts = [
        replace(post, targets={**post.targets, files.task: other.label}) if other and other.label else post
        for post, other in pairs
    ]
    return posts, {
        "rows_matched": len(matched),
        "rows_without_post": len(others) - len(matched),
        "rows_in_another_split": sum(post.split != other.split for post, other in matched),
        "rows_rejected": rows.rejected,
    }
