"""A trained and evaluated run of posts with hostile texts, to report."""

import numpy as np
import torch
from PIL import Image

from fusion.evaluation.evaluate import evaluate
from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.common.files import sha256_of_file, write_json
from pipeline.posts.manifest import Post
from pipeline.posts.mvsa import LABELS
from tests.helpers.toy import write_cache
from tests.helpers.training import run_of

MARKS = {
    "image": {"name": "toy", "transform": {"size": 8, "crop_pct": 0.8, "crop_mode": "center"}},
    "text": {"name": "toy"},
    "stored_dtype": "float32",
}


SCRIPT = '<script>alert("x")</script> & <img src=x onerror=alert(1)> so "quoted"'


class ToyTokenizer:
    """Cuts a text into single characters, as many as the toy cache has ids for it."""

    fingerprint = MARKS["text"]

    def __init__(self, cache):
        self.lengths = {text: int(length) for text, length in zip(cache.texts, cache.lengths, strict=True)}

    def normalized(self, text):
        return text

    def spans(self, text):
        return [(0, 0), *((i, i + 1) for i in range(self.lengths[text] - 2)), (0, 0)]


def make_run(folder, *settings, monkeypatch):
    """A trained and evaluated run of posts with hostile texts; every third image is missing."""
    hashes = [""] * 90
    for row in range(0, 90):
        if row % 3:
            Image.fromarray(np.full((30, 20 + row, 3), row, np.uint8)).save(folder / f"{row}.png")
            hashes[row] = sha256_of_file(folder / f"{row}.png")
    cache = write_cache(folder / "cache", posts=90, m=4, strength=2.0, fingerprint=MARKS, image_sha256=hashes)
    posts = [
        Post(id_, f"{SCRIPT} number {id_}", folder / f"{id_}.png", LABELS[label], ("train", "val", "test")[split])
        for id_, label, split in zip(cache.ids, cache.labels, cache.splits, strict=True)
    ]
    hdf5.write_index(folder / "cache", hdf5.in_shards(posts), MARKS, names={"label": LABELS})
    cache = Cache(folder / "cache")
    tokenizer = ToyTokenizer(cache)
    for module in ("fusion.report.run_report", "fusion.report.gallery"):
        monkeypatch.setattr(f"{module}.same_text_encoder", lambda *_, **__: tokenizer)
    run, _ = run_of(folder / "run", cache, *settings)
    write_json(run.folder / "evaluation-test.json", evaluate(run, torch.device("cpu")))
    return run
