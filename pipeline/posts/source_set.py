"""Which files a source of posts is: one file or folder, or a set written with braces (`{000..099}`), `*`, or one by
one; local or remote.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.common.remote import allowing, is_url, of_store
from pipeline.posts.splits import split_named

MOST_FILES = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


def files_of(sources: Sequence[str | Path]) -> Path | list[str]:
    """One local file or folder; or the files of a set, those of a pattern sorted. Raises InputError where there are
    none, or too many.
    """
    if not sources:
        raise InputError("no source of posts is named")
    if len(sources) == 1 and not is_url(str(sources[0])) and (path := Path(sources[0])).exists():
        return path
    files = [file for source in sources for file in _expanded(str(source))]
    if len(sources) == len(files) == 1 and not is_url(files[0]):
        return Path(files[0])
    if repeated := next((file for file, again in itertools.pairwise(sorted(files)) if file == again), None):
        raise InputError(f"{repeated}: is named twice")
    return files


def splits_by_name(files: Sequence[str]) -> list[str | None]:
    """The split that the name of each file begins with, as `test-00000-of-00002.parquet`; none for all of them unless
    one of the splits is training, and another is there.
    """
    words = [re.split(r"[-_.\d]", file.rpartition("/")[2], maxsplit=1)[0] for file in files]
    found = [split_named(word) for word in words]
    divided = all(found) and "train" in found and len(set(found)) > 1
    return found if divided else [None] * len(files)


def _expanded(source: str) -> list[str]:
    if not is_url(source) and Path(source).exists():
        return [source]
    found = []
    for name in _without_braces(source):
        if is_url(name):
            found += _remote(name) if "*" in name else [name]
        elif "*" in name:
            found += _local(name)
        elif Path(name).exists():
            found.append(name)
        else:
            raise InputError(f"{name}: no such folder or file")
    if not found:
        raise InputError(f"{source}: no such file")
    if len(found) > MOST_FILES:
        raise InputError(f"{source}: {len(found)} files, over the limit of {MOST_FILES}")
    return found


def _without_braces(source: str) -> list[str]:
    """As WebDataset has it: `{000..099}` is each number of a range, as long as its first; `{a,b}` is each word."""
    parts = _BRACES.split(source)
    choices: list[list[str]] = [[part] for part in parts]
    for at in range(1, len(parts), 2):
        if given := _RANGE.fullmatch(parts[at]):
            first, last = given.groups()
            numbers = range(int(first), int(last) + 1)
            choices[at] = [str(number).zfill(len(first)) for number in numbers[: MOST_FILES + 1]]
        else:
            choices[at] = parts[at].split(",") if "," in parts[at] else [f"{{{parts[at]}}}"]
    names = ("".join(name) for name in itertools.product(*choices))
    files = list(itertools.islice(names, MOST_FILES + 1))
    if len(files) > MOST_FILES:
        raise InputError(f"{source}: over the limit of {MOST_FILES} files")
    return files


def _local(pattern: str) -> list[str]:
    path = Path(pattern)
    return sorted(str(one) for one in Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _remote(pattern: str) -> list[str]:
    try:
        with allowing(pattern):
            return sorted(
                of_store(pattern, lambda store, path: [store.unstrip_protocol(one) for one in store.glob(path)])
            )
    except OSError as error:
        raise InputError(f"{pattern}: {error.strerror or error}") from None
