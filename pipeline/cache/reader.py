"""Reads a finished cache: features as views of the mapped bytes, which many processes share.

Opening reads the index alone, and checks all of its claims; a shard is mapped on first use, and nothing of it but the
bytes of its arrays is relied on. `pipeline.cache.hdf5` handles the file format.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import hdf5
from pipeline.cache.hdf5_layout import INDEX
from pipeline.cache.keep import ALL, require_all_kept
from pipeline.cache.labelled import Labelled
from pipeline.cache.mapping import ShardMaps, flat_bytes
from pipeline.cache.records import PostRecord, Shard
from pipeline.common.errors import InputError, switch
from pipeline.common.files import sha256_of_file
from pipeline.encoders.fingerprint import first_difference
from pipeline.encoders.text_vector import MODEL, pooled_tokens, text_pooling
from pipeline.posts.duplicates import Keys, duplicate_keys
from pipeline.posts.labels import LABEL

_READING = "they are to be read"


def remove_cache_files(folder: Path) -> None:
    """Remove a cache's own files, the index first, and nothing else in the folder."""
    (folder / INDEX).unlink(missing_ok=True)
    for path in (*hdf5.shards_in(folder).values(), *folder.glob("*.h5.partial")):
        path.unlink()


class _OfPosts:
    """What is read of all posts when it is first needed; the same cache with other splits or labels shares it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def texts(self) -> list[str]:
        return hdf5.read_texts(self._folder)

    @cached_property
    def records(self) -> list[PostRecord]:
        return hdf5.read_records(self._folder)


class Cache(Labelled):
    """A finished cache, read through memory maps: no copy, no HDF5 handle kept, safe across forks and pickling.

    Attributes: `ids` (list of str), `ok` (N,) bool, `labels` (N,) int16 indices into `label_names`, the classes of
    `target`, and `splits` (N,) int8 into SPLITS, both with -1 for none; `lengths` (N,) tokens per text, `fingerprint`,
    `patches_shape` (m, C), `image_pooled_width` P of the images' vectors, `text_width` D, `text_pooled_width` D_p of
    the texts' vectors, `text_pooling` how these are made (pipeline.encoders.text_vector), `views` how many there are of
    each image; `keep` whether there are patches and tokens (pipeline.cache.keep); `index` is the content of the index
    file.
    """

    def __init__(self, folder: str | Path, *, target: str = LABEL) -> None:
        """Open the cache with the labels of one target; every shard must be there with its size. Raises InputError
        naming what is wrong.
        """
        self.folder = folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such cache")
        if not (folder / INDEX).exists():
            done = len(hdf5.shards_in(folder))
            raise InputError(
                f"{folder}: no finished cache (no index.h5; {done} shards); run `extract` again to finish it"
            )
        self.index = index = hdf5.read_index(folder)
        self.fingerprint = index.fingerprint
        self.manifest_sha256 = index.manifest_sha256
        self.ids = index.ids
        self.ok, self.flags = index.ok, index.flags
        self.target, self.splits = target, index.splits
        self.label_names, self.labels = self.labels_of(target).names, self.labels_of(target).codes
        self.patches_shape, self.text_width = index.patches_shape, index.text_width
        self.image_pooled_width = index.image_pooled_width
        self.text_pooling = text_pooling(self.fingerprint)
        self.text_pooled_width = index.text_pooled or self.text_width
        self.keep = index.keep
        self.views = len(self.fingerprint["image"].get("views", ["center"]))
        self.splits_note = ""
        self._of_posts = _OfPosts(folder)
        self._table, self._offsets = index.shards, index.offsets
        self.lengths = np.diff(self._offsets)
        self._shards = ShardMaps(folder, index, self.views)
        self._firsts: list[int] = self._shards.first_row.tolist()
        for number in range(len(self._shards)):
            if problem := self._shards.problem(number):
                where = f"{self._shards.path(number)} ({self._posts_of(number)})"
                raise InputError(f"{where}: {problem}; `extract` with {switch('repair')} makes it again")

    @property
    def has_images(self) -> bool:
        """False for texts alone: the image features of every post have no size."""
        return self.patches_shape[0] > 0

    def require_all_kept(self, what: str, way: str = "") -> None:
        """Raises InputError if the cache keeps pooled vectors alone; as pipeline.cache.keep says it."""
        require_all_kept(self.folder, self.keep, what, way)

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        state = ("target", "label_names", "labels", "splits")
        return Cache, (self.folder,), {name: getattr(self, name) for name in state}

    def patches(self, row: int, view: int = 0) -> np.ndarray:
        """(m, C), a read-only view of the mapped shard, in the stored dtype. Raises InputError, as `tokens` and
        `input_ids` do, if the cache keeps pooled vectors alone.
        """
        return self._feature("patches", row)[self._view(view)]

    def pooled(self, row: int, view: int = 0) -> np.ndarray:
        """(P,), the image's one vector: the mean of the patches, unless the fingerprint says otherwise."""
        return self._feature("pooled", row)[self._view(view)]

    def gather_images(
        self,
        rows: np.ndarray,
        out: tuple[np.ndarray, np.ndarray] | None = None,
        *,
        views: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Patches (len(rows), m, C) and pooled (len(rows), P) of many posts, copied out of the mapped shards.

        views (len(rows),): which view of each post's image; without it the first. They go into the arrays `out`,
        contiguous and of the stored dtype and these shapes, where it is given. Raises IndexError on a row or view that
        is not there, and InputError if the cache keeps pooled vectors alone.
        """
        self.require_all_kept(_READING)
        _require_within(rows, len(self), "row")
        if views is not None:
            _require_within(views, self.views, "view")
        dtype = np.dtype(self.fingerprint["stored_dtype"])
        shapes = (len(rows), *self.patches_shape), (len(rows), self.image_pooled_width)
        patches, pooled = out or (np.empty(shapes[0], dtype), np.empty(shapes[1], dtype))
        if (patches.shape, pooled.shape) != shapes or not patches.dtype == pooled.dtype == dtype:
            raise ValueError(f"out: must be {dtype} of the shapes {shapes[0]} and {shapes[1]}")
        if not patches.size:
            return patches, pooled
        # Bytes to bytes: NumPy's own assignment of a row takes a tenth longer.
        to_patches, to_pooled = flat_bytes(patches), flat_bytes(pooled)
        a, b = len(to_patches) // len(rows), len(to_pooled) // len(rows)
        numbers = np.searchsorted(self._shards.first_row, rows, side="right") - 1
        chosen = [0] * len(rows) if views is None else views.tolist()
        for place, (row, number, view) in enumerate(zip(rows.tolist(), numbers.tolist(), chosen, strict=True)):
            local = (row - self._firsts[number]) * self.views + view
            from_patches, from_pooled = (self._shards.bytes_of(number, name) for name in ("patches", "pooled"))
            to_patches[place * a : (place + 1) * a] = from_patches[local * a : (local + 1) * a]
            to_pooled[place * b : (place + 1) * b] = from_pooled[local * b : (local + 1) * b]
        return patches, pooled

    def gather_pooled(self, rows: np.ndarray, *, views: np.ndarray | None = None) -> np.ndarray:
        """Pooled (len(rows), P) of many posts, as `gather_images` gives it, without a look at the patches."""
        _require_within(rows, len(self), "row")
        shown = np.zeros(len(rows), np.int64) if views is None else views
        _require_within(shown, self.views, "view")
        pooled = np.empty((len(rows), self.image_pooled_width), self.fingerprint["stored_dtype"])
        if not pooled.size:
            return pooled
        to_pooled = flat_bytes(pooled)
        size = len(to_pooled) // len(rows)
        numbers = np.searchsorted(self._shards.first_row, rows, side="right") - 1
        for place, (row, number, view) in enumerate(zip(rows.tolist(), numbers.tolist(), shown.tolist(), strict=True)):
            local = (row - self._firsts[number]) * self.views + view
            stored = self._shards.bytes_of(number, "pooled")
            to_pooled[place * size : (place + 1) * size] = stored[local * size : (local + 1) * size]
        return pooled

    def gather_text_pooled(self, rows: np.ndarray) -> np.ndarray:
        """The vectors (len(rows), D_p), float32, of many posts' texts: those of the cache, or, where it was made before
        there were any, the mean of each text's tokens, which is the same. Raises IndexError on a row that is not there.
        """
        _require_within(rows, len(self), "row")
        vectors = np.empty((len(rows), self.text_pooled_width), np.float32)
        for place, row in enumerate(rows.tolist()):
            if self.index.text_pooled is None:
                vectors[place] = pooled_tokens(self.tokens(row), self.text_pooling)
            else:
                vectors[place] = self._feature("text_pooled", row)
        return vectors

    def tokens(self, row: int) -> np.ndarray:
        """(n, D), the post's tokens with [CLS] and [SEP], unpadded."""
        return self._ragged("tokens", row)

    def input_ids(self, row: int) -> np.ndarray:
        """(n,) int32 word-piece ids."""
        return self._ragged("input_ids", row)

    def require_sizes(self, dimensions: Mapping[str, Any], owner: object) -> None:
        """Raises InputError if the features have other sizes than those that a model was made for, whatever the
        fingerprint says. `dimensions` may lack `patches`, `text_pooled` and `image_pooled`.
        """
        made_for = {"text_pooled": dimensions["text_width"], "image_pooled": dimensions["channels"]}
        made_for |= {name: size for name, size in dimensions.items() if size is not None}
        sizes = {
            "channels": self.patches_shape[1],
            "text_width": self.text_width,
            "patches": self.patches_shape[0],
            "text_pooled": self.text_pooled_width,
            "image_pooled": self.image_pooled_width,
        }
        for name, size in sizes.items():
            if made_for.get(name, size) != size:
                raise InputError(f"{self.folder}: {name} {size}, but {owner} was made for {made_for[name]}")

    def require_word_pieces(self, vocabulary: int, width: int) -> None:
        """Raises InputError if the tokens can't be those of a text encoder, whatever the fingerprint says."""
        self.require_all_kept("words are masked by their ids, which go with the tokens")
        if self.text_width != width:
            raise InputError(f"{self.folder}: a text width of {self.text_width}, but its text encoder has {width}")
        for number in range(len(self._firsts) - 1):
            ids = self._shards.arrays(number)["input_ids"]
            if ids.size and not (ids.min() >= 0 and ids.max() < vocabulary):
                raise InputError(
                    f"{self._shards.path(number)}: holds ids of word pieces that its text encoder does not have"
                )

    @property
    def texts(self) -> list[str]:
        return self._of_posts.texts

    @property
    def records(self) -> list[PostRecord]:
        """Hashes, reasons and flags of all posts."""
        return self._of_posts.records

    def duplicate_keys(self, rows: np.ndarray) -> list[Keys]:
        """The keys of each row's post by which duplicates are found."""
        return [duplicate_keys(self.texts[row], self.records[row].image_sha256) for row in rows]

    @property
    def shard_count(self) -> int:
        return len(self._table["name"])

    def bytes_on_disk(self) -> int:
        return int(self._table["bytes"].sum()) + (self.folder / INDEX).stat().st_size

    def damage(self) -> list[str]:
        """Read everything: what does not match its checksum, its offsets, the index or the manifest hash, or is not as
        docs/cache-format.md says; empty if all is whole.
        """
        listed = hdf5.manifest_sha256(self.records) == self.manifest_sha256
        problems = [] if listed else ["index.h5: the posts do not match the manifest hash"]
        names = self._table["name"].tolist()
        for number, shard in enumerate(hdf5.read_shards([self._shards.path(number) for number in range(len(names))])):
            problems += [
                f"{names[number].decode()} ({self._posts_of(number)}): {problem}"
                for problem in self._damage_of(number, shard, listed)
            ]
        return problems

    def _damage_of(self, number: int, shard: Shard | InputError, listed: bool) -> Iterator[str]:
        """The first thing that is wrong with a shard, if any is; `listed`: the index's posts are to be relied on."""
        rows = slice(self._firsts[number], self._firsts[number + 1])
        if sha256_of_file(self._shards.path(number)) != self._table["sha256"][number].decode():
            yield "checksum does not match"
        elif isinstance(shard, InputError):
            yield str(shard).removeprefix(f"{self._shards.path(number)}: ")
        elif shard.lengths != self.lengths[rows].tolist():
            yield "text offsets do not match the index"
        elif first_difference(shard.fingerprint, self.fingerprint) or (listed and shard.posts != self.records[rows]):
            yield "its posts or encoders are not those of the index"
        elif shard.at != self._shards.places(number) or any(
            shard.shapes[name] != array.shape for name, array in self._shards.stored(number).items()
        ):
            yield "its arrays do not lie where the index says"
        elif bad := self._bad(rows, self._finite):
            yield f"not finite: {', '.join(bad)}"
        elif self.keep != ALL:
            return
        elif not all((self.input_ids(row) >= 0).all() for row in range(rows.start, rows.stop)):
            yield "negative ids of word pieces"
        elif bad := self._bad(rows, self._of_tokens):
            yield f"texts' vectors are not of their tokens: {', '.join(bad)}"

    def _posts_of(self, number: int) -> str:
        return f"posts {self.ids[self._firsts[number]]} to {self.ids[self._firsts[number + 1] - 1]}"

    def _bad(self, rows: slice, good: Callable[[int], bool]) -> list[str]:
        """The ids of those of some rows with features for which `good` is false."""
        return [self.ids[row] for row in range(rows.start, rows.stop) if self.ok[row] and not good(row)]

    def _finite(self, row: int) -> bool:
        values = [self._feature("pooled", row), *self.gather_text_pooled(np.array([row]))]
        if self.keep == ALL:
            values += [self._feature("patches", row), self.tokens(row)]
        return all(np.isfinite(one).all() for one in values)

    def _of_tokens(self, row: int) -> bool:
        """Whether a text's vector is what the fingerprint says of its tokens, if that is of them."""
        if self.text_pooling == MODEL:
            return True
        (vector,), made = self.gather_text_pooled(np.array([row])), pooled_tokens(self.tokens(row), self.text_pooling)
        return bool(np.allclose(vector, made, rtol=1e-3, atol=1e-3))

    def _locate(self, row: int) -> tuple[dict[str, np.ndarray], int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}: there are {len(self)}")
        number = int(np.searchsorted(self._shards.first_row, row, side="right")) - 1
        return self._shards.arrays(number), row - self._firsts[number]

    def _view(self, view: int) -> int:
        if not 0 <= view < self.views:
            raise IndexError(f"view {view}: there are {self.views}")
        return view

    def _feature(self, name: str, row: int) -> np.ndarray:
        """Of all views: (V, m, C) or (V, P)."""
        shard, local = self._locate(row)
        if name not in shard:
            self.require_all_kept(_READING)
        return shard[name][local]

    def _ragged(self, name: str, row: int) -> np.ndarray:
        """By the offsets of the index, which are checked."""
        self.require_all_kept(_READING)
        shard, local = self._locate(row)
        start = int(self._offsets[row]) - int(self._offsets[row - local])
        return shard[name][start : start + int(self.lengths[row])]


def _require_within(numbers: np.ndarray, count: int, what: str) -> None:
    """Raises IndexError: NumPy would count a negative number from the end, and bytes of another post would be read."""
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if wrong.size:
        raise IndexError(f"{what} {wrong[0]}: there are {count}")
