"""Merges the parts of a cache that `extract --part i/n` made, on one machine or on many."""

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.cache import hdf5
from pipeline.cache.keep import require_same_keep
from pipeline.cache.reader import Cache, remove_cache_files
from pipeline.common.errors import InputError, option
from pipeline.common.files import complete_or_absent
from pipeline.common.locks import only_writer
from pipeline.encoders.fingerprint import first_difference
from pipeline.posts.manifest import Post


def merge(parts: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Cache:
    """Hard-link the shards of all parts into `out` (copy them across file systems) under one index.

    Every part must be there once, of one manifest, made by the same encoders. Raises InputError naming what differs.
    The parts stay what they are, and may be deleted afterwards. `overwrite` replaces the cache at `out`.
    """
    folders, out = [Path(part) for part in parts], Path(out)
    _require_all(folders)
    if out.resolve() in {part.resolve() for part in folders}:
        raise InputError(f"{out}: is one of the parts; give the merged cache a folder of its own")
    shards: dict[int, tuple[Path, Sequence[Post]]] = {}
    for part in folders:
        shards.update(_shards_of(part))
    index = hdf5.read_index(folders[0])
    posts = [post for _, (_, posts) in sorted(shards.items()) for post in posts]
    if index.part is None or hdf5.sha256_of_ids(posts) != index.part["ids_sha256"]:
        raise InputError(f"{', '.join(map(str, parts))}: their shards do not make up the posts that they are parts of")
    names = {name: target.names for name, target in index.targets.items()}
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        if overwrite:
            remove_cache_files(out)
        for _, (shard, _) in sorted(shards.items()):
            _link(shard, out / shard.name)
        hdf5.write_index(out, {number: shards[number][1] for number in sorted(shards)}, index.fingerprint, names=names)
    return Cache(out)


def _require_all(parts: Sequence[Path]) -> None:
    """Every part of one manifest once, whole, by the same encoders."""
    seen: dict[int, Path] = {}
    first = None
    for folder in parts:
        index = Cache(folder).index  # opening it checks that its shards are there
        if index.part is None:
            raise InputError(
                f"{folder}: a whole cache and no part of one; parts are made by extract, {option('part', 'i/n')}"
            )
        number = index.part["number"]
        if number in seen:
            raise InputError(f"{folder}: part {number}, as {seen[number]} is")
        seen[number] = folder
        first = first or index
        if difference := first_difference(first.fingerprint, index.fingerprint):
            raise InputError(f"{folder}: computed by other encoders than {parts[0]}; {difference}")
        require_same_keep(folder, index.keep, first.keep, f"{parts[0]} keeps that; extract the part again")
        if difference := first_difference({**first.part, "number": 0}, {**index.part, "number": 0}):  # type: ignore[dict-item]
            labels = difference.startswith("assignments_sha256")
            other = "with other labels or splits" if labels else "of another manifest or division"
            raise InputError(f"{folder}: a part {other} than {parts[0]}; {difference}")
    assert first is not None
    assert first.part is not None
    if missing := sorted(set(range(1, first.part["of"] + 1)) - seen.keys()):
        raise InputError(f"part {missing[0]}/{first.part['of']} is missing; {len(missing)} of the parts are not named")


def _shards_of(part: Path) -> dict[int, tuple[Path, Sequence[Post]]]:
    """Shard number -> its file and its posts."""
    table, posts = hdf5.read_index(part).shards, hdf5.read_posts(part)
    shards: dict[int, tuple[Path, Sequence[Post]]] = {}
    start = 0
    for name, rows in zip(table["name"], table["rows"], strict=True):
        file = part / name.decode()
        shards[hdf5.shard_number(file)] = (file, posts[start : start + int(rows)])
        start += int(rows)
    return shards


def _link(source: Path, target: Path) -> None:
    if not target.is_symlink() and target.exists() and target.samefile(source):
        return  # linked by a call that was killed; renaming a file to itself does nothing
    with complete_or_absent(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copyfile(source, temporary)
