"""Changes values and bytes of a cache's files, and reads what came of it.

`python -m tests.helpers.cache_fuzzer WHOLE FOLDER FIRST LAST` is a process for the mutations of these numbers; it
imports no PyTorch, because a fork of a small process is cheap.
"""

import json
import random
import re
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.cache.summary import summary
from pipeline.common.apart import apart
from pipeline.common.errors import InputError
from tests.helpers.processes import in_this_process

POSTS = 11
BROKEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # a line that is none, or an escape
FILES = ("index.h5", "shard-00000.h5", "shard-00001.h5")
EXTREMES = (0, 1, -1, 2, 7, 255, 2**15, -(2**31), 2**31 - 1, 2**40, -(2**63), 2**63 - 1)
TEXTS = (b"", b"\xff\xfe", b"\x1b[31mred", b"a\nb", "\u202etxt.exe".encode(), b"x" * 5000, b"0", b"../../x.h5", b"{}")


def places(file: h5py.File) -> list[tuple[str, str]]:
    """Every dataset, and every attribute of the file and of each dataset: (object, attribute or "")."""
    found = [("/", name) for name in file.attrs]

    def visit(name: str, item: h5py.HLObject) -> None:
        found.extend((f"/{name}", attribute) for attribute in item.attrs)
        if isinstance(item, h5py.Dataset):
            found.append((f"/{name}", ""))

    file.visititems(visit)
    return found


def change_value(path: Path, draw: random.Random) -> None:
    """Overwrite a value of a dataset or an attribute, or put something of another type or shape in its place."""
    with h5py.File(path, "r+") as file:
        name, attribute = draw.choice(places(file))
        item = file[name]
        if attribute:
            other = (draw.choice(EXTREMES), draw.choice(TEXTS), [draw.choice(TEXTS)] * 3, np.zeros((3, 2)))
            item.attrs[attribute] = draw.choice(other)
        elif draw.random() < 0.15 or item.is_virtual or not item.size:
            del file[name]
            shape = draw.choice(((), (0,), (1,), (POSTS,), (POSTS + 1,), (2, 3)))
            file.create_dataset(name, shape, draw.choice(("i1", "i8", "f2", "f8", "S16", h5py.string_dtype())))
        else:
            where = tuple(draw.randrange(size) for size in item.shape)
            item[where] = some_value(item.dtype, draw)


def some_value(dtype: np.dtype, draw: random.Random):
    if dtype.kind in "OS":
        return draw.choice(TEXTS)
    if dtype.kind == "f":
        return draw.choice((np.nan, np.inf, -1.0, 0.0, 65504.0))
    return np.array(draw.choice(EXTREMES)).astype(dtype)


def change_bytes(path: Path, draw: random.Random) -> None:
    """Overwrite some of the file's bytes, mostly where they are not zero, or cut it short."""
    data = bytearray(path.read_bytes())
    used = np.flatnonzero(np.frombuffer(bytes(data), np.uint8)).tolist()
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        place = draw.choice(used) if draw.random() < 0.8 else draw.randrange(len(data))
        count = min(draw.choice((1, 1, 2, 4, 8)), len(data) - place)
        data[place : place + count] = draw.choice((b"\xff" * count, bytes(count), draw.randbytes(count)))
    if draw.random() < 0.02:
        del data[draw.randrange(len(data)) :]
    path.write_bytes(data)


def read_everything(folder: Path, name: str) -> str:
    """What came of it: `opens`, `damaged` by `inspect --verify`, or `refused`; an exception is a fault."""
    try:
        problems = _problems(folder, name)
    except InputError as error:
        return "refused" if not BROKEN.search(str(error)) else f"not one line: {error!r}"
    if bad := [problem for problem in problems if BROKEN.search(problem)]:
        return f"not one line: {bad!r}"
    return "damaged" if problems else "opens"


def _problems(folder: Path, name: str) -> list[str]:
    if name != "index.h5":
        hdf5.read_shard(folder / name)
    cache = Cache(folder)
    for row in range(len(cache)):
        assert cache.patches(row).shape == cache.patches_shape
        assert len(cache.tokens(row)) == len(cache.input_ids(row)) == cache.lengths[row]
    assert len(cache.texts) == len(hdf5.read_posts(folder)) == len(cache)
    summary(cache)
    return cache.damage()


def mutate(whole: Path, folder: Path, seed: int) -> str:
    """A copy of the cache at `folder` with one file changed. Returns the file's name."""
    draw = random.Random(seed)
    name = draw.choice(("index.h5", "index.h5", *FILES[1:]))
    for file in FILES:
        shutil.copy(whole / file, folder / file)
    (change_bytes if draw.random() < 0.6 else change_value)(folder / name, draw)
    return name


def outcome(whole: Path, folder: Path, seed: int) -> str:
    """What came of a mutation, or its traceback. One of 25 is read as a command reads it, the others without further
    processes: what ends this one is contained by the one that started it.
    """
    hdf5.apart = apart if seed % 25 == 0 else in_this_process
    hdf5._SECONDS = 0.3  # what has no end need not be waited for as long here
    try:
        return read_everything(folder, mutate(whole, folder, seed))
    except Exception:
        return f"mutation {seed}: {traceback.format_exc()}"


def fuzz(whole: Path, folder: Path, seeds: Sequence[int]) -> Iterator[str]:
    """What came of each mutation; `ended`: the HDF5 library crashed or did not end, and its process was ended."""
    for found in apart(partial(outcome, whole, folder), seeds, seconds=1, mib=1024):
        yield "ended" if isinstance(found, InputError) else found


if __name__ == "__main__":
    for found in fuzz(Path(sys.argv[1]), Path(sys.argv[2]), range(int(sys.argv[3]), int(sys.argv[4]))):
        print(json.dumps(found), flush=True)
