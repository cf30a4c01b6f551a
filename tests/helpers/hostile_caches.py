"""Caches as a stranger could make them: each function changes a good toy cache of 60 posts in one way.

INDEX: what opening a cache must refuse. SHARDS: what only a reader of a shard's own HDF5 meets, so `inspect --verify`,
`extract` and `merge`; size, hash and places in the index agree with them.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.cache.hdf5_layout import CODES, TEXT
from tests.helpers.toy import FINGERPRINT

SHARD = "shard-00001.h5"
Change = Callable[[Path], None]


def index(change: Callable[[h5py.File], None]) -> Change:
    def apply(folder: Path) -> None:
        with h5py.File(folder / "index.h5", "r+") as file:
            change(file)

    return apply


def shard(change: Callable[[h5py.File], None]) -> Change:
    def apply(folder: Path) -> None:
        with h5py.File(folder / SHARD, "r+") as file:
            change(file)
        data = (folder / SHARD).read_bytes()
        with h5py.File(folder / "index.h5", "r+") as file:
            file["/shard/bytes"][1] = len(data)
            file["/shard/sha256"][1] = hashlib.sha256(data).hexdigest()

    return apply


def value(path: str, row: Any, new: Any, of: Callable[..., Change] = index) -> Change:
    def change(file: h5py.File) -> None:
        file[path][row] = new

    return of(change)


def attribute(name: str, new: Any, of: Callable[..., Change] = index) -> Change:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        file.attrs[name] = new

    return of(change)


def fingerprint(**new: Any) -> Change:
    return attribute("fingerprint", json.dumps({**FINGERPRINT, **new}))


def anew(path: str, of: Callable[..., Change] = index, **how: Any) -> Change:
    """Another dataset in the place of one that is there."""

    def change(file: h5py.File) -> None:
        del file[path]
        file.create_dataset(path, **how)

    return of(change)


def link(path: str, new: Any, of: Callable[..., Change] = index) -> Change:
    def change(file: h5py.File) -> None:
        del file[path]
        file[path] = new

    return of(change)


def without(path: str, of: Callable[..., Change] = index) -> Change:
    def change(file: h5py.File) -> None:
        del file[path]

    return of(change)


def virtual(source: str, dataset: str, *, unlimited: bool = False) -> Change:
    def change(file: h5py.File) -> None:
        shape = file["/image/patches"].shape
        del file["/image/patches"]
        limits = (None, *shape[1:]) if unlimited else shape
        layout = h5py.VirtualLayout(shape, "f4", maxshape=limits)
        rows = slice(0, h5py.UNLIMITED if unlimited else None)
        layout[rows] = h5py.VirtualSource(source, dataset, shape, "f4", maxshape=limits)[rows]
        file.create_virtual_dataset("/image/patches", layout)

    return index(change)


@index
def nested(file: h5py.File) -> None:
    group = file["/post"]
    for _ in range(1000):
        group = group.create_group("x")


def target(**dataset: Any) -> Change:
    """The codes of the target `label` made anew, under its names."""

    def change(file: h5py.File) -> None:
        kept = dict(file["/target/label"].attrs)
        del file["/target/label"]
        codes = file.create_dataset("/target/label", **dataset)
        codes.attrs["kind"] = kept["kind"]
        codes.attrs.create("names", kept["names"], dtype=TEXT)

    return index(change)


def on_target(**attributes: Any) -> Change:
    """Other attributes of the target `label`."""

    def change(file: h5py.File) -> None:
        for name, value in attributes.items():
            del file["/target/label"].attrs[name]
            texts = np.asarray(value).dtype.kind in "UO"
            file["/target/label"].attrs.create(name, value, dtype=TEXT if texts else None)

    return index(change)


@index
def circle(file: h5py.File) -> None:
    file["/post/post"] = file["/post"]


@index
def invalid_text(file: h5py.File) -> None:
    file["/post/text"][3] = b"\xff\xfe"


@index
def unterminated_names(file: h5py.File) -> None:
    file.attrs.create("fingerprint", np.bytes_(json.dumps(FINGERPRINT)))


@shard
def moved(file: h5py.File) -> None:
    file.create_dataset("/image/other", data=np.zeros((23, 5, 11), np.float32))
    del file["/image/patches"]
    file.move("/image/other", "/image/patches")


def in_place_of(name: str, make: Callable[[Path], None]) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


def linked_elsewhere(path: Path) -> None:
    """A link to the file itself, moved out of the folder."""
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    elsewhere.write_bytes((path.parent.parent / "good" / path.name).read_bytes())
    path.symlink_to(elsewhere)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write((path.parent.parent / "good" / path.name).read_bytes())
        file.truncate(1 << 40)


def cut(share: float) -> Change:
    def apply(folder: Path) -> None:
        data = (folder / "index.h5").read_bytes()
        (folder / "index.h5").write_bytes(data[: int(share * len(data))])

    return apply


HUGE = 10**12
_TEXTS = {"data": ["x"] * 60, "dtype": TEXT}
TRANSFORM = {"size": 8, "crop_pct": 0.8, "crop_mode": "center"}

INDEX: dict[str, Change] = {
    "stored dtype O": fingerprint(stored_dtype="O"),
    "stored dtype float64": fingerprint(stored_dtype="float64"),
    "no fingerprint": attribute("fingerprint", "{}"),
    "fingerprint no JSON": attribute("fingerprint", "{" * 50_000),
    "fingerprint a number": attribute("fingerprint", 7),
    "fingerprint fixed bytes": unterminated_names,
    "fingerprint with NaN": attribute("fingerprint", json.dumps({**FINGERPRINT, "x": float("nan")})),
    "huge attribute": attribute("fingerprint", json.dumps({**FINGERPRINT, "x": "x" * (1 << 24)})),
    "deep fingerprint": attribute("fingerprint", json.dumps(FINGERPRINT)[:-1] + ', "x": ' + "[" * 99 + "]" * 99 + "}"),
    "encoder from an address": fingerprint(image={"name": "hf-hub:somebody/something"}),
    "encoder from a path": fingerprint(text={"name": "/etc"}),
    "encoder from above": fingerprint(text={"name": "../etc"}),
    "views a number": fingerprint(image={"name": "toy", "views": 3}),
    "views unknown": fingerprint(image={"name": "toy", "views": ["center", "upside down"]}),
    "more views than the patches": fingerprint(image={"name": "toy", "views": ["center", "flip"]}),
    "layers a text": fingerprint(text={"name": "toy", "layers": "all"}),
    "max tokens below the texts": fingerprint(text={"name": "toy", "max_tokens": 3}),
    "crop by zero": fingerprint(image={"name": "toy", "transform": {**TRANSFORM, "crop_pct": 0}}),
    "no images, but patches": fingerprint(image={"name": "none"}),
    "another schema": attribute("schema_version", 9),
    "splits in another order": attribute("split_names", ["test", "val", "train"]),
    "manifest hash of another form": attribute("manifest_sha256", "\x1b[31m"),
    "part of very many": index(
        lambda file: file.attrs.__setitem__(
            "part", json.dumps({"number": 1, "of": HUGE, "posts": HUGE, "ids_sha256": "0" * 64})
        )
    ),
    "offset negative": value("/shard/patches_at", 0, -4096),
    "offset huge": value("/shard/patches_at", 0, 1 << 62),
    "offset unaligned": value("/shard/tokens_at", 0, 4097),
    "offset none": value("/shard/offsets_at", 1, 0),
    "arrays overlap": index(
        lambda file: file["/shard/pooled_at"].__setitem__(0, int(file["/shard/patches_at"][0]) + 4)
    ),
    "rows negative": index(lambda file: file["/shard/rows"].__setitem__(slice(0, 2), [-196, 256])),
    "rows of others": value("/shard/rows", 0, 36),
    "bytes negative": value("/shard/bytes", 1, -1),
    "bytes huge": value("/shard/bytes", 1, 1 << 62),
    "hash of another form": value("/shard/sha256", 0, "Z" * 64),
    "shard outside": value("/shard/name", 0, "../../../x.h5"),
    "shard below": value("/shard/name", 0, "a/b.h5"),
    "shard twice": value("/shard/name", 1, "shard-00000.h5"),
    "shards turned round": index(
        lambda file: file["/shard/name"].__setitem__(slice(0, 2), ["shard-00001.h5", "shard-00000.h5"])
    ),
    "label unknown": value("/target/label", 5, 7),
    "split unknown": value("/post/split", 5, -2),
    "status unknown": value("/post/status", 5, 3),
    "failed without a reason": value("/post/status", 5, 1),
    "flags unknown": value("/post/flags", 5, 1 << 9),
    "id twice": value("/post/id", 5, "6"),
    "id empty": value("/post/id", 5, ""),
    "id with an escape": value("/post/id", 5, "\x1b]0;x\x07"),
    "id with a line break": value("/post/id", 5, "a\nb"),
    "id very long": value("/post/id", 5, "x" * (1 << 20)),
    "id not UTF-8": value("/post/id", 5, b"\xff"),
    "text not UTF-8": invalid_text,
    "post hash of another form": value("/post/image_sha256", 5, "x"),
    "text offsets negative": value("/text/offsets", 0, -1),
    "text offsets fall": value("/text/offsets", 7, 10**9),
    "text offsets beyond": value("/text/offsets", -1, 1 << 60),
    "text offsets fewer": anew("/text/offsets", data=np.arange(60)),
    "a table of ids": anew("/post/id", data=[["x"]] * 60, dtype=TEXT),
    "fewer labels": target(data=[0] * 59, dtype=CODES),
    "labels as floats": target(data=[0.0] * 60),
    "labels as wider numbers": target(data=[0] * 60, dtype="i4"),
    "labels without names": anew("/target/label", data=[0] * 60, dtype=CODES),
    "labels of a kind unknown": on_target(kind="several"),
    "one label name": on_target(names="positive"),
    "label names as numbers": on_target(names=[1, 2, 3]),
    "a label name twice": on_target(names=["a", "b", "a"]),
    "an empty label name": on_target(names=["a", "", "c"]),
    "a label name that turns the text": on_target(names=["a", "\u202eb", "c"]),
    "a label name with an escape": on_target(names=["a", "\x1b[2J", "c"]),
    "a label name without an end": on_target(names=["a", "b" * 201, "c"]),
    "a code without a name": on_target(names=["a", "b"]),
    "more names than there may be": on_target(names=[f"class {n}" for n in range(1001)]),
    "a negative code": value("/target/label", 7, -2),
    "a target in a group": index(lambda file: file.create_dataset("/target/a/b", data=[0] * 60, dtype=CODES)),
    "a target with a strange name": index(lambda file: file["target"].copy("label", "\x1b[2J")),
    "targets without an end": index(lambda file: [file["target"].copy("label", f"t{n}") for n in range(101)]),
    "no targets": without("/target"),
    "status of one value": anew("/post/status", data=0),
    "chunked": anew("/post/text", chunks=(7,), **_TEXTS),
    "compressed": anew("/post/flags", shape=(HUGE,), dtype="u2", chunks=(1 << 16,), compression="gzip"),
    "very many rows": anew("/post/flags", shape=(HUGE,), dtype="u2"),
    "growing": anew("/post/flags", shape=(60,), maxshape=(None,), dtype="u2"),
    "bytes of another file": anew("/post/flags", shape=(60,), dtype="u2", external="/etc/passwd"),
    "external link": link("/post/text", h5py.ExternalLink("/etc/hostname", "/post/text")),
    "soft link": link("/target/text_label", h5py.SoftLink("/target/label")),
    "soft link to a group": link("/shard", h5py.SoftLink("/post")),
    "virtual over another folder": virtual("../good/shard-00000.h5", "/image/patches"),
    "virtual over /etc": virtual("/etc/passwd", "/image/patches"),
    "virtual over itself": virtual(".", "/image/patches"),
    "virtual over another array": virtual("shard-00000.h5", "/image/pooled"),
    "virtual without an end": virtual("shard-00000.h5", "/image/patches", unlimited=True),
    "real where virtual": anew("/image/patches", data=np.zeros((60, 5, 11), np.float32)),
    "a group where a dataset is": index(lambda file: (file.__delitem__("/post/text"), file.create_group("/post/text"))),
    "no texts": without("/post/text"),
    "no shards": without("/shard"),
    "one column more": index(lambda file: file.create_dataset("/post/extra", data=[1])),
    "one group more": index(lambda file: file.create_group("/extra")),
    "a thousand groups deep": nested,
    "a circle of groups": circle,
    "nothing": in_place_of("index.h5", Path.touch),
    "cut at 30 %": cut(0.3),
    "cut at 99 %": cut(0.99),
    "a terabyte": in_place_of("index.h5", sparse),
    "index a pipe": in_place_of("index.h5", os.mkfifo),
    "index a link": in_place_of("index.h5", linked_elsewhere),
    "index a folder": in_place_of("index.h5", Path.mkdir),
    "index a circle": in_place_of("index.h5", lambda path: path.symlink_to(path.name)),
    "shard a link": in_place_of(SHARD, linked_elsewhere),
    "shard a pipe": in_place_of(SHARD, os.mkfifo),
    "shard a folder": in_place_of(SHARD, Path.mkdir),
    "shard missing": lambda folder: (folder / SHARD).unlink(),
}

SHARDS: dict[str, Change] = {
    "dtype O in a shard": attribute("fingerprint", json.dumps({**FINGERPRINT, "stored_dtype": "O"}), shard),
    "another encoder": attribute("fingerprint", json.dumps({**FINGERPRINT, "text": {"name": "other"}}), shard),
    "patches of another file": anew("/image/patches", shard, shape=(23, 5, 11), dtype="f4", external="/etc/passwd"),
    "ids of another file": anew("/post/flags", shard, shape=(23,), dtype="u2", external="/etc/passwd"),
    "ids by a link": link("/post/id", h5py.ExternalLink("index.h5", "/post/id"), shard),
    "pooled by a link": link("/image/pooled", h5py.SoftLink("/image/patches"), shard),
    "patches in chunks": anew("/image/patches", shard, shape=(23, 5, 11), dtype="f4", chunks=(1, 5, 11)),
    "patches of doubles": anew("/image/patches", shard, data=np.zeros((23, 5, 11))),
    "patches elsewhere": moved,
    "very many patches": anew("/image/patches", shard, shape=(23, HUGE, 11), dtype="f4"),
    "other ids": value("/post/id", 3, "another", shard),
    "id twice in a shard": value("/post/id", 3, "41", shard),
    "flags unknown in a shard": value("/post/flags", 3, 1 << 9, shard),
    "offsets of others": value("/text/offsets", 3, 10**9, shard),
    "word pieces below zero": value("/text/input_ids", 3, -5, shard),
    "not finite": value("/image/pooled", (3, 2), np.nan, shard),
    "one dataset more in a shard": shard(lambda file: file.create_dataset("/post/extra", data=[1])),
    "no hashes in a shard": without("/post/text_sha256", shard),
}
