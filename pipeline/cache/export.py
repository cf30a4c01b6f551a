"""Writes a cache's pooled vectors for other tools: a Parquet file, or NumPy files laid out as clip-retrieval has them.

The posts go through a few thousand at a time, so that memory does not grow with them. Posts that failed in extraction
are left out.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, option, switch
from pipeline.common.files import complete_or_absent, write_json
from pipeline.common.folders import remove_file, require_no_link
from pipeline.common.locks import only_writer
from pipeline.encoders.fingerprint import require_images
from pipeline.encoders.views import VIEWS
from pipeline.posts.labels import LABEL
from pipeline.posts.manifest import SPLITS

PARQUET, NPY = "parquet", "npy"
FORMATS = (PARQUET, NPY)
POOLED, IMAGE, TEXT = "pooled", "image", "text"
WHATS = (POOLED, IMAGE, TEXT)  # the vectors of both, of the image, of the text
TABLE, FACTS = "features.parquet", "features.json"
_METADATA = "metadata/metadata_0.parquet"
_AT_ONCE = 4096  # posts: 8 KiB of each vector are 64 MiB


@dataclass(frozen=True)
class Vectors:
    """The vectors of a kind: their `width`, their type, and how those of some rows are read."""

    width: int
    dtype: np.dtype
    read: Callable[[np.ndarray], np.ndarray]


def export_features(
    cache: Cache | str | Path,
    out: str | Path,
    *,
    format: str = PARQUET,
    split: str | None = None,
    what: str = POOLED,
    overwrite: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Write the vectors with ids, labels of all targets, splits and hashes into the folder `out`; all posts, or those
    of one split. Returns what docs/files.md says of `features.json`, and the `files` with their bytes.

    Raises InputError if pyarrow is missing, if there is nothing to write, and without `overwrite` if an earlier call
    has finished there.
    """
    for name, given, known in (("format", format, FORMATS), ("what", what, WHATS), ("split", split, (None, *SPLITS))):
        if given not in known:
            raise InputError(f"{option(name, given)}: must be one of {', '.join(filter(None, known))}")
    if find_spec("pyarrow") is None:
        raise InputError("writing features for other tools needs the package pyarrow; pip install -e '.[parquet]'")
    cache, out = cache if isinstance(cache, Cache) else Cache(cache), Path(out)
    last = out / (TABLE if format == PARQUET else FACTS)
    if last.exists() and not overwrite:
        raise InputError(f"{last}: already exists; give another name, or {switch('overwrite')}")
    vectors = _vectors_of(cache, what)
    here = np.ones(len(cache), bool) if split is None else cache.splits == SPLITS.index(split)
    rows = np.flatnonzero(here & cache.ok)
    if not len(rows):
        of_split = "" if split is None else f" of split {split!r}"
        raise InputError(f"{cache.folder}: no post{of_split} has features; `inspect` says which failed")
    facts = {
        "posts": len(rows),
        "failed": int(np.sum(here & ~cache.ok)),
        "split": split,
        "what": what,
        "vectors": {name: one.width for name, one in vectors.items()},
        "targets": {name: list(target.names) for name, target in cache.index.targets.items()},
        "manifest_sha256": cache.manifest_sha256,
        "fingerprint": cache.fingerprint,
    }
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out), tqdm(total=len(rows), unit="post", desc="export", disable=quiet) as bar:
        if format == PARQUET:
            _write_table(last, cache, rows, vectors, facts, bar)
            files = [last]
        else:
            remove_file(last)  # the folder is finished once it is there again
            files = [*_write_arrays(out, cache, rows, vectors, facts, bar), last]
            write_json(last, facts)
    return {**facts, "files": {file.relative_to(out).as_posix(): file.stat().st_size for file in files}}


def _vectors_of(cache: Cache, what: str) -> dict[str, Vectors]:
    """The vectors to write by their name: `image`, `image_flip` and so on of further views, and `text`."""
    if what == IMAGE:
        require_images(cache.fingerprint, cache.folder, f"{option('what', IMAGE)} needs images")
    vectors = {}
    if what != TEXT and cache.has_images:
        stored, width = np.dtype(cache.fingerprint["stored_dtype"]), cache.image_pooled_width
        for view, name in enumerate(VIEWS[: cache.views]):
            named = f"image_{name}" if view else "image"
            vectors[named] = Vectors(width, stored, partial(_view, cache, view))
    if what != IMAGE:
        vectors["text"] = Vectors(cache.text_pooled_width, np.dtype(np.float32), cache.gather_text_pooled)
    return vectors


def _view(cache: Cache, view: int, rows: np.ndarray) -> np.ndarray:
    return cache.gather_pooled(rows, views=np.full(len(rows), view))


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))


def _write_table(
    path: Path,
    cache: Cache,
    rows: np.ndarray,
    vectors: Mapping[str, Vectors],
    facts: Mapping[str, Any],
    bar: Any,
    more: Mapping[str, list[Any]] | None = None,
) -> None:
    """A Parquet file of posts, with the vectors as lists of float32. `more`: further columns of texts, of all posts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = pa.dictionary(pa.int16(), pa.string())
    coded: dict[str, tuple[np.ndarray, Sequence[str]]] = {"split": (cache.splits, SPLITS)}
    for name, target in cache.index.targets.items():
        coded[name if name == LABEL else f"target_{name}"] = (target.codes, target.names)
    texts: dict[str, list[str | None]] = {
        "text_sha256": [record.text_sha256 for record in cache.records],
        "image_sha256": [record.image_sha256 or None for record in cache.records],
        **(more or {}),
    }
    schema = pa.schema(
        {
            "id": pa.string(),
            **dict.fromkeys(coded, words),
            **dict.fromkeys(texts, pa.string()),
            **{name: pa.list_(pa.float32(), one.width) for name, one in vectors.items()},
        },
        metadata={"mscf": json.dumps(facts, ensure_ascii=False)},
    )
    with complete_or_absent(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for part in _parts(rows):
            columns = [pa.array([cache.ids[row] for row in part])]
            for codes, names in coded.values():
                indices = pa.array(codes[part].astype(np.int16), mask=codes[part] < 0)
                columns.append(pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string())))
            columns += [pa.array([column[row] for row in part], pa.string()) for column in texts.values()]
            for one in vectors.values():
                numbers = pa.array(one.read(part).astype(np.float32).ravel())
                columns.append(pa.FixedSizeListArray.from_arrays(numbers, one.width))
            writer.write_table(pa.table(columns, schema))
            bar.update(len(part) if vectors else 0)


def _write_arrays(
    out: Path, cache: Cache, rows: np.ndarray, vectors: Mapping[str, Vectors], facts: Mapping[str, Any], bar: Any
) -> list[Path]:
    """NumPy files, and a Parquet file of the posts in the same order, with text and image path as clip-retrieval names
    them. Those of an earlier call that are not written now are removed.
    """
    files = {name: out / _array_file(name) for name in vectors}
    ours = [out / _array_file(name) for name in ("image", *(f"image_{view}" for view in VIEWS[1:]), "text")]
    for file in (out / _METADATA, *ours):
        require_no_link(file.parent, out)
        remove_file(file)
    posts = hdf5.read_posts(cache.folder)
    more = {
        "caption": [post.text for post in posts],
        "image_path": [None if post.image is None else str(post.image) for post in posts],
    }
    _write_table(out / _METADATA, cache, rows, {}, facts, bar, more)
    for name, one in vectors.items():
        with complete_or_absent(files[name]) as temporary, temporary.open("wb") as array:
            shape = (len(rows), one.width)
            described = {"descr": np.lib.format.dtype_to_descr(one.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(array, described)
            for part in _parts(rows):
                array.write(one.read(part).astype(one.dtype, copy=False).tobytes())
                bar.update(len(part) / len(vectors))
    return [out / _METADATA, *files.values()]


def _array_file(name: str) -> str:
    """Where clip-retrieval has these vectors, and the like for those of further views, which it does not have."""
    folder = {"image": "img_emb", "text": "text_emb"}.get(name) or f"img_emb_{name.removeprefix('image_')}"
    return f"{folder}/{folder}_0.npy"
