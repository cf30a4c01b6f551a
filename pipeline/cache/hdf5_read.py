"""Reads the HDF5 files of a cache as plain values, once every claim in them is checked: they may come from a stranger.

Runs in a process of its own (`pipeline.common.apart`), because the HDF5 library itself does not survive all damage;
only `pipeline.cache.hdf5` calls it. `pipeline.cache.hdf5_values` checks what HDF5 knows of each dataset, and
`pipeline.cache.checks` checks the values.
"""

import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5t

from pipeline.cache import check_json, checks
from pipeline.cache.check_json import Wrong
from pipeline.cache.hdf5_layout import (
    CODES,
    FEATURES,
    FEATURES_1,
    FLAGS,
    INDEX,
    INDEX_COLUMNS,
    INDEX_COLUMNS_1,
    INDEX_KIND,
    INDEX_VERSION_2,
    INTEGER,
    LABELS_1,
    POOLED_FEATURES,
    POOLED_INDEX_VERSION,
    POOLED_SHARD_VERSION,
    POST_COLUMNS,
    SHARD_KIND,
    SHARD_VERSION_1,
    TARGETS_1,
    TEXT,
    feature_dtype,
    shard_columns,
)
from pipeline.cache.hdf5_values import (
    attribute_if_there,
    column_group,
    listed,
    plain_dataset,
    read_attribute,
    read_values,
    require_members,
    require_shape,
    virtual_dataset,
)
from pipeline.cache.keep import ALL, POOLED
from pipeline.common.errors import InputError
from pipeline.common.files import MOST_BYTES
from pipeline.posts.labels import MOST_NAMES, MOST_TARGETS, SINGLE
from pipeline.posts.manifest import SPLITS


def index(folder: Path) -> dict[str, Any]:
    """The index of a cache without texts, image paths, hashes and reasons, which are only checked."""
    with _opened(folder / INDEX, INDEX_KIND) as file:
        first = _version(file) == 1
        require_members(file.id, "/", ("image", "text", "post", "shard", *(() if first else ("target",))))
        fingerprint = check_json.fingerprint(read_attribute(file, "fingerprint"))
        _require_attribute(file, "split_names", SPLITS)
        features, sizes = _features_of(file, INDEX_KIND)
        shards = column_group(file, "shard", shard_columns(features))
        posts = column_group(file, "post", _columns_of(file))
        targets = _targets_of_version_1(file, posts) if first else _targets(file, len(posts["id"]))
        _bits(file)
        _require_features(file, features)
        starts = plain_dataset(file, FEATURES["offsets"], INTEGER)
        require_shape(starts, FEATURES["offsets"], (len(posts["id"]) + 1,))
        offsets = read_values(starts)
        stored = fingerprint["stored_dtype"]
        arrays = {
            name: virtual_dataset(file, path, feature_dtype(name, stored))
            for name, path in features.items()
            if name != "offsets"
        }
        shapes = {name: shape for name, (shape, _) in arrays.items()}
        checks.posts(posts, np.diff(offsets), fingerprint)
        shards = listed(shards)
        facts = checks.index(fingerprint, posts, offsets, shards, shapes, sizes)
        for name, (_, sources) in arrays.items():
            checks.sources(name, sources, shards, offsets)
        manifest = read_attribute(file, "manifest_sha256")
        if not check_json.is_sha256(manifest):
            raise Wrong("manifest_sha256 is no SHA-256")
        part = check_json.part(read_attribute(file, "part")) if h5a.exists(file.id, b"part") else None
        return {
            **listed(facts),
            "fingerprint": fingerprint,
            "manifest_sha256": manifest,
            "part": part,
            "keep": ALL if sizes is None else POOLED,
            "targets": targets,
        }


def columns(task: tuple[Path, Sequence[str]]) -> dict[str, list[Any]]:
    """Some columns of /post in the index of a cache, by name."""
    folder, names = task
    with _opened(folder / INDEX, INDEX_KIND) as file:
        known = _columns_of(file)
        return listed({name: read_values(plain_dataset(file, f"/post/{name}", known[name])) for name in names})


def shard(path: Path) -> dict[str, Any]:
    """What a shard says: its `fingerprint`, the columns of its `posts`, of each array of features its shape and its
    place in the file (`shapes`, `at`), the `lengths` of its texts, and the `sizes` of what it does not keep, or None.
    """
    with _opened(path, SHARD_KIND) as file:
        require_members(file.id, "/", ("image", "text", "post"))
        features, sizes = _features_of(file, SHARD_KIND)
        _require_features(file, features)
        fingerprint = check_json.fingerprint(read_attribute(file, "fingerprint"))
        posts = column_group(file, "post", POST_COLUMNS)
        _bits(file)
        arrays = {
            name: plain_dataset(file, path_, feature_dtype(name, fingerprint["stored_dtype"]))
            for name, path_ in features.items()
        }
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        at = {name: array.get_offset() or 0 for name, array in arrays.items()}  # an empty dataset has no place
        checks.arrays(fingerprint, len(posts["id"]), shapes, at, sizes)
        lengths = np.diff(checks.offsets(read_values(arrays["offsets"]), shapes))
        checks.posts(posts, lengths, fingerprint)
        return {
            "fingerprint": fingerprint,
            "shapes": shapes,
            "at": at,
            "lengths": lengths.tolist(),
            "runtimes": check_json.runtimes(attribute_if_there(file, "runtimes", TEXT)),
            "sizes": sizes,
            "posts": listed(posts),
        }


def _features_of(file: h5py.File, kind: str) -> tuple[Mapping[str, str], list[int] | None]:
    """The features that a file of its version has; and m, C and D where it keeps pooled vectors alone, else None."""
    of_index, version = kind == INDEX_KIND, _version(file)
    if version == (POOLED_INDEX_VERSION if of_index else POOLED_SHARD_VERSION):
        if (keep := read_attribute(file, "keep")) != POOLED:
            raise Wrong(f"keeps {keep[:20]!a}, where this version has {POOLED}")
        patches = read_attribute(file, "patches_shape", (2,), INTEGER)
        return POOLED_FEATURES, [*patches.tolist(), int(read_attribute(file, "text_width", (), INTEGER))]
    before = version <= (INDEX_VERSION_2 if of_index else SHARD_VERSION_1)
    return (FEATURES_1 if before else FEATURES), None


def _require_features(file: h5py.File, features: Mapping[str, str]) -> None:
    """Refuse a file whose groups of features have other members than these."""
    for group in ("image", "text"):
        members = [path.removeprefix(f"/{group}/") for path in features.values() if path.startswith(f"/{group}/")]
        require_members(h5g.open(file.id, group.encode()), f"/{group}", members)


def _version(file: h5py.File) -> int:
    return int(file.attrs["schema_version"])  # _opened has checked it


def _columns_of(file: h5py.File) -> dict[str, Any]:
    return {**POST_COLUMNS, **(INDEX_COLUMNS_1 if _version(file) == 1 else INDEX_COLUMNS)}


def _require_attribute(file: h5py.File, name: str, expected: tuple[str, ...]) -> None:
    if (found := tuple(read_attribute(file, name, (len(expected),)))) != expected:
        raise Wrong(f"{name} are {', '.join(map(ascii, found))} where this version has {', '.join(expected)}")


def _targets(file: h5py.File, count: int) -> list[tuple[str, list[str], list[int]]]:
    """Every target: its name, its label names, and the posts' codes."""
    group = h5g.open(file.id, b"target")
    if group.get_num_objs() > MOST_TARGETS:
        raise Wrong(f"/target has over {MOST_TARGETS} members")
    found = [name.decode("utf-8", "strict") for name in group]
    checks.target_names(found)
    require_members(group, "/target", found)
    targets = []
    for name in sorted(found, key=lambda name: (name != "label", name)):
        codes = plain_dataset(file, f"/target/{name}", CODES)
        require_shape(codes, f"/target/{name}", (count,))
        names = _names_of(codes, name)
        values = read_values(codes)
        checks.codes(name, names, values)
        targets.append((name, names, values.tolist()))
    return targets


def _names_of(codes: h5d.DatasetID, name: str) -> list[str]:
    """The label names of a target, which its dataset has as an attribute."""
    kind, names = (h5a.open(codes, attribute) for attribute in (b"kind", b"names"))
    text = h5t.py_create(TEXT, logical=True)
    if not (
        kind.get_type().equal(text) and names.get_type().equal(text) and kind.shape == () and len(names.shape) == 1
    ):
        raise Wrong(f"/target/{name}: its attributes have another form than a cache has")
    if names.shape[0] > MOST_NAMES:
        raise Wrong(f"/target/{name} has over {MOST_NAMES} label names")
    attributes = h5py.Dataset(codes).attrs
    if attributes["kind"] != SINGLE:
        raise Wrong(f"/target/{name} is of a kind that this version does not know")
    return list(attributes["names"])


def _targets_of_version_1(file: h5py.File, posts: dict[str, Any]) -> list[tuple[str, list[str], list[int]]]:
    """The three targets of an index of version 1; the labels of text and image only where a post has one."""
    _require_attribute(file, "label_names", LABELS_1)
    targets = []
    for name in TARGETS_1:
        codes = posts[name]
        checks.codes(name, list(LABELS_1), codes)
        if name == "label" or codes.max() >= 0:
            targets.append((name, list(LABELS_1), codes.tolist()))
    return targets


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[h5py.File]:
    """Open for reading, without HDF5's file lock: readers must work on read-only and network folders."""
    try:
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode):
            raise Wrong("a link, a folder, a pipe or a device where a cache has a file")
        if kind == INDEX_KIND and state.st_size > MOST_BYTES:
            raise Wrong(f"{state.st_size} bytes, over the limit of {MOST_BYTES}")
        with h5py.File(path, "r", locking=False) as file:
            found = attribute_if_there(file, "format", TEXT)
            version = attribute_if_there(file, "schema_version", INTEGER)
            if found != kind:
                raise InputError(f"{path}: not a {kind} file")
            newest = POOLED_INDEX_VERSION if kind == INDEX_KIND else POOLED_SHARD_VERSION
            if version not in range(1, newest + 1):
                raise InputError(
                    f"{path}: cache schema {version}, this version reads up to {newest}; update mscf or extract again"
                )
            if file.userblock_size:
                raise Wrong("begins with a block that is not HDF5")
            yield file
    except Wrong as wrong:
        raise InputError(f"{path}: damaged, or not made by mscf ({wrong})") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # HDF5 meets damage in any of many ways
        reason = " ".join(f"{error}".split())[:160] or type(error).__name__
        raise InputError(
            f"{path}: damaged or not HDF5 ({reason}); delete it and run the same `extract` again"
        ) from None


def _bits(file: h5py.File) -> None:
    flags = h5py.Dataset(h5d.open(file.id, b"/post/flags"))
    attribute = h5a.open(flags.id, b"bits")
    if attribute.shape != (len(FLAGS),) or not attribute.get_type().equal(h5t.py_create(TEXT, logical=True)):
        raise Wrong("the attribute bits has another form than a cache has")
    if tuple(flags.attrs["bits"]) != FLAGS:
        raise Wrong("the bits of /post/flags have other names than here")
