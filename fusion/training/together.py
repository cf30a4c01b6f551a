"""Trains several models on pooled vectors at once: the hidden layers of all are one batched product.

Each has its own posts, order, dropout masks, settings and losses, and ends with what `train` makes of it alone, up to
the rounding of sums. A kill loses the trainings in hand, which take seconds: no state is written between epochs.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.data.pooled_store import PooledStore
from fusion.data.requirements import require_trainable
from fusion.models.label_rule import known_labels
from fusion.models.objective import objective_of
from fusion.models.pooled.vectors import PooledModel
from fusion.models.precision import precision
from fusion.models.registry import model_class
from fusion.names import pooled_models
from fusion.run import Run
from fusion.run_files import TrainingState
from fusion.training.build import new_model
from fusion.training.display import EpochMetrics
from fusion.training.distributed import Ranks
from fusion.training.epoch import EpochLosses, EpochPlan, plan_epoch, reported
from fusion.training.optimizer import new_optimizer
from fusion.training.record import (
    NOTHING_TRAINED,
    TrainResult,
    after_epoch,
    finish_run,
    has_ended,
    result_of,
    start_run,
)
from fusion.training.stack import Stack
from fusion.training.validate import calibration, validate
from pipeline.cache.reader import Cache
from pipeline.common.errors import Diverged, InputError, Stopped
from pipeline.common.locks import only_writer
from pipeline.common.signals import StopRequest

# What members of a group share, since it decides the sizes of their layers and of their batches of posts.
_SHARED = ("model", "width", "layers", "label_rule", "batch_size", "views", "precision")


def shared_by(config: Config) -> tuple[Any, ...] | None:
    """What configurations must have alike to be trained at once; None for one that is trained alone."""
    if config.model not in pooled_models() or config.ema or model_class(config.model).fitted_alone:
        return None
    return tuple(getattr(config, name) for name in _SHARED)


@dataclass
class Member:
    """One training of a group. on_epoch gets each epoch's line of metrics; what it raises ends this training, and is
    its `end`. `end` is the result, or what ended the training without one.
    """

    cache: Cache
    config: Config
    run: Run
    on_epoch: Callable[[EpochMetrics], None] = lambda line: None
    end: TrainResult | Exception | None = None


def train_together(
    members: Sequence[Member], store: PooledStore, device: torch.device, stop: StopRequest | None = None
) -> None:
    """Train the members, which have `shared_by` alike, into their run folders; each gets its `end`.

    store: holds the training and validation posts of all, and their views. An InputError is the end of one member, such
    as that of a cache which lacks what it learns from. Raises Stopped after the step in hand.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]), ExitStack() as writers:
        for member in members:
            writers.enter_context(only_writer(member.run.folder))
        training = [one for member in members if (one := _begun(member, device, store))]
        try:
            while training:
                stack = Stack([one.model for one in training])
                for one in training:
                    one.begin_epoch()
                for step in range(max(len(one.plan.batches) for one in training)):
                    if stop:
                        stop.check()
                    _step(stack, training, step, device)
                for one in training:
                    one.end_epoch(shares=len(training))
                for one in training:
                    if one.ended:
                        one.finish(time.perf_counter() - started)
                training = [one for one in training if not one.ended]
        except (Stopped, KeyboardInterrupt) as error:
            for one in training:
                one.member.run.note_end("interrupted", str(error).split(";")[0] or type(error).__name__)
            raise


def _begun(member: Member, device: torch.device, store: PooledStore) -> "_Training | None":
    """The member, ready to be trained; None if it can't be, which is its end."""
    try:
        return _Training(member, device, store)
    except InputError as error:
        member.end = error
        return None


@dataclass
class _Training:
    """A member as it is trained."""

    member: Member
    device: torch.device
    store: PooledStore
    state: TrainingState = NOTHING_TRAINED
    lines: list[EpochMetrics] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cache, config = self.member.cache, self.member.config
        self.store = self.store.with_labels(cache)
        require_trainable(cache, config)
        model = new_model(cache, config, None, features=self.store)
        assert isinstance(model, PooledModel)
        self.model = model.to(self.device).train()
        if config.has_objective:
            self.model.objective = objective_of(cache, config).to(self.device)
        self.optimizer = new_optimizer(self.model, config)
        self.known, self.val_rows = known_labels(cache), cache.rows("val")
        self.member.run.clear()
        start_run(self.member.run, cache, self.model, self.device)

    @property
    def ended(self) -> bool:
        return has_ended(self.model, self.state) or self.member.end is not None

    def begin_epoch(self) -> None:
        config, cache, epoch = self.member.config, self.member.cache, self.state.epoch + 1
        self.plan: EpochPlan = plan_epoch(config, cache, epoch)
        self.losses = EpochLosses(config, cache, epoch)
        self.draws = torch.Generator().manual_seed(self.plan.seed)
        self.begun = time.perf_counter()
        self.model.train()

    def counts(self, rows: np.ndarray) -> dict[str, int]:
        return {"sentiment": len(rows), "mlm": 0, "auxiliary": int(self.known[rows].sum())}

    def update(self, step: int, means: list[float]) -> None:
        """The optimiser's step, and what the losses were."""
        config, rows = self.member.config, self.plan.batches[step]
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rates[step]
        self.optimizer.step()
        try:
            self.losses.add(step, rows, means, self.counts(rows))
        except Diverged as error:
            self.member.end = self.member.end or error  # its numbers reach no other member; it goes at the epoch's end

    def end_epoch(self, shares: int) -> None:
        """Validate, and keep the weights of the best epoch."""
        if self.member.end is not None:
            return
        trained = time.perf_counter()
        line: EpochMetrics = {"epoch": self.state.epoch + 1, **self.losses.line(self.plan.rates[-1])}
        try:
            line.update(validate(self.model, self.member.cache, self.store, self.val_rows, None, Ranks()))
        except Diverged as error:  # in the epoch's last step, whose loss was finite
            self.member.end = error
            return
        validated = time.perf_counter() - trained
        training = (trained - self.begun) / shares
        line["seconds"] = training + validated
        posts = sum(map(len, self.plan.batches))
        line["speed"] = {
            "posts_per_second": posts / training,
            "validation_seconds": validated,
            "waiting_share": 0.0,
        }
        self.state, better = after_epoch(self.member.config, self.state, line)
        self.lines.append(line)
        if better:
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        try:
            self.member.on_epoch(line)
        except Exception as error:  # such as the end of a trial that promises little
            self.member.end = error

    def finish(self, wall: float) -> None:
        """Write the run."""
        run = self.member.run
        for line in self.lines:
            run.metrics_file.append(line)
        if self.best:
            self.model.load_state_dict(self.best)
            run.save_model(self.model, self.state)
        if isinstance(self.member.end, Diverged):
            run.note_end("failed", str(self.member.end))
        if self.member.end is None:
            chosen = calibration(self.model, self.member.cache, self.store, self.val_rows, Ranks())
            self.member.end = result_of(self.model, self.state, self.lines, chosen)
            finish_run(run, self.model, self.member.end, wall)


def _step(stack: Stack, training: list[_Training], step: int, device: torch.device) -> None:
    """One optimiser step of every member that has one left in this epoch."""
    acting = [(at, one) for at, one in enumerate(training) if step < len(one.plan.batches)]
    batches: list[Batch | None] = [None] * len(training)
    for at, one in acting:
        batches[at] = next(one.store.batches([one.plan.batches[step]], one.plan.views))
        one.optimizer.zero_grad()
    with precision(training[0].member.config, device):
        features = stack.features(batches, [one.draws for one in training])
        losses = [
            one.model.feature_losses(features[at, : len(batch)], batch) for at, one in acting if (batch := batches[at])
        ]
    counts = [one.counts(one.plan.batches[step]) for _, one in acting]
    totals = [loss.scaled_total(count, count["sentiment"]) for loss, count in zip(losses, counts, strict=True)]
    torch.stack(totals).sum().backward()
    stack.hand_out_gradients()
    names = reported(training[0].member.config)
    means = torch.stack([torch.stack([loss.mean(name).detach() for name in names]) for loss in losses]).tolist()
    for (_, one), values in zip(acting, means, strict=True):
        one.update(step, values)
