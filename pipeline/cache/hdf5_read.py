"""Reads the HDF5 files of a cache as plain values, once every claim in them is checked: they may come from a stranger.

Runs in a process of its own (`pipeline.common.apart`), because the HDF5 library itself does not survive all damage;
only `pipeline.cache.hdf5` calls it. Checked here is what HDF5 knows: that each dataset is a plain one of the file
itself, of the type that we write, and inside the file. `pipeline.cache.checks` checks the values.
"""

import math
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5s, h5t

from pipeline.cache import checks
from pipeline.cache.checks import Wrong
from pipeline.cache.hdf5_layout import (
    FEATURES,
    FLAGS,
    INDEX,
    INDEX_COLUMNS,
    INDEX_KIND,
    INTEGER,
    POST_COLUMNS,
    SCHEMA_VERSION,
    SHARD_COLUMNS,
    SHARD_KIND,
    TEXT,
    feature_dtype,
)
from pipeline.common.errors import InputError
from pipeline.common.files import MOST_BYTES
from pipeline.posts.manifest import LABELS, SPLITS

_VIRTUAL = [name for name in FEATURES if name != "offsets"]


def index(folder: Path) -> dict[str, Any]:
    """The index of a cache without texts, image paths, hashes and reasons, which are only checked."""
    with _opened(folder / INDEX, INDEX_KIND) as file:
        _members(file.id, "/", ("image", "text", "post", "shard"))
        fingerprint = checks.fingerprint(_attribute(file, "fingerprint"))
        for name, expected in (("label_names", LABELS), ("split_names", SPLITS)):
            if (found := tuple(_attribute(file, name, (len(expected),)))) != expected:
                raise Wrong(f"{name} are {', '.join(map(ascii, found))} where this version has {', '.join(expected)}")
        shards = _columns(file, "shard", SHARD_COLUMNS)
        posts = _columns(file, "post", {**POST_COLUMNS, **INDEX_COLUMNS})
        _bits(file)
        _members(h5g.open(file.id, b"image"), "/image", ("patches", "pooled"))
        _members(h5g.open(file.id, b"text"), "/text", ("tokens", "input_ids", "offsets"))
        starts = _plain(file, FEATURES["offsets"], INTEGER)
        _require_shape(starts, FEATURES["offsets"], (len(posts["id"]) + 1,))
        offsets = _values(starts)
        stored = fingerprint["stored_dtype"]
        arrays = {name: _virtual(file, FEATURES[name], feature_dtype(name, stored)) for name in _VIRTUAL}
        shapes = {name: shape for name, (shape, _) in arrays.items()}
        checks.posts(posts, np.diff(offsets), checks.most_tokens(fingerprint))
        shards = _listed(shards)
        facts = checks.index(fingerprint, posts, offsets, shards, shapes)
        for name, (_, sources) in arrays.items():
            checks.sources(name, sources, shards, offsets)
        manifest = _attribute(file, "manifest_sha256")
        if not checks.is_sha256(manifest):
            raise Wrong("manifest_sha256 is no SHA-256")
        part = checks.part(_attribute(file, "part")) if h5a.exists(file.id, b"part") else None
        return {**_listed(facts), "fingerprint": fingerprint, "manifest_sha256": manifest, "part": part}


def columns(task: tuple[Path, Sequence[str]]) -> dict[str, list[Any]]:
    """Some columns of /post in the index of a cache, by name."""
    folder, names = task
    with _opened(folder / INDEX, INDEX_KIND) as file:
        known = {**POST_COLUMNS, **INDEX_COLUMNS}
        return _listed({name: _values(_plain(file, f"/post/{name}", known[name])) for name in names})


def shard(path: Path) -> dict[str, Any]:
    """What a shard says: its `fingerprint`, the columns of its `posts`, of each array of features its shape and its
    place in the file (`shapes`, `at`), and the `lengths` of its texts.
    """
    with _opened(path, SHARD_KIND) as file:
        _members(file.id, "/", ("image", "text", "post"))
        _members(h5g.open(file.id, b"image"), "/image", ("patches", "pooled"))
        _members(h5g.open(file.id, b"text"), "/text", ("tokens", "input_ids", "offsets"))
        fingerprint = checks.fingerprint(_attribute(file, "fingerprint"))
        posts = _columns(file, "post", POST_COLUMNS)
        _bits(file)
        arrays = {
            name: _plain(file, path_, feature_dtype(name, fingerprint["stored_dtype"]))
            for name, path_ in FEATURES.items()
        }
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        at = {name: array.get_offset() or 0 for name, array in arrays.items()}  # an empty dataset has no place
        checks.arrays(fingerprint, len(posts["id"]), shapes, at)
        lengths = np.diff(checks.offsets(_values(arrays["offsets"]), shapes["tokens"][0]))
        checks.posts(posts, lengths, checks.most_tokens(fingerprint))
        return {
            "fingerprint": fingerprint,
            "shapes": shapes,
            "at": at,
            "lengths": lengths.tolist(),
            "posts": _listed(posts),
        }


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
            found, version = _if_there(file, "format", TEXT), _if_there(file, "schema_version", INTEGER)
            if found != kind:
                raise InputError(f"{path}: not a {kind} file")
            if version != SCHEMA_VERSION:
                raise InputError(
                    f"{path}: cache schema {version}, this version reads {SCHEMA_VERSION}; update mscf or extract again"
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


def _members(group: h5g.GroupID, path: str, expected: Iterable[str]) -> None:
    """Refuse a group that has other members than these, or one that is no plain object of this file."""
    wanted = set(expected)
    count = group.get_num_objs()
    names = {name.decode("utf-8", "backslashreplace") for name in group} if count <= 2 * len(wanted) else None
    if names is None or names - wanted:
        raise Wrong(f"{path} has members that a cache has not")
    if wanted - names:
        raise Wrong(f"{path} lacks {', '.join(sorted(wanted - names))}")
    for name in wanted:
        if group.links.get_info(name.encode()).type != h5l.TYPE_HARD:
            raise Wrong(f"{path.rstrip('/')}/{name} is a link")


def _columns(file: h5py.File, group: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a group, all of one length: texts as lists, the others as arrays."""
    _members(h5g.open(file.id, group.encode()), f"/{group}", types)
    datasets = {name: _plain(file, f"/{group}/{name}", dtype) for name, dtype in types.items()}
    first = next(iter(types))
    shape = datasets[first].shape
    if len(shape) != 1 or not shape[0]:
        raise Wrong(f"/{group}/{first} has the shape {shape}")
    for name, dataset in datasets.items():
        _require_shape(dataset, f"/{group}/{name}", shape)
    return {name: _values(dataset) for name, dataset in datasets.items()}


def _plain(file: h5py.File, path: str, dtype: np.dtype) -> h5d.DatasetID:
    """A dataset that lies in one piece inside this file, of this type."""
    dataset = h5d.open(file.id, path.encode())
    how = dataset.get_create_plist()
    if how.get_layout() != h5d.CONTIGUOUS or how.get_nfilters() or how.get_external_count():
        raise Wrong(f"{path} is not contiguous, uncompressed and in this file")
    _require_form(dataset, path, dtype)
    size = math.prod(dataset.shape) * dataset.get_type().get_size()
    if size and ((start := dataset.get_offset()) is None or start + size > file.id.get_filesize()):
        raise Wrong(f"{path} has {size} bytes, which do not all lie in the file")
    return dataset


def _virtual(file: h5py.File, path: str, dtype: np.dtype) -> tuple[list[int], list[tuple[str, int, int]]]:
    """The shape of a virtual dataset, and its sources: the file, and its first and last row target."""
    dataset = h5d.open(file.id, path.encode())
    how = dataset.get_create_plist()
    if how.get_layout() != h5d.VIRTUAL:
        raise Wrong(f"{path} is not virtual")
    sources = []
    for number in range(how.get_virtual_count()):  # before asking for the shape, for which HDF5 may open them
        target, source = how.get_virtual_vspace(number), how.get_virtual_srcspace(number)
        for space in (target, source):
            if space.get_simple_extent_dims() != space.get_simple_extent_dims(True):
                raise Wrong(f"{path} is virtual without an end")
        first, last = target.get_select_bounds()
        names = how.get_virtual_filename(number), how.get_virtual_dsetname(number)
        if names[1] != path:
            raise Wrong(f"{path} is virtual over another dataset")
        sources.append((names[0], int(first[0]), int(last[0])))
    _require_form(dataset, path, dtype)
    return list(dataset.shape), sources


def _require_form(dataset: h5d.DatasetID, path: str, dtype: np.dtype) -> None:
    if not dataset.get_type().equal(h5t.py_create(dtype, logical=True)):
        raise Wrong(f"{path} has another type than a cache has")
    space = dataset.get_space()
    if space.get_simple_extent_type() != h5s.SIMPLE or space.get_simple_extent_dims(True) != dataset.shape:
        raise Wrong(f"{path} has no fixed shape")


def _require_shape(dataset: h5d.DatasetID, path: str, shape: tuple[int, ...]) -> None:
    if dataset.shape != shape:
        raise Wrong(f"{path} has the shape {dataset.shape}, not {shape}")


def _values(dataset: h5d.DatasetID) -> Any:
    """Texts as a list of str, else an array."""
    if dataset.dtype == TEXT:
        return h5py.Dataset(dataset).asstr("utf-8", "strict")[:].tolist()
    values = np.empty(dataset.shape, dataset.dtype)
    if values.size:
        dataset.read(h5s.ALL, h5s.ALL, values)
    return values


def _attribute(file: h5py.File, name: str, shape: tuple[int, ...] = (), dtype: np.dtype = TEXT) -> Any:
    """An attribute of the file, of this type and shape; texts are valid UTF-8."""
    attribute = h5a.open(file.id, name.encode())
    if not attribute.get_type().equal(h5t.py_create(dtype, logical=True)) or attribute.shape != shape:
        raise Wrong(f"the attribute {name} has another form than a cache has")
    value = file.attrs[name]
    if dtype == TEXT:
        for text in [value] if shape == () else value:
            checks.bounded_text(text, f"the attribute {name}")
    return value


def _if_there(file: h5py.File, name: str, dtype: np.dtype) -> Any:
    try:
        return _attribute(file, name, (), dtype) if h5a.exists(file.id, name.encode()) else None
    except Wrong:
        return None


def _bits(file: h5py.File) -> None:
    flags = h5py.Dataset(h5d.open(file.id, b"/post/flags"))
    attribute = h5a.open(flags.id, b"bits")
    if attribute.shape != (len(FLAGS),) or not attribute.get_type().equal(h5t.py_create(TEXT, logical=True)):
        raise Wrong("the attribute bits has another form than a cache has")
    if tuple(flags.attrs["bits"]) != FLAGS:
        raise Wrong("the bits of /post/flags have other names than here")


def _listed(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as lists, of bytes as ASCII: what JSON can hold."""
    return {
        name: [value.decode("ascii") for value in values.tolist()]
        if isinstance(values, np.ndarray) and values.dtype.kind == "S"
        else values.tolist()
        if isinstance(values, np.ndarray)
        else values
        for name, values in columns.items()
    }
