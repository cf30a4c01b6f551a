"""Finds how an existing cache reads texts, so that `extract` loads the encoder that made it."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.cache import hdf5
from pipeline.common.errors import InputError
from pipeline.encoders.load import EncoderChoice


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
    for path in sorted(out.glob("shard-?????.h5")):
        with suppress(InputError):
            yield hdf5.read_shard_posts(path)[1]
