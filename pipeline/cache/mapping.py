"""Maps a cache's shards: each one's arrays as views of the bytes of its file, at the places that the index names."""

import stat
from pathlib import Path

import numpy as np

from pipeline.cache.hdf5_layout import feature_dtype
from pipeline.cache.records import Index
from pipeline.common.files import open_regular


class ShardMaps:
    """The shards of an index. A file is mapped when it is first read, and its bytes are read as they are used."""

    def __init__(self, folder: Path, index: Index, views: int) -> None:
        self._folder, self._index, self._views = folder, index, views
        self._maps: dict[int, dict[str, np.ndarray]] = {}
        self._bytes: dict[tuple[int, str], memoryview] = {}
        self.first_row = np.concatenate([[0], np.cumsum(index.shards["rows"])])

    def __len__(self) -> int:
        return len(self._index.shards["name"])

    @property
    def mapped(self) -> list[int]:
        """The shards that are mapped by now."""
        return list(self._maps)

    def path(self, number: int) -> Path:
        return self._folder / self._index.shards["name"][number].decode()

    def problem(self, number: int) -> str:
        """Why a shard cannot be read, as far as its file in the folder shows; empty if it can."""
        size = int(self._index.shards["bytes"][number])
        try:
            state = self.path(number).lstat()
        except FileNotFoundError:
            return "missing"
        if not stat.S_ISREG(state.st_mode):
            return "a link, a folder, a pipe or a device where a cache has a file"
        return "" if state.st_size == size else f"cut short or changed ({state.st_size} bytes, not {size})"

    def places(self, number: int) -> dict[str, int]:
        """Where each of a shard's arrays begins in its file."""
        table = self._index.shards
        return {name.removesuffix("_at"): int(table[name][number]) for name in table if name.endswith("_at")}

    def arrays(self, number: int) -> dict[str, np.ndarray]:
        """A shard's features: patches (rows, V, m, C), pooled (rows, V, P), tokens (sum n, D), input_ids, offsets,
        and text_pooled (rows, D_p), those of them that the cache has.
        """
        if number not in self._maps:
            index = self._index
            rows = int(index.shards["rows"][number])
            first, last = self.first_row[number], self.first_row[number + 1]
            tokens = int(index.offsets[last] - index.offsets[first])
            shapes: dict[str, tuple[int, ...]] = {
                "patches": (rows, self._views, *index.patches_shape),
                "pooled": (rows, self._views, index.image_pooled_width),
                "tokens": (tokens, index.text_width),
                "input_ids": (tokens,),
                "offsets": (rows + 1,),
            }
            if index.text_pooled is not None:
                shapes["text_pooled"] = (rows, index.text_pooled)
            with open_regular(self.path(number)) as file:
                raw = np.memmap(file, np.uint8, "r")
            stored, places = index.fingerprint["stored_dtype"], self.places(number)
            self._maps[number] = {
                name: np.ndarray(shape, feature_dtype(name, stored), raw, offset=places[name])
                for name, shape in shapes.items()
                if name in places
            }
        return self._maps[number]

    def stored(self, number: int) -> dict[str, np.ndarray]:
        """The arrays as they are in the file: with an axis for views only where there are several."""
        arrays = dict(self.arrays(number))
        if self._views == 1:
            arrays |= {name: arrays[name][:, 0] for name in ("patches", "pooled") if name in arrays}
        return arrays

    def bytes_of(self, number: int, name: str) -> memoryview:
        """The bytes of one of a shard's arrays, flat."""
        if (number, name) not in self._bytes:
            self._bytes[number, name] = flat_bytes(self.arrays(number)[name])
        return self._bytes[number, name]


def flat_bytes(array: np.ndarray) -> memoryview:
    """A contiguous array's bytes, flat, without a copy."""
    return array.view(np.uint8).data.cast("B")
