"""How the cache that is to be continued reads texts, so that `extract` loads the encoder that made it."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pipeline import hdf5
from pipeline.encoders import EncoderChoice
from pipeline.errors import InputError


def as_before(choice: EncoderChoice, out: Path) -> EncoderChoice:
    """The choice with the reading of special tokens of the shards that are in `out`, finished or not.

    Caches that were made before a literal [MASK] in a text was text keep reading it as the special token; else they
    could not be resumed, repaired or appended to.
    """
    for path in sorted(out.glob("shard-?????.h5")):
        with suppress(InputError):  # a damaged one says nothing
            text = hdf5.read_shard_posts(path)[1].get("text") or {}
            return replace(choice, split_special_tokens="special_tokens_in_text" in text)
    return choice
