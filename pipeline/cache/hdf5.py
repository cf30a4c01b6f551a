"""The HDF5 files of a cache: shards of features and an index in, the same files out, and read again.
docs/cache-format.md describes them.

A shard holds up to 256 posts, contiguous, uncompressed and page-aligned, so that `pipeline.cache.reader` can map the
bytes. Labels and splits live in the index alone. Files are read in a process of their own, where every claim of
theirs is checked (`pipeline.cache.hdf5_read`): they may come from a stranger.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.cache import hdf5_read
from pipeline.cache.hdf5_layout import (
    CODES,
    FEATURES,
    FLAGS,
    INDEX,
    INDEX_COLUMNS,
    INDEX_KIND,
    INDEX_VERSION,
    INDEX_VERSION_2,
    POOLED_INDEX_VERSION,
    POOLED_SHARD_VERSION,
    POST_COLUMNS,
    SHARD_KIND,
    SHARD_NAME,
    SHARD_VERSION,
    SHARD_VERSION_1,
    TEXT,
    feature_dtype,
    shard_columns,
)
from pipeline.cache.keep import POOLED, require_same_keep
from pipeline.cache.records import Index, PooledFeatures, PostRecord, Shard, ShardFeatures, Sizes
from pipeline.cache.targets import Target, targets_of
from pipeline.common.apart import apart
from pipeline.common.errors import InputError
from pipeline.common.files import MOST_BYTES, sha256_of_file, write_bytes
from pipeline.posts.image_files import place_of
from pipeline.posts.labels import LABEL, SINGLE
from pipeline.posts.manifest import SPLITS, Post

SHARD_POSTS = 256

# What reading a file may take: ten thousand posts take a tenth of a second and some MiB.
_SECONDS, _MIB = 3, 256


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.h5"


def shard_number(path: Path) -> int:
    return int(path.stem.removeprefix("shard-"))


def shards_in(folder: Path) -> dict[int, Path]:
    """Shard number -> its path, in order, of all that have the name of a shard."""
    return {shard_number(path): path for path in sorted(folder.glob("shard-*")) if SHARD_NAME.fullmatch(path.name)}


def in_shards(posts: Sequence[Post]) -> dict[int, Sequence[Post]]:
    """Shard number -> its posts, in order, SHARD_POSTS to a shard."""
    starts = range(0, len(posts), SHARD_POSTS)
    return {number: posts[start : start + SHARD_POSTS] for number, start in enumerate(starts)}


def write_shard(path: Path, features: ShardFeatures | PooledFeatures, fingerprint: dict[str, Any]) -> None:
    """Write one shard, complete or absent, in the fingerprint's stored dtype."""
    dtype = np.dtype(fingerprint["stored_dtype"])
    vectors, sizes = features.text_pooled, features.sizes if isinstance(features, PooledFeatures) else None
    version = POOLED_SHARD_VERSION if sizes else SHARD_VERSION_1 if vectors is None else SHARD_VERSION
    with _image_of(SHARD_KIND, version, fingerprint, sizes) as file:
        if isinstance(features, ShardFeatures):
            file["/image/patches"] = features.patches.astype(dtype, copy=False)
        file["/image/pooled"] = features.pooled.astype(dtype, copy=False)
        if isinstance(features, ShardFeatures):
            file["/text/tokens"] = np.concatenate(features.tokens).astype(dtype, copy=False)
            file["/text/input_ids"] = np.concatenate(features.input_ids).astype(np.int32, copy=False)
        file["/text/offsets"] = np.cumsum([0, *features.lengths]).astype(np.int64)
        if vectors is not None:
            file["/text/pooled"] = vectors.astype(np.float32, copy=False)
        if features.runtimes:
            file.attrs["runtimes"] = json.dumps(dict(features.runtimes))
        _write_records(file, features.posts)
        file.flush()
        write_bytes(path, file.id.get_file_image())


def read_shards(paths: Sequence[Path]) -> Iterator[Shard | InputError]:
    """What each of some finished shards says, in order; a damaged one is replaced by the problem."""
    for path, found in zip(paths, apart(hdf5_read.shard, paths, seconds=_SECONDS, mib=_MIB), strict=True):
        if isinstance(found, InputError):
            yield _of(path, found)
            continue
        shapes = {name: tuple(shape) for name, shape in found["shapes"].items()}
        sizes = Sizes(*found["sizes"]) if found["sizes"] else None
        of = found["fingerprint"], shapes, found["at"], found["lengths"], found["runtimes"], sizes
        yield Shard(_records(found["posts"]), *of)


def read_shard(path: Path) -> Shard:
    """What a finished shard says. Raises InputError if it is damaged."""
    (shard,) = read_shards([path])
    if isinstance(shard, InputError):
        raise shard
    return shard


def write_index(
    folder: Path,
    shards: Mapping[int, Sequence[Post]],
    fingerprint: dict[str, Any],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    part: dict[str, Any] | None = None,
) -> None:
    """Write the index over the finished shards (number -> its posts), complete or absent; it finishes the cache.

    `names`: the label names of each target, in order. `part` says which part of a larger cache this is, if it is one.
    Raises InputError if a shard holds other posts.
    """
    paths = [folder / shard_name(number) for number in shards]
    posts = [post for shard in shards.values() for post in shard]
    written: list[Shard] = []
    for path, listed, shard in zip(paths, shards.values(), read_shards(paths), strict=True):
        if isinstance(shard, InputError):
            raise shard
        if [record.id for record in shard.posts] != [post.id for post in listed]:
            raise InputError(f"{path}: holds other posts than it should; delete it and run the same `extract` again")
        written.append(shard)
    sizes = written[0].sizes
    for path, shard in zip(paths, written, strict=True):
        if shard.sizes != sizes:
            require_same_keep(path, shard.keep, written[0].keep, "extract again")
            raise InputError(f"{path}: of encoders of other sizes than {paths[0]}; extract again")
    if len({tuple(shard.shapes) for shard in written}) > 1:
        raise InputError(
            f"{folder}: some of its shards have the texts' vectors and some, of an earlier version, have not; "
            "extract again"
        )
    records = [record for shard in written for record in shard.posts]
    before = INDEX_VERSION if "text_pooled" in written[0].shapes else INDEX_VERSION_2
    with _image_of(INDEX_KIND, POOLED_INDEX_VERSION if sizes else before, fingerprint, sizes) as file:
        if part:
            file.attrs["part"] = json.dumps(part)
        file.attrs["split_names"] = SPLITS
        file.attrs["manifest_sha256"] = manifest_sha256(records)
        _write_records(file, records)
        columns: dict[str, list[Any]] = {
            "text": [(post.text or "").replace("\0", "\ufffd") for post in posts],
            "image": [str(post.image or "") for post in posts],
        }
        columns["split"] = [-1 if post.split is None else SPLITS.index(post.split) for post in posts]
        for name, target in targets_of(posts, names).items():
            codes = file.create_dataset(f"/target/{name}", data=target.codes, dtype=CODES)
            codes.attrs["kind"] = SINGLE
            codes.attrs.create("names", target.names, (len(target.names),), TEXT)
        for name, column in columns.items():
            file.create_dataset(f"/post/{name}", data=column, dtype=INDEX_COLUMNS[name])
        _write_shard_table(file, paths, written)
        file.flush()
        write_bytes(folder / INDEX, file.id.get_file_image())


def read_index(folder: Path) -> Index:
    """Read the index of a finished cache. Raises InputError if it is of another version, or if any of its claims does
    not hold.
    """
    content = _from_index(folder, hdf5_read.index, folder)
    columns: dict[str, Any] = {
        name: np.array(content.pop(name), dtype)
        for name, dtype in (
            ("ok", bool),
            ("flags", np.uint16),
            ("offsets", np.int64),
            ("splits", np.int8),
        )
    }
    table = {
        name: np.array(column, "S64" if name == "sha256" else "S16" if name == "name" else np.int64)
        for name, column in content.pop("shards").items()
    }
    columns["targets"] = {
        name: Target(tuple(names), np.array(codes, np.int16)) for name, names, codes in content.pop("targets")
    }
    m, channels = content.pop("patches_shape")
    return Index(**content, **columns, shards=table, patches_shape=(m, channels))


def read_records(folder: Path) -> list[PostRecord]:
    """Hashes, reasons and flags of all posts of a finished cache."""
    return _records(_from_index(folder, hdf5_read.columns, (folder, list(POST_COLUMNS))))


def read_texts(folder: Path) -> list[str]:
    """The texts of all posts of a finished cache."""
    return list(_from_index(folder, hdf5_read.columns, (folder, ["text"]))["text"])


def read_posts(folder: Path) -> list[Post]:
    """The posts of a finished cache as in its manifest, without the problems of unread texts."""
    index = read_index(folder)
    columns = _from_index(folder, hdf5_read.columns, (folder, ["text", "image"]))

    def label(target: Target | None, row: int) -> str | None:
        return None if target is None or target.codes[row] < 0 else target.names[target.codes[row]]

    others = {name: target for name, target in index.targets.items() if name != LABEL}
    return [
        Post(
            id=index.ids[row],
            text=text,
            image=place_of(image, Path()) if image else None,
            label=label(index.targets.get(LABEL), row),
            split=None if index.splits[row] < 0 else SPLITS[index.splits[row]],
            targets={name: found for name, target in others.items() if (found := label(target, row)) is not None},
        )
        for row, (text, image) in enumerate(zip(columns["text"], columns["image"], strict=True))
    ]


def manifest_sha256(records: Sequence[PostRecord]) -> str:
    """One hash for the posts' contents: sorted ids with their text and image hashes; no labels, order or paths."""
    lines = sorted(f"{post.id}\t{post.text_sha256}\t{post.image_sha256}\n" for post in records)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_of_assignments(posts: Sequence[Post], names: Mapping[str, Sequence[str]]) -> str:
    """One hash for the labels, their names and the splits that a manifest gives: parts of different ones must not be
    merged.
    """
    rows = [[post.id, post.label, post.split, sorted(post.targets.items())] for post in posts]
    return hashlib.sha256(json.dumps([sorted(names.items()), rows]).encode()).hexdigest()


def sha256_of_ids(posts: Sequence[Post]) -> str:
    """One hash for which posts a manifest has, and in which order: by it `merge` knows that no part is missing."""
    return hashlib.sha256("".join(f"{post.id}\n" for post in posts).encode()).hexdigest()


@contextmanager
def _image_of(kind: str, version: int, fingerprint: dict[str, Any], sizes: Sizes | None) -> Iterator[h5py.File]:
    """A new HDF5 file in memory. It goes to disk as plain bytes in one write, so that a full disk is a plain error.
    `sizes`: of a file that keeps pooled vectors alone.
    """
    with h5py.File(
        kind,
        "w",
        driver="core",
        backing_store=False,
        block_size=1 << 22,
        alignment_threshold=1,
        alignment_interval=4096,
    ) as file:
        file.attrs["format"] = kind
        file.attrs["schema_version"] = version
        file.attrs["fingerprint"] = json.dumps(fingerprint)
        if sizes:
            file.attrs["keep"] = POOLED
            file.attrs["patches_shape"] = np.array([sizes.patches, sizes.channels], np.int64)
            file.attrs["text_width"] = sizes.text_width
        yield file


def _from_index(folder: Path, work: Callable[[Any], Any], task: Any) -> Any:
    """What `work` reads from an index, with as much time and memory as its size justifies."""
    path = folder / INDEX
    mib = min(path.lstat().st_size, MOST_BYTES) >> 20
    (content,) = apart(work, [task], seconds=_SECONDS + mib, mib=_MIB + 16 * mib)
    if isinstance(content, InputError):
        raise _of(path, content)
    return content


def _of(path: Path, problem: InputError) -> InputError:
    """A problem that names its file, also where the reading process could not say anything itself."""
    return problem if str(problem).startswith(str(path)) else InputError(f"{path}: {problem}")


def _write_records(file: h5py.File, posts: Sequence[PostRecord]) -> None:
    columns: dict[str, list[Any]] = {
        "id": [post.id for post in posts],
        "status": [bool(post.reason) for post in posts],
        "reason": [post.reason for post in posts],
        "flags": [sum(1 << FLAGS.index(flag) for flag in post.flags) for post in posts],
        "text_sha256": [post.text_sha256 for post in posts],
        "image_sha256": [post.image_sha256 for post in posts],
    }
    for name, dtype in POST_COLUMNS.items():
        file.create_dataset(f"/post/{name}", data=columns[name], dtype=dtype)
    file["/post/flags"].attrs["bits"] = FLAGS  # bit i of a post's flags is FLAGS[i]


def _records(columns: Mapping[str, Sequence[Any]]) -> list[PostRecord]:
    flags = [tuple(name for bit, name in enumerate(FLAGS) if value >> bit & 1) for value in columns["flags"]]
    fields = (columns[name] for name in ("id", "text_sha256", "image_sha256", "reason"))
    return [PostRecord(*values) for values in zip(*fields, flags, strict=True)]


def _write_shard_table(file: h5py.File, paths: Sequence[Path], shards: Sequence[Shard]) -> None:
    """The places of each shard's arrays, and virtual datasets over all shards for other HDF5 tools."""
    table: dict[str, list[Any]] = {
        "name": [path.name for path in paths],
        "rows": [len(shard.posts) for shard in shards],
        "bytes": [path.stat().st_size for path in paths],
        "sha256": [sha256_of_file(path) for path in paths],
        **{f"{name}_at": [shard.at[name] for shard in shards] for name in shards[0].shapes},
    }
    for name, dtype in shard_columns(shards[0].shapes).items():
        file.create_dataset(f"/shard/{name}", data=table[name], dtype=dtype)
    stored = shards[0].fingerprint["stored_dtype"]
    for name in shards[0].shapes:
        if name == "offsets":
            continue
        path_ = FEATURES[name]
        shapes = [shard.shapes[name] for shard in shards]
        dtype = feature_dtype(name, stored)
        layout = h5py.VirtualLayout((sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype)
        start = 0
        for path, shape in zip(paths, shapes, strict=True):
            if all(shape):
                layout[start : start + shape[0]] = h5py.VirtualSource(path.name, path_, shape, dtype)
            start += shape[0]
        file.create_virtual_dataset(path_, layout)
    lengths = [length for shard in shards for length in shard.lengths]
    file["/text/offsets"] = np.cumsum([0, *lengths]).astype(np.int64)
