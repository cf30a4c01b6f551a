"""Split files for K-fold cross-validation: written from a cache, and checked so that every post is tested once."""

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, switch
from pipeline.common.files import csv_text, regular_bytes, write_text
from pipeline.common.folders import remove_file
from pipeline.posts.duplicates import duplicate_groups
from pipeline.posts.split_file import read_splits


def write_folds(
    cache: Cache, out: str | Path, *, folds: int = 10, seed: int = 0, overwrite: bool = False
) -> dict[str, Any]:
    """Write fold_1.csv to fold_K.csv (id,label,split): stratified, repeats of a text or an image on one side.

    In fold k the k-th part is tested, the one after it is for validation, the others for training. Returns the counts.
    What an earlier call could not finish is completed. Raises InputError if the cache has too few labelled posts of a
    class, and without `overwrite` if the folder holds a finished set or another one.
    """
    out, rows = Path(out), np.flatnonzero(cache.ok & (cache.labels >= 0))
    labels = cache.labels[rows].astype(int)
    for code, count in zip(*np.unique(labels, return_counts=True), strict=True):
        name = cache.label_names[code]
        if count < folds:
            raise InputError(f"{cache.folder}: only {count} posts are {name}, too few for {folds} folds; give fewer")
    groups = np.array(duplicate_groups(cache.duplicate_keys(rows)))
    parts = np.empty(len(rows), int)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (_, tested) in enumerate(splitter.split(rows, labels, groups)):
        parts[tested] = number
    files: dict[Path, str] = {}
    for fold in range(folds):
        split_of = {fold: "test", (fold + 1) % folds: "val"}
        lines = [
            (cache.ids[row], cache.label_names[label], split_of.get(int(part), "train"))
            for row, label, part in zip(rows, labels, parts, strict=True)
        ]
        files[out / f"fold_{fold + 1}.csv"] = csv_text(("id", "label", "split"), lines)
    _write(files, out, overwrite)
    return {
        "posts": len(rows),
        "posts_that_repeat_another": int(len(rows) - len(np.unique(groups))),
        "tested_in_each": np.bincount(parts, minlength=folds).tolist(),
    }


def _write(files: dict[Path, str], out: Path, overwrite: bool) -> None:
    """Write the missing files. Refuses if the set is already complete, or if an existing file differs from its own."""
    existing = _numbered(out)
    if overwrite:
        for path in existing:
            remove_file(path)
    elif existing and (len(existing) == len(files) or any(not _holds(path, files.get(path)) for path in existing)):
        raise InputError(f"{existing[0]}: already exists; give another name, or {switch('overwrite')}")
    for path, text in files.items():
        if overwrite or path not in existing:
            write_text(path, text)


def _holds(path: Path, text: str | None) -> bool:
    """Whether a file holds this text."""
    return text is not None and path.stat().st_size == len(text.encode()) and regular_bytes(path) == text.encode()


def _numbered(folder: Path) -> list[Path]:
    """The files fold_K.csv of a folder, in the order of K."""
    numbers = {path: path.stem.removeprefix("fold_") for path in folder.glob("fold_*.csv")}
    numbered = [path for path, number in numbers.items() if number.isdecimal() and len(number) <= 6]
    return sorted(numbered, key=lambda path: int(numbers[path]))


def fold_files(folder: Path, cache: Cache) -> list[Path]:
    """The files fold_K.csv of a folder, in the order of K.

    Raises InputError if there are fewer than two, and if any post of the cache that they name is not tested exactly
    once, or is not in all of them.
    """
    files = _numbered(folder)
    if len(files) < 2:
        raise InputError(f"{folder}: {len(files)} files fold_K.csv there; make them with `folds`")
    cached = set(cache.ids)
    tested: dict[str, Path] = {}
    everyone: set[str] = set()
    for number, file in enumerate(files):
        assignments = {id_: given for id_, given in read_splits(file).items() if id_ in cached}
        if number and assignments.keys() != everyone:
            other = min(assignments.keys() ^ everyone)
            raise InputError(f"{file}: not the same posts as in {files[0]} (post {other!r} is in only one of the two)")
        everyone = set(assignments)
        for id_, given in assignments.items():
            if given.split != "test":
                continue
            if id_ in tested:
                raise InputError(f"{file}: post {id_!r} is tested in {tested[id_].name} too")
            tested[id_] = file
    if untested := everyone - tested.keys():
        raise InputError(f"{folder}: {len(untested)} posts are never tested, {min(untested)!r} among them")
    return files
