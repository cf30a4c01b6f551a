"""docs/cache-format.md at its word, by a stranger with h5py and the bytes of the files: no reader of ours is used."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.cache import hdf5
from pipeline.extraction.extract import extract
from tests.helpers.extraction import SHARD, tiny_posts
from tests.helpers.tiny_encoders import TinyImage, TinyText

PAGE = (Path(__file__).parents[2] / "docs" / "cache-format.md").read_text(encoding="utf-8")
NAMES = {"label": ["b", "a"], "mood": ["sad", "glad"]}
POSTS, M, C, D = 2 * SHARD + 3, 4, 3, 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of 17 posts in three shards, post 5 failed; it lies where the page's example says, below this folder."""
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)
    posts = tiny_posts(tmp_path / "posts", POSTS)
    posts[5].image.write_bytes(b"")
    for row, mood in enumerate(("glad", "sad")):
        posts[row] = replace(posts[row], targets={"mood": mood})
    extract(posts, tmp_path / "cache", TinyImage(), TinyText(), names=NAMES, batch_size=5, quiet=True)
    return tmp_path


def datasets(file: h5py.File) -> set[str]:
    found = []
    file.visititems(lambda name, item: found.append(f"/{name}") if isinstance(item, h5py.Dataset) else None)
    return set(found)


def described() -> dict[str, str]:
    """Dataset -> its shape and type, from the page's table of a shard."""
    rows = re.findall(r"^\| (`/.*?`) \| (.*?) \|", PAGE, re.MULTILINE)
    return {name: form for names, form in rows for name in re.findall(r"`(/\S+?)`", names)}


def test_a_shard_holds_the_described_datasets_in_the_described_form_and_no_others(folder):
    with h5py.File(folder / "cache" / "shard-00000.h5") as shard:
        assert datasets(shard) == described().keys()
        n = shard["/text/offsets"][-1]
        shapes = {"(N, m, C)": (SHARD, M, C), "(N, P)": (SHARD, C), "(sum of n, D)": (n, D), "(sum of n,)": (n,),
                  "(N + 1,)": (SHARD + 1,), "(N,)": (SHARD,),
                  "(N, D_p)": (SHARD, D)}  # fmt: skip
        for name, form in described().items():
            shape, kind = re.match(r"(\(.*?\)) ?,? ?(.*)", form).groups()
            assert shard[name].shape == shapes[shape], name
            dtype = shard[name].dtype
            if "UTF-8" in kind:
                assert h5py.check_string_dtype(dtype).encoding == "utf-8"
            elif "ASCII" in kind:
                assert h5py.check_string_dtype(dtype) == ("ascii", 64)
            elif "enum" in kind:
                assert h5py.check_enum_dtype(dtype) == {"ok": 0, "failed": 1}
            else:
                assert dtype.name in (kind if kind != "same" else "float16"), name
        assert list(shard["/post/flags"].attrs["bits"]) == re.search(r"attribute `bits`: (.*?) \|", PAGE)[1].split(", ")


def test_the_pages_example_runs_and_reads_the_posts_own_features(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert 'index("17")' in code
    names: dict[str, object] = {}
    exec(code.replace('index("17")', 'index("12")'), names)
    assert names["patches"].shape == (M, C)
    pixels = np.asarray(Image.open(folder / "posts" / "12.png"))
    np.testing.assert_array_equal(names["patches"], pixels.reshape(M, C))
    assert names["tokens"].astype(int).ravel().tolist() == [2, *b"text 12", 3]


def test_the_shard_table_finds_every_array_in_the_plain_bytes(folder):
    with h5py.File(folder / "cache" / "index.h5") as index:
        table = {name: column[:] for name, column in index["/shard"].items()}
        columns = PAGE[PAGE.index("`/shard/*`") : PAGE.index("0 for a dataset")]
        assert set(table) == set(re.findall(r"`(\w+)`", columns))
        first = 0
        for row, name in enumerate(table["name"]):
            data = (folder / "cache" / name.decode()).read_bytes()
            rows = int(table["rows"][row])
            assert len(data) == table["bytes"][row]
            assert hashlib.sha256(data).hexdigest() == table["sha256"][row].decode()
            assert all(table[f"{what}_at"][row] % 4096 == 0 for what in ("patches", "pooled", "tokens", "offsets"))
            patches = np.frombuffer(data, "<f2", rows * M * C, int(table["patches_at"][row])).reshape(rows, M, C)
            pooled = np.frombuffer(data, "<f2", rows * C, int(table["pooled_at"][row])).reshape(rows, C)
            offsets = np.frombuffer(data, "<i8", rows + 1, int(table["offsets_at"][row]))
            tokens = np.frombuffer(data, "<f2", offsets[-1] * D, int(table["tokens_at"][row])).reshape(-1, D)
            ids = np.frombuffer(data, "<i4", offsets[-1], int(table["input_ids_at"][row]))
            vectors = np.frombuffer(data, "<f4", rows * D, int(table["text_pooled_at"][row])).reshape(rows, D)
            np.testing.assert_array_equal(index["/text/pooled"][first : first + rows], vectors)
            start, stop = index["/text/offsets"][first], index["/text/offsets"][first + rows]
            np.testing.assert_array_equal(index["/image/patches"][first : first + rows], patches)
            np.testing.assert_array_equal(index["/image/pooled"][first : first + rows], pooled)
            np.testing.assert_array_equal(index["/text/tokens"][start:stop], tokens)
            np.testing.assert_array_equal(index["/text/input_ids"][start:stop], ids)
            first += rows
        assert first == POSTS


def test_the_index_says_of_every_post_what_the_page_says(folder):
    with h5py.File(folder / "cache" / "index.h5") as index:
        assert index.attrs["format"] == "mscf cache"
        assert index.attrs["schema_version"] == 3
        assert json.loads(index.attrs["fingerprint"])["stored_dtype"] == "float16"
        shard = {name for name in described() if name.startswith("/post/")}
        more = {f"/post/{name}" for name in ("text", "image", "split")}
        assert {name for name in datasets(index) if name.startswith("/post/")} == shard | more
        assert {name for name in datasets(index) if name.startswith("/target/")} == {"/target/label", "/target/mood"}
        for name, labels in NAMES.items():
            target = index[f"/target/{name}"]
            assert (target.dtype, target.shape, target.attrs["kind"]) == (np.int16, (POSTS,), "single")
            assert list(target.attrs["names"]) == labels
        assert index["/target/mood"][:].tolist() == [1, 0, -1] + [-1] * (POSTS - 3)
        assert h5py.check_enum_dtype(index["/post/split"].dtype) == {"none": -1, "train": 0, "val": 1, "test": 2}
        text, image = (index[f"/post/{name}"].asstr()[:] for name in ("text_sha256", "image_sha256"))
        for row in range(POSTS):
            path = Path(index["/post/image"].asstr()[row])
            assert text[row] == hashlib.sha256(index["/post/text"][row]).hexdigest()
            assert image[row] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert index["/post/status"][:].tolist() == [int(row == 5) for row in range(POSTS)]
        assert index["/post/reason"].asstr()[5].startswith("image: empty file")
        assert not index["/image/patches"][5].any()
        assert index["/text/offsets"][5] == index["/text/offsets"][6]
        ids = index["/post/id"].asstr()[:]
        lines = sorted(f"{ids[row]}\t{text[row]}\t{image[row]}\n" for row in range(POSTS))
        assert index.attrs["manifest_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
