"""Runs several trainings in one process; the cache is opened once and each text encoder loaded once."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.config import Config
from fusion.data.pooled_store import PooledStore
from fusion.data.requirements import settled
from fusion.models.precision import resolved
from fusion.names import pooled_models
from fusion.run import Run
from fusion.training.build import masking_encoder
from fusion.training.display import EpochMetrics
from fusion.training.together import Member, shared_by, train_together
from fusion.training.train import ExecutionOptions, train
from pipeline.cache.reader import Cache
from pipeline.common.errors import Diverged
from pipeline.common.signals import StopRequest
from pipeline.encoders.load import TextEncoder
from pipeline.posts.labels import LABEL

_MOST_TOGETHER = 8  # models on pooled vectors that are trained at once (benchmarks/study.py)


def group_sizes(trainings: int, jobs: int) -> list[int]:
    """How many of so many trainings on pooled vectors are made at once, group by group: alike, and as many groups for
    each process, so that all are done at a time.
    """
    groups = jobs * -(-trainings // (jobs * _MOST_TOGETHER))
    sizes = [trainings // groups + (number < trainings % groups) for number in range(groups)]
    return [size for size in sizes if size]


class Trainer:
    """Opens the mapped cache once, and its text encoder once for each precision.

    `jobs`: how many such processes there are at a time; they share the memory for masked texts' encodings.
    """

    def __init__(
        self,
        cache: Path,
        device: str,
        *,
        splits: Path | None = None,
        allow_unmatched: bool = False,
        text_encoder: str | None = None,
        jobs: int = 1,
        target: str = LABEL,
    ) -> None:
        self.device = torch.device(device)
        opened = Cache(cache, target=target)
        self.cache = (
            opened.with_splits(splits, allow_unmatched=allow_unmatched) if splits else opened
        ).with_used_names()
        self._folder, self._jobs = text_encoder, jobs
        self._encoders: dict[str, TextEncoder] = {}
        self._stores: dict[int, PooledStore] = {}

    def train(
        self,
        run: Run,
        config: Config,
        on_epoch: Callable[[EpochMetrics], None] = lambda line: None,
        *,
        cache: Cache | None = None,
        stop: StopRequest | None = None,
    ) -> float:
        """Train or resume a run on `cache`, or on the trainer's own; returns the best epoch's validation weighted F1.

        `on_epoch` is also called for epochs trained before a restart: the killed process may not have reported them.
        """
        config = settled(config, cache or self.cache)
        cache = run.resume_or_start(config, cache or self.cache, same_splits=True)
        for line in run.metrics():
            on_epoch(line)
        if run.finished:
            return float(run.metadata["validation"]["weighted_f1"])
        execution = ExecutionOptions(encodings_bytes=ExecutionOptions().encodings_bytes // self._jobs)
        encoder = self.encoder(config) if config.mlm else None
        result = train(
            cache,
            config,
            run,
            self.device,
            text_encoder=encoder,
            execution=execution,
            on_epoch=on_epoch,
            stop=stop,
            quiet=True,
        )
        return result.validation["weighted_f1"]

    def train_all(self, runs: Sequence[tuple[Run, Config, Cache]], stop: StopRequest | None = None) -> None:
        """Train or resume several runs, those on pooled vectors at once. One that diverges is a failed run."""
        members: dict[tuple[Any, ...], list[Member]] = {}
        for run, config, cache in runs:
            if not (shared := shared_by(config)):
                with suppress(Diverged):
                    self.train(run, config, cache=cache, stop=stop)
            elif not run.failure:
                cache = run.resume_or_start(config, cache, same_splits=True)
                if not run.finished:
                    members.setdefault(shared, []).append(Member(cache, config, run))
        for group in members.values():
            self.train_members(group, stop)
            for member in group:
                if isinstance(member.end, Exception) and not isinstance(member.end, Diverged):
                    raise member.end

    def train_members(self, members: list[Member], stop: StopRequest | None = None) -> None:
        """Train models on pooled vectors at once, which have `shared_by` alike; each gets its `end`."""
        store = self.pooled_store(members[0].config, *(member.cache for member in members))
        assert store is not None
        train_together(members, store, self.device, stop)

    def pooled_store(self, config: Config, *caches: Cache) -> PooledStore | None:
        """The pooled vectors of all labelled posts with a split in the caches, held from the first call on; None for a
        model that reads more.
        """
        if config.model not in pooled_models():
            return None
        views = self.cache.views if config.views == "sample" else 1
        used = [cache.ok & (cache.labels >= 0) & (cache.splits >= 0) for cache in caches]
        rows = np.flatnonzero(np.any(used, axis=0))
        held = self._stores.get(views)
        if held is None or not held.holds(rows):
            self._stores[views] = held = PooledStore(self.cache, rows, self.device, views=views)
        return held

    def encoder(self, config: Config) -> TextEncoder:
        """The text encoder of the masking, in the config's precision."""
        precision = resolved(config, self.device)
        if precision not in self._encoders:
            self._encoders[precision] = masking_encoder(self.cache, self.device, config, self._folder)
        return self._encoders[precision]
