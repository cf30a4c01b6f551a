"""Finds how an existing cache was made, so that `extract` goes on with it alike: how texts are read, what computes."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.cache import hdf5
from pipeline.common.errors import InputError
from pipeline.encoders.load import EncoderChoice
from pipeline.encoders.runtimes import TORCH, name_of


def match_existing_cache(choice: EncoderChoice, out: Path) -> EncoderChoice:
    """The choice with the reading of special tokens of the cache that is in `out`, finished or not.

    Older caches read a literal [MASK] in a text as the special token, newer ones as plain text. An old cache keeps its
    reading; else it could not be resumed, repaired or appended to.
    """
    fingerprint = next(_fingerprints(out), None)
    if fingerprint is None:
        return choice
    return replace(choice, split_special_tokens="special_tokens_in_text" in (fingerprint.get("text") or {}))


def _fingerprints(out: Path) -> Iterator[Mapping[str, Any]]:
    """Those of the index and of the shards that can be read: either may be missing or damaged."""
    if (out / hdf5.INDEX).exists():
        with suppress(InputError):
            yield hdf5.read_index(out).fingerprint
    for path in hdf5.shards_in(out).values():
        with suppress(InputError):
            yield hdf5.read_shard(path).fingerprint


def existing_runtimes(out: Path) -> dict[str, str]:
    """The names of the runtimes that a cache, finished or not, was begun with; empty where nothing is begun."""
    for path in hdf5.shards_in(out).values():
        with suppress(InputError):
            began = hdf5.read_shard(path).runtimes or {"image": TORCH, "text": TORCH}
            return {kind: name_of(runtime) for kind, runtime in began.items()}
    return {}
