"""Decides which posts are duplicates: equal texts once normalised, or equal image bytes."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

Keys = frozenset[tuple[str, str]]  # of a post: ("text", hash) of its comparable text and ("image", hash) of its bytes


_LEAST = 10  # characters that a comparable text has at least
# Scripts that do not separate words by spaces, and Hangul, whose syllables hold two letters or more: four of their
# characters say as much as ten letters.
_DENSE = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def comparable_text(text: str) -> str | None:
    """A text without links, mentions, a leading `rt`, case and punctuation; None if too little is left to compare.

    Two posts with the same comparable text are duplicates: retweets carry one text into training and test. Letters,
    their marks and digits are left; there must be 10, or 4 in scripts that do not separate words by spaces.
    """
    text = re.sub(r"https?://\S*", "", text.lower())
    text = re.sub(r"@\w+", "", text).strip()
    text = re.sub(r"^rt\b", "", text)
    text = "".join(filter(_is_kept, unicodedata.normalize("NFC", text)))
    return text if len(text) + 1.5 * len(_DENSE.findall(text)) >= _LEAST else None


def _is_kept(character: str) -> bool:
    """Whether a character is a letter, a digit or a mark on one; variation selectors are marks on pictures, too."""
    kind = unicodedata.category(character)
    return kind[0] in "LN" or (
        kind in ("Mn", "Mc") and not "\ufe00" <= character <= "\ufe0f" and character < "\U000e0000"
    )


def duplicate_keys(text: str | None, image_sha256: str) -> Keys:
    """A post's keys; posts that share one are duplicates of each other. `image_sha256` is empty without an image."""
    return keys_of(comparable_sha256(text), image_sha256)


@lru_cache(maxsize=1 << 16)
def comparable_sha256(text: str | None) -> str:
    """The hash of a text's comparable text, by which a run knows it without keeping it; empty if there is none."""
    comparable = comparable_text(text) if text else None
    return hashlib.sha256(comparable.encode()).hexdigest() if comparable else ""


def keys_of(comparable: str, image_sha256: str) -> Keys:
    """The keys of a post of which both hashes are known; an empty one is no key."""
    return frozenset((kind, key) for kind, key in (("text", comparable), ("image", image_sha256)) if key)


def shared_keys(posts: Iterable[Keys], others: Iterable[Keys]) -> list[Keys]:
    """The keys of each post that one of the other posts has, too."""
    known: set[tuple[str, str]] = set().union(*others)
    return [keys & known for keys in posts]


def duplicate_groups(posts: Sequence[Keys]) -> list[int]:
    """A number for each post, the same for posts that share a key, also by way of other posts."""
    group = list(range(len(posts)))

    def first(place: int) -> int:
        while group[place] != place:
            group[place] = group[group[place]]
            place = group[place]
        return place

    seen: dict[tuple[str, str], int] = {}
    for place, keys in enumerate(posts):
        for key in keys:
            group[first(place)] = first(seen.setdefault(key, place))
    return [first(place) for place in range(len(posts))]
