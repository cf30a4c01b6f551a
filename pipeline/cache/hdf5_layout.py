"""Names and HDF5 types in the files of a cache, for writing and for checking them.
docs/cache-format.md describes them.
"""

import re
from collections.abc import Iterable

import h5py
import numpy as np

from pipeline.posts.manifest import SPLITS
from pipeline.posts.mvsa import LABELS as LABELS_1

INDEX = "index.h5"
SHARD_VERSION, INDEX_VERSION = 2, 3
FLAGS = ("truncated", "empty_text", "rotated", "animated", "converted")
STORED_DTYPES = ("float16", "float32")
SHARD_NAME = re.compile(r"shard-[0-9]{5}\.h5")
SHARD_KIND, INDEX_KIND = "mscf shard", "mscf cache"

STATUS = h5py.enum_dtype({"ok": 0, "failed": 1}, basetype="i1")
SPLIT = h5py.enum_dtype({"none": -1, **{name: i for i, name in enumerate(SPLITS)}}, basetype="i1")
TEXT = h5py.string_dtype()
SHA256 = h5py.string_dtype("ascii", 64)
INTEGER = np.dtype(np.int64)

# Columns of /post, one value a post: of every file, and of the index beside them.
POST_COLUMNS = {"id": TEXT, "status": STATUS, "reason": TEXT, "flags": np.dtype(np.uint16), "text_sha256": SHA256,
                "image_sha256": SHA256}  # fmt: skip
INDEX_COLUMNS = {"text": TEXT, "image": TEXT, "split": SPLIT}

# /target has a dataset of codes for each target, with the names as an attribute. Indexes of version 1 have three
# columns of /post in their place, for the classes of MVSA.
CODES = np.dtype(np.int16)
LABEL_1 = h5py.enum_dtype({"none": -1, **{name: i for i, name in enumerate(LABELS_1)}}, basetype="i1")
TARGETS_1 = ("label", "text_label", "image_label")
INDEX_COLUMNS_1 = {**INDEX_COLUMNS, **dict.fromkeys(TARGETS_1, LABEL_1)}

FEATURES = {"patches": "/image/patches", "pooled": "/image/pooled", "tokens": "/text/tokens",
            "input_ids": "/text/input_ids", "offsets": "/text/offsets", "text_pooled": "/text/pooled"}  # fmt: skip

# Caches made before lack the texts' vectors: their shards are of version 1, their indexes of version 1 or 2.
FEATURES_1 = {name: path for name, path in FEATURES.items() if name != "text_pooled"}
SHARD_VERSION_1, INDEX_VERSION_2 = 1, 2

# Files of newer versions say what they keep: the pooled vectors alone. Those that keep everything stay readable for
# earlier versions of mscf.
POOLED_FEATURES = {name: path for name, path in FEATURES.items() if name in ("pooled", "offsets", "text_pooled")}
POOLED_SHARD_VERSION, POOLED_INDEX_VERSION = 3, 4


def shard_columns(features: Iterable[str]) -> dict[str, np.dtype]:
    """Columns of /shard, one value a shard, of a cache with these features."""
    columns = {"name": h5py.string_dtype("ascii", 16), "rows": INTEGER, "bytes": INTEGER, "sha256": SHA256}
    return {**columns, **{f"{name}_at": INTEGER for name in features}}


def feature_dtype(name: str, stored: str) -> np.dtype:
    """The type of an array of features, in caches that store the features themselves as `stored`."""
    own: dict[str, np.dtype] = {
        "input_ids": np.dtype(np.int32), "offsets": INTEGER, "text_pooled": np.dtype(np.float32)
    }  # fmt: skip
    return own.get(name, np.dtype(stored))
