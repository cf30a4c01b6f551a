"""Checks every claim of a cache's files before any of them is used; raises Wrong for the first that does not hold.

Every number that becomes a size, an offset or an index is compared with the others and with the file that it is about.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.cache.check_json import Wrong, is_sha256
from pipeline.cache.hdf5_layout import FEATURES, FLAGS, SHARD_NAME, feature_dtype
from pipeline.common.errors import InputError
from pipeline.encoders.fingerprint import SIGLIP, pooled_is_mean
from pipeline.encoders.text_vector import MEAN, MODEL, text_pooling
from pipeline.encoders.views import VIEWS
from pipeline.posts.labels import label_problem, target_problem
from pipeline.posts.manifest import SPLITS, require_name

NO_IMAGES = "none"
_LARGEST = 1 << 20  # patches of a picture, channels, width of a token
_LONGEST_ID = 4096


def posts(columns: Mapping[str, Any], lengths: np.ndarray, fingerprint: Mapping[str, Any]) -> None:
    """Check the columns of /post, those of an index or those of a shard, against the lengths of the texts, and these
    against the fingerprint. Texts are lists, the others arrays.
    """
    ids, reasons = columns["id"], columns["reason"]
    for id_ in ids:
        try:
            require_name(id_, "id", "")
        except InputError as error:
            raise Wrong(str(error).lstrip(" ,")) from None
        if len(id_) > _LONGEST_ID:
            raise Wrong(f"an id of {len(id_)} characters")
    if len(set(ids)) < len(ids):
        raise Wrong("an id occurs twice")
    for name in ("text_sha256", "image_sha256"):
        if not _all_sha256(columns[name]):
            raise Wrong(f"/post/{name} holds something else than a SHA-256")
    if columns["flags"].max() >= 1 << len(FLAGS):
        raise Wrong("/post/flags has bits without a meaning")
    for name, names in (("status", ("ok", "failed")), ("split", SPLITS)):
        if name in columns and not (
            columns[name].min() >= (0 if name == "status" else -1) and columns[name].max() < len(names)
        ):
            raise Wrong(f"/post/{name} holds a code without a meaning")
    failed = columns["status"] == 1
    if [bool(reason) for reason in reasons] != failed.tolist():
        raise Wrong("/post/status and /post/reason do not agree")
    least = 1 if fingerprint["text"].get("family") == SIGLIP else 2
    if np.any(lengths[failed] != 0) or np.any(lengths[~failed] < least):
        raise Wrong(f"a failed post has tokens, or another one has fewer than the {least} that every text has")
    most = fingerprint["text"].get("max_tokens")
    if most is not None and np.any(lengths > most):
        raise Wrong(f"a text has over {most} tokens")


def target_names(names: Sequence[str]) -> None:
    """Check the names of the targets."""
    if problem := next(filter(None, map(target_problem, names)), ""):
        raise Wrong(f"/target: {problem}")


def codes(target: str, names: Sequence[Any], values: np.ndarray) -> None:
    """Check the label names of a target and the posts' codes."""
    if problem := next(filter(None, map(label_problem, names)), ""):
        raise Wrong(f"/target/{target}: a label {problem}")
    if len(set(names)) < len(names):
        raise Wrong(f"/target/{target}: a label occurs twice")
    if values.min() < -1 or values.max() >= len(names):
        raise Wrong(f"/target/{target} holds a code without a meaning")


def offsets(values: np.ndarray, shapes: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Check offsets of texts into the rows of tokens, where these are kept, and give them back."""
    tokens = shapes["tokens"][0] if "tokens" in shapes else values[-1]
    if values[0] != 0 or values[-1] != tokens or np.any(values[1:] < values[:-1]):
        raise Wrong("/text/offsets do not rise from 0 to the number of tokens")
    if np.any(np.diff(values) > _LARGEST):
        raise Wrong(f"a text has over {_LARGEST} tokens")
    return values


def arrays(
    fingerprint: Mapping[str, Any],
    count: int,
    shapes: Mapping[str, Sequence[int]],
    at: Mapping[str, int] | None,
    sizes: Sequence[int] | None,
) -> tuple[int, int, int, int, int | None]:
    """Check the shapes of the features of `count` posts against each other and the fingerprint, and, where `at` gives
    their places in a file, that none overlaps another. Returns m, C, P, D and, where there are texts' vectors, D_p.

    `sizes`: m, C and D, where patches and tokens are not kept and do not say so.
    """
    views = len(fingerprint["image"].get("views", VIEWS[:1]))
    between = [views] if views > 1 else []
    kept = {name: list(shape) for name, shape in shapes.items()}
    if sizes is not None:
        m, channels, width = sizes
        kept |= {"patches": [count, *between, m, channels], "tokens": [0, width]}
    patches, pooled, tokens = kept["patches"], kept["pooled"], kept["tokens"]
    if len(patches) != 3 + len(between) or len(pooled) != 2 + len(between) or len(tokens) != 2:
        raise Wrong(f"patches of the shape {patches}, pooled of {pooled} and tokens of {tokens}")
    (m, channels), pooled_width, (total, width) = patches[-2:], pooled[-1], tokens
    if pooled_is_mean(fingerprint):
        pooled_width = channels
    expected = {
        "patches": [count, *between, m, channels],
        "pooled": [count, *between, pooled_width],
        "tokens": [total, width],
        "input_ids": [total],
        "offsets": [count + 1],
    }
    vector = _vector_width(fingerprint, shapes, width)
    if vector is not None:
        expected["text_pooled"] = [count, vector]
    for name, shape in shapes.items():
        if list(shape) != expected[name]:
            raise Wrong(f"{FEATURES[name]} has the shape {list(shape)}, not {expected[name]}")
    no_image = {m == 0, channels == 0, pooled_width == 0}  # one of both
    numbers = m, channels, pooled_width, width
    if not width or min(numbers) < 0 or max(numbers) > _LARGEST or len(no_image) > 1:
        what = f"{m} patches of {channels} channels, pooled vectors of {pooled_width} and a text width of {width}"
        raise Wrong(f"{what} are impossible")
    if (fingerprint["image"]["name"] == NO_IMAGES) != (m == 0):
        raise Wrong("the fingerprint and the patches do not agree on whether there are images")
    if at is not None:
        _places({name: expected[name] for name in shapes}, at, fingerprint["stored_dtype"])
    return m, channels, pooled_width, width, vector


def _vector_width(fingerprint: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], width: int) -> int | None:
    """Check the width of the texts' vectors; None if there are none."""
    pooling = text_pooling(fingerprint)
    if "text_pooled" not in shapes:
        if pooling != MEAN:
            raise Wrong(f"the fingerprint pools texts by {pooling}, and /text/pooled is not there")
        return None
    shape = list(shapes["text_pooled"])
    if len(shape) != 2 or not 1 <= shape[1] <= _LARGEST or (pooling != MODEL and shape[1] != width):
        raise Wrong(f"/text/pooled has the shape {shape}, where texts of width {width} are pooled by {pooling}")
    return shape[1]


def index(
    fingerprint: Mapping[str, Any],
    columns: Mapping[str, Any],
    starts: np.ndarray,
    shards: Mapping[str, list[Any]],
    shapes: Mapping[str, Sequence[int]],
    sizes: Sequence[int] | None,
) -> dict[str, Any]:
    """Check an index: its posts, the offsets of their texts, its shard table, and the shapes of all features together.
    Returns what pipeline.cache.records.Index holds of them. `sizes`: as for `arrays`.
    """
    count = len(columns["id"])
    m, channels, pooled_width, width, vector = arrays(fingerprint, count, shapes, None, sizes)
    offsets(starts, shapes)
    names, rows, sizes = shards["name"], shards["rows"], shards["bytes"]
    if not all(SHARD_NAME.fullmatch(name) for name in names) or sorted(set(names)) != names:
        raise Wrong("/shard/name: must be shard-NNNNN.h5, each once, in order")
    if min(rows) < 1 or sum(rows) != count:
        raise Wrong("/shard/rows do not sum to the number of posts")
    if not all(is_sha256(value) for value in shards["sha256"]):
        raise Wrong("/shard/sha256 holds something else than a SHA-256")
    views = list(shapes["pooled"][1:-1])
    first = 0
    for number, size in enumerate(sizes):
        here, tokens = rows[number], int(starts[first + rows[number]] - starts[first])
        shapes_here: dict[str, Sequence[int]] = {
            "patches": [here, *views, m, channels],
            "pooled": [here, *views, pooled_width],
            "tokens": [tokens, width],
            "input_ids": [tokens],
            "offsets": [here + 1],
            **({} if vector is None else {"text_pooled": [here, vector]}),
        }
        shapes_here = {name: shape for name, shape in shapes_here.items() if name in (*shapes, "offsets")}
        places = {name: shards[f"{name}_at"][number] for name in shapes_here}
        ends = _places(shapes_here, places, fingerprint["stored_dtype"])
        if ends > size:
            raise Wrong(f"/shard says of {names[number]} that it has arrays beyond its end")
        first += here
    return {
        "ids": columns["id"],
        "ok": columns["status"] == 0,
        "flags": columns["flags"],
        "splits": columns["split"],
        "offsets": starts,
        "shards": shards,
        "patches_shape": [m, channels],
        "image_pooled_width": pooled_width,
        "text_width": width,
        "text_pooled": vector,
    }


def sources(
    name: str, found: Sequence[tuple[str, int, int]], shards: Mapping[str, list[Any]], starts: np.ndarray
) -> None:
    """Check that a virtual dataset is made of the index's own shards, one after the other."""
    ends = np.cumsum(shards["rows"])
    places = [0, *(starts[ends] if name in ("tokens", "input_ids") else ends).tolist()]
    expected = [
        (shard, first, last - 1)
        for shard, first, last in zip(shards["name"], places, places[1:], strict=False)
        if last > first
    ]
    if found and list(found) != expected:
        raise Wrong(f"{FEATURES[name]} is virtual over something else than the shards")


def _all_sha256(values: np.ndarray) -> bool:
    """Is each of an array of 64 bytes a SHA-256 in hexadecimal, or empty?"""
    characters = values.view(np.uint8).reshape(len(values), -1)
    hexadecimal = ((characters >= 48) & (characters <= 57)) | ((characters >= 97) & (characters <= 102))
    return bool(np.all(hexadecimal.all(axis=1) | (characters == 0).all(axis=1)))


def _places(shapes: Mapping[str, Sequence[int]], at: Mapping[str, int], stored: str) -> int:
    """Check where the arrays of a shard lie. Returns where the last one ends."""
    taken = []
    for name, shape in shapes.items():
        dtype = feature_dtype(name, stored)
        size, start = math.prod(shape) * dtype.itemsize, at[name]
        if start % dtype.itemsize or (start <= 0 if size else start != 0):
            raise Wrong(f"{FEATURES[name]} has the impossible offset {start}")
        if size:
            taken.append((start, start + size))
    taken.sort()
    if any(end > start for (_, end), (start, _) in pairwise(taken)):
        raise Wrong("the arrays of a shard overlap")
    return taken[-1][1]
