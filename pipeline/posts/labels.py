"""Label names as data. A target is a named set of classes, of which a post has one or none: a manifest's `label` is the
target of that name, its `targets` are others.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pipeline.common.errors import InputError
from pipeline.posts.shown import shown

LABEL = "label"  # the target that a post's `label` belongs to
MODALITY_TARGETS = ("text_label", "image_label")  # the labels of a post's text and of its image alone
SINGLE = "single"  # the kind of a target: a post has at most one of its labels
MOST_NAMES = 1000
MOST_TARGETS = 100
_LONGEST = 200
_TARGET = re.compile(r"\w[\w .+-]{0,79}")


def label_problem(name: Any) -> str:
    """Why a value can't be the name of a class; empty if it can."""
    return _label_problem(name) if isinstance(name, str) else f"must be a string, not {shown(name)}"


@lru_cache(maxsize=1 << 12)
def _label_problem(name: str) -> str:
    if not name.strip() or name != name.strip():
        return f"must not be empty, nor begin or end with a blank: {shown(name)}"
    if len(name) > _LONGEST:
        return f"has over {_LONGEST} characters: {shown(name)}"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or _turns(character) for character in name):
        return f"must have no line breaks or control characters: {shown(name)}"
    return ""


def target_problem(name: Any) -> str:
    """Why a value can't be the name of a target; empty if it can."""
    if not isinstance(name, str) or not _TARGET.fullmatch(name):
        return (
            f"{shown(name)} can't name a target: up to 80 letters, digits, blanks and . + - _, a letter or digit first"
        )
    return ""


def comparable(name: str) -> str:
    """What spellings of one label share that differ in case, blanks, invisible characters or Unicode form."""
    visible = "".join(one for one in unicodedata.normalize("NFC", name) if unicodedata.category(one) != "Cf")
    return " ".join(visible.split()).casefold()


def label_of(value: Any, field: str, where: str) -> str | None:
    """A label as a file gives it, None for nothing; numbers become their digits. Raises InputError if it is no name."""
    if type(value) is int:
        value = str(value)
    if value is None or value == "":
        return None
    if problem := label_problem(value):
        raise InputError(f"{where}, field {field}: {problem}")
    return str(value)


def ordered(used: Iterable[str | None], first: Sequence[str] = ()) -> tuple[str, ...]:
    """The names in `first`, in their order, and after them the others that are used, sorted."""
    others = {name for name in used if name is not None} - set(first)
    return (*first, *sorted(others))


def require_names(names: Mapping[str, Sequence[str]], where: str) -> None:
    """Raises InputError unless every target has a name, and at most a thousand different labels."""
    if len(names) > MOST_TARGETS:
        raise InputError(f"{where}: {len(names)} targets, over the limit of {MOST_TARGETS}")
    for target, labels in names.items():
        problem = target_problem(target) or next(filter(None, map(label_problem, labels)), "")
        if not problem and len(set(labels)) < len(labels):
            problem = f"the label {shown(next(name for name in labels if list(labels).count(name) > 1))} occurs twice"
        if not problem and len(labels) > MOST_NAMES:
            problem = f"{len(labels)} different labels, over the limit of {MOST_NAMES}; is this column a class?"
        if problem:
            raise InputError(f"{where}, target {shown(target)}: {problem}")


def _turns(character: str) -> bool:
    """Whether a character turns the direction of the text that follows it."""
    return "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
