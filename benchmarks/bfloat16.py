"""What bfloat16 encoders change: the error of the features, and what a linear probe on them says.

    python benchmarks/bfloat16.py [--posts 600] [--json FILE]

extracts the same posts twice with the packaged encoders, in float32 and in bfloat16 (both stored as float16), from
$MVSA_SINGLE with its published split, every k-th post of it; without it the posts are drawn.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fusion.evaluation.linear_probe import MODALITIES, probe
from pipeline.cache.reader import Cache
from pipeline.demo import dataset as drawn
from pipeline.encoders.load import EncoderChoice, load_image_encoder, load_text_encoder
from pipeline.extraction.decode import start_server
from pipeline.extraction.extract import extract
from pipeline.posts.manifest import Post
from pipeline.posts.prepare import prepare

FEATURES = ("patches", "pooled", "tokens")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, default=600)
    options.add_argument("--device", default="auto")
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    start_server()
    with tempfile.TemporaryDirectory() as name:
        posts = some_posts(given.posts, Path(name))
        caches, rates = {}, {}
        for dtype in ("float32", "bfloat16"):
            choice = EncoderChoice(preset="packaged", dtype=dtype, device=given.device)
            report = extract(posts, Path(name) / dtype, load_image_encoder(choice), load_text_encoder(choice))
            caches[dtype], rates[dtype] = Cache(Path(name) / dtype), report.summary()["posts_per_second"]
            print(f"{dtype}: {rates[dtype]:.2f} posts/s")
        exact, rough = caches.values()
        errors = {feature: relative_errors(exact, rough, feature) for feature in FEATURES}
        for feature, error in errors.items():
            print(f"{feature:8} relative error of a post: " + ", ".join(f"{k} {v:.4f}" for k, v in error.items()))
        probes = {kind: effect(exact, rough, kind) for kind in MODALITIES}
        for kind, row in probes.items():
            print(f"probe {kind:5} " + ", ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in row.items()))
    if given.json:
        summary = {"posts": len(posts), "posts_per_second": rates, "errors": errors, "probes": probes}
        given.json.write_text(json.dumps(summary, indent=2) + "\n")


def some_posts(count: int, folder: Path) -> list[Post]:
    if "MVSA_SINGLE" in os.environ:
        source = Path(os.environ["MVSA_SINGLE"])
        posts = prepare(source, splits=source / "splits.csv").posts
    else:
        drawn.draw(folder / "mvsa", posts=count, seed=0)
        posts = prepare(folder / "mvsa").posts
    by_split = sorted(posts, key=lambda post: (post.split or "", post.label or ""))  # every k-th keeps the shares
    return [by_split[place] for place in np.linspace(0, len(posts) - 1, min(count, len(posts))).astype(int)]


def relative_errors(exact: Cache, rough: Cache, feature: str) -> dict[str, float]:
    """||rough - exact|| / ||exact|| over all values of a post: median and largest."""
    errors = []
    for row in np.flatnonzero(exact.ok & rough.ok):
        a, b = (getattr(cache, feature)(row).astype(np.float64) for cache in (exact, rough))
        errors.append(np.linalg.norm(b - a) / np.linalg.norm(a))
    return {"median": float(np.median(errors)), "largest": float(np.max(errors))}


def effect(exact: Cache, rough: Cache, kind: str) -> dict[str, Any]:
    """Validation accuracy of the probe on each cache, and the share of test posts whose prediction differs."""
    a, b = probe(exact, kind), probe(rough, kind)
    return {
        "val_accuracy_float32": a.val_accuracy,
        "val_accuracy_bfloat16": b.val_accuracy,
        "test_accuracy_float32": a.test_accuracy,
        "test_accuracy_bfloat16": b.test_accuracy,
        "test_posts": len(a.test_rows),
        "predictions_that_differ": float(np.mean(a.test_predictions != b.test_predictions)),
    }


if __name__ == "__main__":
    main()
