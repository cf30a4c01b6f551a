"""Many trainings of a pooled model: several at once, as `study` and `sweep` do it, against one after another.

Both ways use two processes on the same cache, write the same run folders, and predict the test posts of each fold; only
how many models a process trains at a time differs. Also a sweep of 100 trials. The limit of the first is the matrix
products alone: two for the forward pass and two for the gradients of the weights.

    python benchmarks/study.py CACHE [--folds DIR] [--seeds 5] [--models best] [--trials 100] [--json FILE]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.config import Config, load_config
from fusion.data.folds import write_folds
from fusion.data.requirements import settled
from fusion.experiments import reproduce, trainer
from fusion.experiments.search_space import read_space
from fusion.experiments.sweep import sweep
from fusion.experiments.table_spec import ANSWERS, TableRun, TableSpec
from fusion.experiments.tables.rows import STUDY
from fusion.experiments.tables.table_file import read_predictions
from fusion.experiments.trials import SweepSpec
from fusion.models.pooled.vectors import Block
from fusion.models.precision import resolved
from fusion.models.registry import build_model
from fusion.training.build import dimensions_of
from pipeline.cache.reader import Cache
from pipeline.common.device import exact_float32

JOBS = 2
SPACE = """
lr: {low: 3e-4, high: 3e-3, log: true}
dropout: {low: 0.4, high: 0.85}
input_dropout: {low: 0.2, high: 0.6}
weight_decay: {low: 1e-3, high: 1e-1, log: true}
label_smoothing: [0.0, 0.1]
"""


def begin_alone(spec: TableSpec) -> Callable[[list[TableRun]], None]:
    """In each process: as `reproduce.begin`, one training after another."""
    trainer.shared_by = lambda config: None
    fit_all = reproduce.begin(spec)

    def each(group: list[TableRun]) -> None:
        for fit in group:
            fit_all([fit])

    return each


def timed(spec: TableSpec, begin: Callable[..., Any]) -> float:
    """Seconds of a whole study, as the command makes it."""
    usual = reproduce.begin
    reproduce.begin = begin
    started = time.perf_counter()
    try:
        reproduce.reproduce(spec)
    finally:
        reproduce.begin = usual
    return time.perf_counter() - started


def predictions(out: Path) -> dict[str, np.ndarray]:
    return {
        str(file.parent.relative_to(out)): np.array(read_predictions(file)["probabilities"])
        for file in sorted(out.rglob(ANSWERS))
    }


def limit(cache: Cache, config: Config, trainings: int) -> float:
    """Seconds that the matrix products of so many trainings take on two cores, each at one thread's speed."""
    model = build_model(settled(config, cache), dimensions_of(cache))
    layers = [module.linear for module in model.modules() if isinstance(module, Block)]
    dtype = torch.bfloat16 if resolved(config, torch.device("cpu")) == "bfloat16" else torch.float32
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = 0.0
    for layer in layers:
        posts = torch.randn(config.batch_size, layer.in_features, dtype=dtype)
        weight, slope = layer.weight.to(dtype), torch.randn(config.batch_size, layer.out_features, dtype=dtype)
        seconds += min(_once(posts, weight, slope) for _ in range(50))
    torch.set_num_threads(threads)
    steps = config.epochs * -(-len(cache.rows("train")) // config.batch_size)
    return seconds * steps * trainings / JOBS


@torch.no_grad()
def _once(posts: torch.Tensor, weight: torch.Tensor, slope: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.mm(posts, weight.T)
    torch.mm(slope.T, posts)
    return time.perf_counter() - started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("cache", type=Path)
    options.add_argument("--folds", type=Path, help="made with `folds` unless given")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--models", default="best")
    options.add_argument("--trials", type=int, default=100)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    exact_float32()
    cache = Cache(given.cache).with_used_names()
    measured: dict[str, Any] = {"posts": len(cache)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not (folds := given.folds):
            write_folds(cache, folds := folder / "folds")
        for model in given.models.split(","):
            spec = TableSpec(
                given.cache, folder / "together", STUDY, Config(), "cpu", seeds=given.seeds, folds=folds, jobs=JOBS,
                models=(model,),
            )  # fmt: skip
            alone = TableSpec(**{**vars(spec), "out": folder / "alone"})
            times = {"at once": timed(spec, reproduce.begin), "one after another": timed(alone, begin_alone)}
            ours, theirs = predictions(spec.out), predictions(alone.out)
            furthest = max(float(np.abs(ours[key] - theirs[key]).max()) for key in theirs)
            same = float(np.mean([(ours[key].argmax(1) == theirs[key].argmax(1)).mean() for key in theirs]))
            row = spec.rows(cache.with_splits(next(iter(sorted(folds.glob("*.csv"))))))[0][0]
            least = limit(cache, row.config(Config()), len(ours))
            ways = ", ".join(f"{way} {seconds:.1f} s" for way, seconds in times.items())
            print(f"{model}: {len(ours)} trainings: {ways}; matrix products alone {least:.1f} s")
            print(f"  probabilities differ by at most {furthest:.2g}, answers agree in {100 * same:.2f} %")
            measured[model] = {**times, "limit": least, "furthest": furthest, "agree": same, "trainings": len(ours)}
        if given.trials:
            (folder / "space.yaml").write_text(SPACE)
            base = settled(load_config(given.models.split(",")[0]), cache)
            started = time.perf_counter()
            spec_of_sweep = SweepSpec(given.cache, folder / "sweep", base, "cpu", jobs=JOBS)
            result = sweep(spec_of_sweep, read_space(folder / "space.yaml", base), given.trials)
            measured["sweep"] = {"seconds": time.perf_counter() - started, "trials": result["trials"]}
            print(f"sweep of {given.trials} trials: {measured['sweep']['seconds']:.1f} s ({result['trials']})")
    if given.json:
        given.json.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
