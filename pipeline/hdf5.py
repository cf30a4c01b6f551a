"""The HDF5 files of a cache: shards of features and an index in, the same files out, and read again.
docs/cache-format.md describes them.

This is the only file that knows HDF5. A shard holds up to 256 posts, contiguous, uncompressed and page-aligned, so that
the reader of `pipeline.cache` can map the bytes. Labels and splits live in the index alone.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.files import sha256_of_file, write_bytes
from pipeline.records import LABELS, SPLITS, Post

INDEX = "index.h5"
SCHEMA_VERSION = 1
SHARD_POSTS = 256
FLAGS = ("truncated", "empty_text", "rotated", "animated", "converted")
STORED_DTYPES = ("float16", "float32")

_STATUS = h5py.enum_dtype({"ok": 0, "failed": 1}, basetype="i1")
_LABEL = h5py.enum_dtype({"none": -1, **{name: i for i, name in enumerate(LABELS)}}, basetype="i1")
_SPLIT = h5py.enum_dtype({"none": -1, **{name: i for i, name in enumerate(SPLITS)}}, basetype="i1")
_TEXT = h5py.string_dtype()
_SHA256 = h5py.string_dtype("ascii", 64)
_FEATURES = {"patches": "/image/patches", "pooled": "/image/pooled", "tokens": "/text/tokens",
             "input_ids": "/text/input_ids", "offsets": "/text/offsets"}  # fmt: skip


@dataclass(frozen=True)
class PostRecord:
    """What extraction found out about one post, kept beside its features."""

    id: str
    text_sha256: str
    image_sha256: str
    reason: str = ""  # why it failed; empty: it is whole
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardFeatures:
    """The features of one shard's posts, row by row; a failed post keeps its slot with zeros and no tokens.

    patches (N, m, C), pooled (N, C), of several views (N, V, m, C) and (N, V, C); tokens and input_ids a list of (n, D)
    and (n,), one per post.
    """

    posts: list[PostRecord]
    patches: np.ndarray
    pooled: np.ndarray
    tokens: list[np.ndarray]
    input_ids: list[np.ndarray]


@dataclass(frozen=True)
class Index:
    """The index of a finished cache: N posts, and where their features lie in which shard.

    `ok` (N,) bool; `labels`, `text_labels`, `image_labels` and `splits` (N,) int8, indices into LABELS and SPLITS with
    -1 for none; `offsets` (N + 1,) into the token rows of all shards; `shards` the columns of the shard table.
    """

    fingerprint: dict[str, Any]
    manifest_sha256: str
    ids: list[str]
    ok: np.ndarray
    flags: np.ndarray
    labels: np.ndarray
    text_labels: np.ndarray
    image_labels: np.ndarray
    splits: np.ndarray
    offsets: np.ndarray
    shards: dict[str, np.ndarray]
    patches_shape: tuple[int, int]
    text_width: int
    part: dict[str, Any] | None  # which part of a larger cache this is, if it is one


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.h5"


def shard_number(path: Path) -> int:
    return int(path.stem.removeprefix("shard-"))


def in_shards(posts: Sequence[Post]) -> dict[int, Sequence[Post]]:
    """Shard number -> its posts, in order, SHARD_POSTS to a shard."""
    starts = range(0, len(posts), SHARD_POSTS)
    return {number: posts[start : start + SHARD_POSTS] for number, start in enumerate(starts)}


def write_shard(path: Path, features: ShardFeatures, fingerprint: dict[str, Any]) -> None:
    """Write one shard, complete or absent, in the fingerprint's stored dtype."""
    dtype = np.dtype(fingerprint["stored_dtype"])
    offsets = np.cumsum([0, *(len(ids) for ids in features.input_ids)])
    with _image_of("mscf shard", fingerprint) as file:
        file["/image/patches"] = features.patches.astype(dtype, copy=False)
        file["/image/pooled"] = features.pooled.astype(dtype, copy=False)
        file["/text/tokens"] = np.concatenate(features.tokens).astype(dtype, copy=False)
        file["/text/input_ids"] = np.concatenate(features.input_ids).astype(np.int32, copy=False)
        file["/text/offsets"] = offsets.astype(np.int64)
        _write_records(file, features.posts)
        file.flush()
        write_bytes(path, file.id.get_file_image())


def read_shard_posts(path: Path) -> tuple[list[PostRecord], dict[str, Any]]:
    """The posts of a finished shard and its fingerprint, for going on with an unfinished extraction."""
    with _open(path, "mscf shard") as file:
        return _read_records(file), json.loads(file.attrs["fingerprint"])


def write_index(
    folder: Path,
    shards: Mapping[int, Sequence[Post]],
    fingerprint: dict[str, Any],
    *,
    part: dict[str, Any] | None = None,
) -> None:
    """Write the index over the finished shards (number -> its posts), complete or absent; it finishes the cache.

    `part` says which part of a larger cache this is, if it is one. Raises InputError if a shard holds other posts.
    """
    paths = [folder / shard_name(number) for number in shards]
    posts = [post for shard in shards.values() for post in shard]
    records = []
    for path, shard in zip(paths, shards.values(), strict=True):
        found = read_shard_posts(path)[0]
        if [record.id for record in found] != [post.id for post in shard]:
            raise InputError(f"{path}: holds other posts than it should; delete it and run the same `extract` again")
        records += found
    with _image_of("mscf cache", fingerprint) as file:
        if part:
            file.attrs["part"] = json.dumps(part)
        file.attrs["label_names"] = LABELS
        file.attrs["split_names"] = SPLITS
        file.attrs["manifest_sha256"] = manifest_sha256(records)
        _write_records(file, records)
        file.create_dataset(
            "/post/text", data=[(post.text or "").replace("\0", "\ufffd") for post in posts], dtype=_TEXT
        )
        file.create_dataset("/post/image", data=[str(post.image or "") for post in posts], dtype=_TEXT)
        for field, names, dtype in (
            ("label", LABELS, _LABEL),
            ("text_label", LABELS, _LABEL),
            ("image_label", LABELS, _LABEL),
            ("split", SPLITS, _SPLIT),
        ):
            values = [getattr(post, field) for post in posts]
            codes = [-1 if value is None else names.index(value) for value in values]
            file.create_dataset(f"/post/{field}", data=codes, dtype=dtype)
        _write_shard_table(file, paths)
        file.flush()
        write_bytes(folder / INDEX, file.id.get_file_image())


def read_index(folder: Path) -> Index:
    """Read the index of a finished cache. Raises InputError if it is damaged or of another version."""
    with _open(folder / INDEX, "mscf cache") as file:
        labels, text_labels, image_labels, splits = (
            file[f"/post/{field}"][:].astype(np.int8) for field in ("label", "text_label", "image_label", "split")
        )
        return Index(
            fingerprint=json.loads(file.attrs["fingerprint"]),
            manifest_sha256=file.attrs["manifest_sha256"],
            ids=file["/post/id"].asstr()[:].tolist(),
            ok=file["/post/status"][:] == 0,
            flags=file["/post/flags"][:],
            labels=labels,
            text_labels=text_labels,
            image_labels=image_labels,
            splits=splits,
            offsets=file["/text/offsets"][:],
            shards={name: column[:] for name, column in file["/shard"].items()},
            patches_shape=file["/image/patches"].shape[-2:],
            text_width=file["/text/tokens"].shape[1],
            part=json.loads(file.attrs["part"]) if "part" in file.attrs else None,
        )


def read_records(folder: Path) -> list[PostRecord]:
    """Hashes, reasons and flags of all posts of a finished cache."""
    with _open(folder / INDEX, "mscf cache") as file:
        return _read_records(file)


def read_images(folder: Path) -> list[str]:
    """The image paths of all posts of a finished cache."""
    with _open(folder / INDEX, "mscf cache") as file:
        return list(file["/post/image"].asstr()[:].tolist())


def read_posts(folder: Path) -> list[Post]:
    """The posts of a finished cache as its manifest had them, but for the problems of unread texts."""
    index, texts, images = read_index(folder), read_texts(folder), read_images(folder)

    def name(names: Sequence[str], code: int) -> str | None:
        return None if code < 0 else names[code]

    return [
        Post(
            id=index.ids[row],
            text=texts[row],
            image=Path(images[row]) if images[row] else None,
            label=name(LABELS, index.labels[row]),
            split=name(SPLITS, index.splits[row]),
            text_label=name(LABELS, index.text_labels[row]),
            image_label=name(LABELS, index.image_labels[row]),
        )
        for row in range(len(index.ids))
    ]


def read_texts(folder: Path) -> list[str]:
    """The texts of all posts of a finished cache."""
    with _open(folder / INDEX, "mscf cache") as file:
        return list(file["/post/text"].asstr()[:].tolist())


def manifest_sha256(records: Sequence[PostRecord]) -> str:
    """One hash for the posts' contents: sorted ids with their text and image hashes; no labels, order or paths."""
    lines = sorted(f"{post.id}\t{post.text_sha256}\t{post.image_sha256}\n" for post in records)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def _image_of(kind: str, fingerprint: dict[str, Any]) -> Iterator[h5py.File]:
    """A new HDF5 file in memory. It goes to disk as plain bytes in one write, so that a full disk is a plain error."""
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
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["fingerprint"] = json.dumps(fingerprint)
        yield file


@contextmanager
def _open(path: Path, kind: str) -> Iterator[h5py.File]:
    """Open for reading, without HDF5's file lock: readers must work on read-only and network folders."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            found, version = file.attrs.get("format"), file.attrs.get("schema_version")
            if found != kind:
                raise InputError(f"{path}: not a {kind} file")
            if version != SCHEMA_VERSION:
                raise InputError(
                    f"{path}: cache schema {version}, this version reads {SCHEMA_VERSION}; update mscf or extract again"
                )
            yield file
    except (OSError, KeyError, ValueError, RuntimeError) as error:  # HDF5 meets damage in any of these ways
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path}: damaged or not HDF5 ({reason}); delete it and run the same `extract` again"
        ) from None


def _write_records(file: h5py.File, posts: Sequence[PostRecord]) -> None:
    file.create_dataset("/post/id", data=[post.id for post in posts], dtype=_TEXT)
    file.create_dataset("/post/status", data=[bool(post.reason) for post in posts], dtype=_STATUS)
    file.create_dataset("/post/reason", data=[post.reason for post in posts], dtype=_TEXT)
    flags = file.create_dataset(
        "/post/flags", data=[sum(1 << FLAGS.index(flag) for flag in post.flags) for post in posts], dtype=np.uint16
    )
    flags.attrs["bits"] = FLAGS  # bit i of a post's flags is FLAGS[i]
    file.create_dataset("/post/text_sha256", data=[post.text_sha256 for post in posts], dtype=_SHA256)
    file.create_dataset("/post/image_sha256", data=[post.image_sha256 for post in posts], dtype=_SHA256)


def _read_records(file: h5py.File) -> list[PostRecord]:
    ids, reasons, texts, images = (
        file[f"/post/{name}"].asstr()[:].tolist() for name in ("id", "reason", "text_sha256", "image_sha256")
    )
    flags = [
        tuple(name for bit, name in enumerate(FLAGS) if value >> bit & 1) for value in file["/post/flags"][:].tolist()
    ]
    return [PostRecord(*fields) for fields in zip(ids, texts, images, reasons, flags, strict=True)]


def _write_shard_table(file: h5py.File, shards: Sequence[Path]) -> None:
    """Where each shard's arrays lie, and virtual datasets over all shards for people with other HDF5 tools."""
    table: dict[str, list[Any]] = {
        name: [] for name in ("name", "rows", "bytes", "sha256", *(f"{n}_at" for n in _FEATURES))
    }
    sources: dict[str, list[h5py.VirtualSource]] = {name: [] for name in _FEATURES if name != "offsets"}
    lengths = [np.zeros(1, np.int64)]
    for shard in shards:
        with _open(shard, "mscf shard") as source:
            table["name"].append(shard.name)
            table["rows"].append(len(source["/post/id"]))
            table["bytes"].append(shard.stat().st_size)
            table["sha256"].append(sha256_of_file(shard))
            for name, path in _FEATURES.items():
                table[f"{name}_at"].append(source[path].id.get_offset() or 0)  # an empty dataset has no place
            for name, parts in sources.items():
                array = source[_FEATURES[name]]
                parts.append(h5py.VirtualSource(shard.name, _FEATURES[name], array.shape, array.dtype))
            lengths.append(np.diff(source["/text/offsets"][:]))
    for name, column in table.items():
        dtype = {"name": h5py.string_dtype("ascii", 16), "sha256": _SHA256}.get(name, np.int64)
        file.create_dataset(f"/shard/{name}", data=column, dtype=dtype)
    for name, parts in sources.items():
        layout = h5py.VirtualLayout((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), parts[0].dtype)
        start = 0
        for part in parts:
            if all(part.shape):
                layout[start : start + part.shape[0]] = part
            start += part.shape[0]
        file.create_virtual_dataset(_FEATURES[name], layout)
    file["/text/offsets"] = np.cumsum(np.concatenate(lengths))
