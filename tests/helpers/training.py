"""Trainings of small models on small caches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusion.config import load_config
from fusion.data.batches import Batch
from fusion.metrics_file import MetricsFile
from fusion.run import Run
from fusion.training.train import ExecutionOptions, train
from pipeline.cache.reader import Cache
from tests.helpers.commands import SMALL
from tests.helpers.toy import ToyText

PLAIN = ExecutionOptions()
CPU = torch.device("cpu")
TORN = '{"epoch": 2, "loss_sent'
TINY = ("width=16", "heads=2", "layers=1", "lr=1e-3", "epochs=1", "batch_size=8", "mlm=false")


class Pooled(nn.Module):
    """A module of one's own: a linear layer on the pooled image, which gets its size from the first batch."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.LazyLinear(classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.head(batch.pooled)


def run_of(folder, cache, *settings, execution=PLAIN, **options):
    run = Run(folder)
    config = load_config(settings=(*SMALL, *settings))
    encoder = ToyText(7) if config.mlm else None
    result = train(cache, config, run, CPU, text_encoder=encoder, execution=execution, quiet=True, **options)
    return run, result


def lines_of(run):
    """What an epoch measured, without how long it took."""
    return [{key: value for key, value in line.items() if key not in ("seconds", "speed")} for line in run.metrics()]


def tear_metrics(monkeypatch: pytest.MonkeyPatch, epoch: int, work: Callable[[], Any]) -> None:
    """Do some work, which is killed while it writes the metrics of this epoch for the first time."""

    def torn(self: MetricsFile, line: dict[str, Any]) -> None:
        if line["epoch"] < epoch:
            append(self, line)
            return
        with self.path.open("a") as file:
            file.write(TORN)
        raise KeyboardInterrupt

    append = MetricsFile.append
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "append", torn)
        work()


def trained(cache: Cache, folder: Path, *settings: str) -> Run:
    """A few steps' run: it knows next to nothing, and its predictions differ from post to post."""
    run = Run(folder)
    train(cache, load_config(settings=(*TINY, *settings)), run, CPU, quiet=True)
    return run
