"""Decides which posts are duplicates: equal texts once normalised, or equal image bytes."""

import re
from collections.abc import Iterable, Sequence

Keys = frozenset[tuple[str, str]]  # of a post: ("text", comparable text) and ("image", hash), those that it has


def comparable_text(text: str) -> str | None:
    """A text without links, mentions, a leading `rt`, case and punctuation; None if under 10 characters are left.

    Two posts with the same comparable text are duplicates: retweets carry one text into training and test.
    """
    text = re.sub(r"https?://\S*", "", text.lower())
    text = re.sub(r"@\w+", "", text).strip()
    text = re.sub(r"^rt\b", "", text)
    text = "".join(character for character in text if character.isalnum())
    return text if len(text) >= 10 else None


def duplicate_keys(text: str | None, image_sha256: str) -> Keys:
    """A post's keys; posts that share one are duplicates of each other. `image_sha256` is empty without an image."""
    comparable = comparable_text(text) if text else None
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
