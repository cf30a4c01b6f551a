"""An epoch from the cache against an epoch that runs the frozen encoders every time, as most published code does.

The same model, batches and training code; only where a batch's features come from differs: mapped files, or decoding
and both encoders on the spot. For the preset `packaged` with the packaged encoders, and for the paper's sizes with
full-size encoders of random weights. Posts come from $MVSA_SINGLE; without it they are drawn.

    python benchmarks/epoch.py [--case packaged|paper] [--posts 256] [--rounds 2] [--device auto] [--json FILE]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from extract import Encoders, data_sets, load  # the benchmark beside this one

from fusion.config import load_config
from fusion.data.batches import Batch, collate
from fusion.data.feature_store import FeatureStore
from fusion.models.base import Dimensions
from fusion.models.fusion import FusionModel
from fusion.models.precision import resolved
from fusion.models.reencoding import Reencoder
from fusion.training.allocator import keep_memory
from fusion.training.distributed import Ranks
from fusion.training.epoch import Epoch
from fusion.training.optimizer import new_optimizer
from pipeline.cache.reader import Cache
from pipeline.common.device import exact_float32, resolve_device
from pipeline.extraction.decode import start_server
from pipeline.extraction.extract import extract
from pipeline.posts.images import to_rgb
from pipeline.posts.manifest import Post
from pipeline.posts.mvsa import LABELS

PRESETS = {"packaged": "packaged", "paper": "mvsa-single"}


class Encoded:
    """Batches made by decoding and encoding the posts again, each time."""

    def __init__(self, posts: list[Post], encoders: Encoders) -> None:
        self._posts, (self._image, self._text) = posts, encoders

    def batches(self, batches_of_rows: Iterable[np.ndarray]) -> Iterator[Batch]:
        for rows in batches_of_rows:
            posts = [self._posts[row] for row in rows]
            pixels = np.stack([self._image.pixels(to_rgb(post.image.read_bytes())[0]) for post in posts])
            ids, _ = self._text.tokenize([post.text or "" for post in posts])
            longest = max(map(len, ids))
            padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
            mask = torch.arange(longest) < torch.tensor([len(row) for row in ids])[:, None]
            tokens = self._text.encode(padded, mask).cpu().numpy()
            texts = [states[: len(row)] for states, row in zip(tokens, ids, strict=True)]
            labels = np.array([LABELS.index(str(post.label)) for post in posts])
            patches, pooled = self._image.encode(pixels)
            yield collate(patches, pooled, texts, ids, self._image.device, rows=rows, labels=labels)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--case", choices=list(PRESETS), action="append")
    options.add_argument("--posts", type=int, default=256)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--device", default="auto")
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    exact_float32()
    device = resolve_device(given.device)
    start_server()
    keep_memory()
    ratios: dict[str, float] = {}
    print(f"{'':12}{'from the cache':>16}{'encoders again':>16}{'ratio':>8}   seconds for {given.posts} posts")
    with tempfile.TemporaryDirectory() as name:
        for case in given.case or list(PRESETS):
            cached, again = measure(case, Path(name), given.posts, given.rounds, device)
            ratios[case] = again / cached
            print(f"{case:12}{cached:>16.2f}{again:>16.2f}{ratios[case]:>8.2f}", flush=True)
    if given.json:
        result = {"posts": given.posts, "time_encoders_every_epoch_over_cached": ratios}
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(case: str, folder: Path, count: int, rounds: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of an epoch from the cache, and with the encoders, alternating after one unmeasured epoch each."""
    image, text = load(case, folder, str(device))
    _, posts = next(data_sets(folder))
    posts = [replace(post, split="train") for post in posts if post.label][:count]
    extract(posts, folder / case, image, text, quiet=True)
    cache = Cache(folder / case)
    config = load_config(PRESETS[case])
    m, channels = cache.patches_shape
    model = FusionModel(config, Dimensions(channels, cache.text_width, text.vocabulary, classes=3, patches=m)).to(
        device
    )
    optimizer = new_optimizer(model, config)
    masked = text.in_precision(resolved(config, device))
    sources = (FeatureStore(cache, cache.rows("train"), device), Encoded(posts, (image, text)))
    seconds: tuple[list[float], list[float]] = ([], [])
    for epoch in range(1, rounds + 2):
        for source, times in zip(sources, seconds, strict=True):
            passes = Epoch(model, optimizer, cache, source, Reencoder(masked), Ranks())  # type: ignore[arg-type]
            started = time.perf_counter()
            passes.run(epoch)
            times.append(time.perf_counter() - started)
    cached, again = (statistics.median(times[1:]) for times in seconds)
    return cached, again


if __name__ == "__main__":
    main()
