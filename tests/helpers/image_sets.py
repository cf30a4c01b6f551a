"""The same posts as a folder of image files, as tars and as Parquet files."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

PACKAGED = tuple[str, bytes, str, str]  # id, the image's bytes, the text, the label


def drawn_posts(count: int) -> list[PACKAGED]:
    """Posts with pictures of different sizes and kinds, no two alike."""
    random, posts = np.random.default_rng(7), []
    for number in range(count):
        kind = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")[number % 6]
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (31 + number, 53, 3), np.uint8)).save(file, kind)
        posts.append((f"p{number:03}", file.getvalue(), f"word {number}", ("glad", "sad")[number % 2]))
    return posts


def ending(data: bytes) -> str:
    kind = Image.open(io.BytesIO(data)).format or ""
    return {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())


def write_folder(folder: Path, posts: Sequence[PACKAGED]) -> Path:
    """A table of posts beside their image files."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for id_, data, text, label in posts:
        image = f"images/{id_}.{ending(data)}"
        (folder / image).write_bytes(data)
        rows.append({"id": id_, "text": text, "image": image, "label": label})
    table = folder / "posts.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def tar_bytes(members: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_tars(folder: Path, posts: Sequence[PACKAGED], a_tar: int) -> list[Path]:
    """Tars of `a_tar` posts each, called 00000.tar and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, len(posts), a_tar)):
        members = []
        for id_, data, text, label in posts[start : start + a_tar]:
            fields = json.dumps({"label": label, "width": 53}).encode()
            members += [(f"{id_}.{ending(data)}", data), (f"{id_}.json", fields), (f"{id_}.txt", text.encode())]
        paths.append(folder / f"{number:05}.tar")
        paths[-1].write_bytes(tar_bytes(members, tarfile.PAX_FORMAT))
    return paths


def write_parquet(folder: Path, posts: Sequence[PACKAGED], a_file: int, a_group: int, *, struct: bool) -> list[Path]:
    """Parquet files with the images inside, in bare bytes or in Hugging Face's struct."""
    folder.mkdir(parents=True)
    paths = []
    for number, start in enumerate(range(0, len(posts), a_file)):
        chosen = posts[start : start + a_file]
        images = [{"bytes": data, "path": f"{id_}.x"} if struct else data for id_, data, _, _ in chosen]
        columns = {"id": [post[0] for post in chosen], "image": images}
        columns |= {"text": [post[2] for post in chosen], "label": [post[3] for post in chosen]}
        paths.append(folder / f"train-{number:05}.parquet")
        parquet.write_table(pyarrow.table(columns), paths[-1], row_group_size=a_group)
    return paths
