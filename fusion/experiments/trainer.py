"""Runs several trainings in one process; the cache is opened once and each text encoder loaded once."""

from collections.abc import Callable
from pathlib import Path

import torch

from fusion.config import Config
from fusion.models.precision import resolved
from fusion.run import Run
from fusion.training.build import masking_encoder
from fusion.training.display import EpochMetrics
from fusion.training.train import ExecutionOptions, train
from pipeline.cache.reader import Cache
from pipeline.common.signals import StopRequest
from pipeline.encoders.load import TextEncoder
from pipeline.posts.labels import LABEL


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

    def encoder(self, config: Config) -> TextEncoder:
        """The text encoder of the masking, in the config's precision."""
        precision = resolved(config, self.device)
        if precision not in self._encoders:
            self._encoders[precision] = masking_encoder(self.cache, self.device, config, self._folder)
        return self._encoders[precision]
