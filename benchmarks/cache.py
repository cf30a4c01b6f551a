"""What the cache costs its readers: opening, random batches, memory of several processes, and growth.

    python benchmarks/cache.py [--posts 17024] [--json FILE] [--folder DIR]

The first three at ResNet50's and BERT-base's widths with as many posts as MVSA-Multiple has (random features; about 4.5
GiB of disk and as much memory), the last with narrow features from 1,000 to 100,000 posts.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.posts.manifest import Post

MARKS = {"image": {"name": "random"}, "text": {"name": "random"}, "stored_dtype": "float16"}
TOKENS, BATCH, READERS = 28, 64, 4


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, default=17_024)
    options.add_argument("--folder", type=Path, help="where to write the cache (default: a temporary folder)")
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write(folder / "wide", given.posts, patches=49, channels=2048, width=768)
        opened = statistics.median(timed(lambda: Cache(folder / "wide")) for _ in range(5))
        print(f"open {given.posts} posts: {1e3 * opened:.1f} ms")
        rates = gather_rates(Cache(folder / "wide"))
        print(f"random batches of {BATCH}: cache {rates['cache']:.2f}, memory {rates['memory']:.2f} GB/s; "
              f"cache/memory {rates['ratio']:.2f}")  # fmt: skip
        memory = memory_of_readers(folder / "wide")
        print(f"mapped shards of {READERS} readers over those of one: {memory['ratio']:.2f} "
              f"({memory['four'] / 2**30:.2f} and {memory['one'] / 2**30:.2f} GiB; private beside them: "
              f"{memory['private_each'] / 2**20:.0f} MiB each)")  # fmt: skip
        growth = {}
        for posts in (1_000, 10_000, 100_000):
            growth[posts] = cost_per_post(folder / f"narrow-{posts}", posts)
            print(f"{posts:7} posts, narrow: " + ", ".join(f"{k} {1e6 * v:.1f} µs" for k, v in growth[posts].items()))
    if given.json:
        summary = {
            "posts": given.posts,
            "open_seconds": opened,
            "rate_gather_over_copy": rates["ratio"],
            "memory_four_readers_over_one": memory["ratio"],
            "seconds_per_post": growth,
            "gather": rates,
            "memory": memory,
        }
        given.json.write_text(json.dumps(summary, indent=2) + "\n")


def write(folder: Path, posts: int, *, patches: int, channels: int, width: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    shards = hdf5.in_shards([Post(str(number), f"text {number}", Path(f"{number}.jpg")) for number in range(posts)])
    images = random.standard_normal((hdf5.SHARD_POSTS, patches, channels), np.float32).astype(np.float16)
    tokens = random.standard_normal((hdf5.SHARD_POSTS, TOKENS, width), np.float32).astype(np.float16)
    ids = np.arange(TOKENS, dtype=np.int32)
    for number, part in shards.items():
        count = len(part)
        records = [hdf5.PostRecord(post.id, f"{int(post.id):064x}", f"{int(post.id):064x}") for post in part]
        features = hdf5.ShardFeatures(
            records, images[:count], images[:count].mean(axis=1), list(tokens[:count]), [ids] * count
        )
        hdf5.write_shard(folder / hdf5.shard_name(number), features, MARKS)
    hdf5.write_index(folder, shards, MARKS)


def gather_rates(cache: Cache, batches: int = 200, rounds: int = 5) -> dict[str, float]:
    """GB/s of random rows out of the mapped cache and out of plain memory, alternating, after one full pass."""
    everyone = np.arange(len(cache))
    patches, pooled = cache.gather_images(everyone)  # the full pass; and the plain memory to compare with
    random = np.random.default_rng(1)
    picks = [random.choice(len(cache), BATCH, replace=False) for _ in range(batches)]
    out = (np.empty((BATCH, *patches.shape[1:]), patches.dtype), np.empty((BATCH, pooled.shape[1]), pooled.dtype))

    def from_cache() -> None:
        for rows in picks:
            cache.gather_images(rows, out)

    def from_memory() -> None:
        for rows in picks:
            np.take(patches, rows, axis=0, out=out[0], mode="clip")  # without mode, take copies through a buffer
            np.take(pooled, rows, axis=0, out=out[1], mode="clip")

    size = batches * (out[0].nbytes + out[1].nbytes) / 1e9
    seconds: dict[str, list[float]] = {"cache": [], "memory": []}
    for _ in range(rounds):
        seconds["cache"].append(timed(from_cache))
        seconds["memory"].append(timed(from_memory))
    cache_rate, memory_rate = (size / statistics.median(seconds[name]) for name in ("cache", "memory"))
    return {"cache": cache_rate, "memory": memory_rate, "ratio": cache_rate / memory_rate}


def memory_of_readers(folder: Path) -> dict[str, float]:
    """Proportional set size over the mapped shards, summed over processes that have each read every row."""
    one, private_one = read_in(folder, 1)
    four, private_four = read_in(folder, READERS)
    return {
        "one": sum(one),
        "four": sum(four),
        "ratio": sum(four) / sum(one),
        "private_each": max(private_one + private_four),
    }


def read_in(folder: Path, readers: int) -> tuple[list[int], list[int]]:
    context = multiprocessing.get_context("spawn")
    queue, barrier = context.Queue(), context.Barrier(readers)
    processes = [context.Process(target=read_all, args=(folder, barrier, queue)) for _ in range(readers)]
    for process in processes:
        process.start()
    answers = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return [shared for shared, _ in answers], [private for _, private in answers]


def read_all(folder: Path, barrier: Barrier, queue: Any) -> None:
    cache = Cache(folder)
    for row in range(len(cache)):
        cache.patches(row).max()
        cache.tokens(row).max()
    barrier.wait()  # all have everything mapped
    answer = set_sizes()
    barrier.wait()  # and keep it so until all have looked
    queue.put(answer)


def set_sizes() -> tuple[int, int]:
    """Bytes: proportional set size of the mapped shards, and private memory of everything else."""
    shared = private = 0
    mapped = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapped = bool(re.search(r"shard-\d+\.h5$", line))
        elif line.startswith("Pss:") and mapped:
            shared += int(line.split()[1]) * 1024
        elif line.startswith(("Private_Clean:", "Private_Dirty:")) and not mapped:
            private += int(line.split()[1]) * 1024
    return shared, private


def cost_per_post(folder: Path, posts: int) -> dict[str, float]:
    """Seconds a post: writing, opening, and gathering in random batches."""
    written = timed(lambda: write(folder, posts, patches=1, channels=16, width=16))
    opened = statistics.median(timed(lambda: Cache(folder)) for _ in range(3))
    cache = Cache(folder)
    order = np.random.default_rng(0).permutation(posts)
    batches = [order[start : start + BATCH] for start in range(0, posts, BATCH)]

    def one_pass() -> None:
        for rows in batches:
            cache.gather_images(rows)

    one_pass()
    return {"write": written / posts, "open": opened / posts, "gather": timed(one_pass) / posts}


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
