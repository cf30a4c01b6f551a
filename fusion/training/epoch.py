"""Trains over all posts once: batches, losses, gradients over micro-batches and ranks, and the learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch, length_bucketed_batches, sampled_views
from fusion.data.feature_store import Features
from fusion.models import fast_losses as fast
from fusion.models.base import Losses, Model
from fusion.models.fusion import FusionModel
from fusion.models.label_rule import known_labels
from fusion.models.masking import masked_counts
from fusion.models.precision import precision
from fusion.models.reencoding import Reencoder
from fusion.training.average import WeightAverage
from fusion.training.distributed import Ranks
from fusion.training.optimizer import learning_rate
from pipeline.cache.reader import Cache
from pipeline.common.errors import Diverged

SYNC_EVERY = 50  # steps on a GPU after which the losses are read: each read waits for the device


@dataclass
class Step:
    """One step's mean losses, sentiment by post and MLM by masked position of the whole batch; posts in this pass."""

    number: int  # from 0
    sentiment: float
    mlm: float
    posts: int


@dataclass(frozen=True)
class EpochPlan:
    """What seed and epoch decide: the batches of rows, which view each post of the cache shows, (posts,), the seed of
    dropout and of random masks, and the learning rate of each step.
    """

    batches: list[np.ndarray]
    views: np.ndarray | None
    seed: int
    rates: list[float]


def plan_epoch(config: Config, cache: Cache, epoch: int) -> EpochPlan:
    """The plan of an epoch, which count from 1, over the training posts of a cache."""
    rows = cache.rows("train")
    batches = list(length_bucketed_batches(rows, cache.lengths[rows], config.batch_size, config.seed, epoch))
    steps = range((epoch - 1) * len(batches), epoch * len(batches))
    return EpochPlan(
        batches=batches,
        views=sampled_views(len(cache), cache.views, config.seed, epoch) if config.views == "sample" else None,
        seed=int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0]),
        rates=[learning_rate(config, step, config.epochs * len(batches)) for step in steps],
    )


def reported(config: Config) -> tuple[str, ...]:
    """The losses that an epoch reports."""
    return ("sentiment", "mlm", *(["auxiliary"] if config.label_rule else []))


class EpochLosses:
    """The mean losses of an epoch: sentiment by post, MLM by masked position, the label rule's by known label."""

    def __init__(self, config: Config, cache: Cache, epoch: int) -> None:
        self._config, self._cache, self._epoch = config, cache, epoch
        self.names = reported(config)
        self._sums = dict.fromkeys(self.names, 0.0)  # of each loss over what it is a mean of
        self._counted = dict.fromkeys(self.names, 0)

    def add(self, number: int, rows: np.ndarray, means: list[float], counts: dict[str, int]) -> dict[str, float]:
        """Add the losses of step `number`, in the order of `names`; returns them by name. Raises Diverged on one that
        is not finite.
        """
        if not math.isfinite(sum(means)):
            posts = ", ".join(self._cache.ids[row] for row in rows[:5])
            where, loss = f"epoch {self._epoch}, step {number + 1}", " + ".join(map(str, means))
            raise Diverged(
                f"training stopped in {where}: the loss is {loss} (posts {posts}, ...); lower lr or set clip_norm"
            )
        for name, mean in zip(self.names, means, strict=True):
            self._sums[name] += mean * counts[name]
            self._counted[name] += counts[name]
        return dict(zip(self.names, means, strict=True))

    def line(self, lr: float) -> dict[str, float]:
        """The epoch's line of metrics, as far as training goes."""
        config = self._config
        losses = {name: self._sums[name] / max(self._counted[name], 1) for name in self.names}
        auxiliary = losses.get("auxiliary", 0.0)
        return {
            "loss": losses["sentiment"] + config.mlm_weight * losses["mlm"] + config.auxiliary_weight * auxiliary,
            **{f"loss_{name}": mean for name, mean in losses.items()},
            "hidden": self._counted["mlm"],
            "lr": lr,
        }


class Epoch:
    """One pass over the training posts, in batches that seed and epoch alone decide.

    `micro_batch` posts go through the model at a time: less memory, the same gradient.
    """

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer,
        cache: Cache,
        features: Features,
        reencoder: Reencoder | None,
        ranks: Ranks,
        *,
        micro_batch: int | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self._model, self._optimizer, self._reencoder, self._average = model, optimizer, reencoder, average
        self._config = model.config
        self._cache, self._features, self._ranks = cache, features, ranks
        self._micro_batch = micro_batch or self._config.batch_size
        self._known = known_labels(cache)
        self._reported = reported(self._config)
        self._device = next(model.parameters()).device
        self.steps = math.ceil(len(cache.rows("train")) / self._config.batch_size)

    def run(self, epoch: int, on_step: Callable[[Step], None] = lambda step: None) -> dict[str, float]:
        """Train over all posts once; epochs count from 1. Returns the line of metrics. A model with `fitted_alone` is
        fitted, and then gives its losses; it takes no step.

        Raises Diverged on a loss that is not finite.
        """
        if self._model.fitted_alone:
            self._model.fit(self._cache, self._features)
        plan, losses = plan_epoch(self._config, self._cache, epoch), EpochLosses(self._config, self._cache, epoch)
        draws = torch.Generator().manual_seed(plan.seed)  # what all ranks must agree on
        torch.manual_seed(plan.seed + self._ranks.rank)  # dropout and random masks
        self._model.train()
        shards = [self._ranks.shard_rows(batch) for batch in plan.batches]
        unread: list[tuple[int, Tensor, dict[str, int]]] = []
        for number, (batch, shard) in enumerate(zip(plan.batches, self._batches(shards, plan.views), strict=True)):
            for group in self._optimizer.param_groups:
                group["lr"] = plan.rates[number]
            unread.append((number, *self._step(batch, shard, draws)))
            if self._device.type == "cpu" or number % SYNC_EVERY == SYNC_EVERY - 1 or number == self.steps - 1:
                for step, values, counts in unread:
                    means = losses.add(step, plan.batches[step], values.tolist(), counts)
                    on_step(Step(step, means["sentiment"], means["mlm"], counts["sentiment"]))
                unread.clear()
        return losses.line(0.0 if self._model.fitted_alone else plan.rates[-1])

    def _batches(self, shards: list[np.ndarray], views: np.ndarray | None) -> Any:
        """This rank's batches; None where a small last batch leaves it without a post."""
        read = self._features.batches((shard for shard in shards if len(shard)), views)
        return (next(read) if len(shard) else None for shard in shards)

    def _step(self, rows: np.ndarray, shard: Batch | None, draws: torch.Generator) -> tuple[Tensor, dict[str, int]]:
        """One optimiser step: the batch's reported losses, still on the device, and what each is averaged over."""
        config = self._config
        num_maskable = self._cache.lengths[rows] - 2
        if config.modality_dropout:
            chance = torch.rand(len(rows), generator=draws)
            num_maskable = np.where(keeps_text(chance, config.modality_dropout).numpy(), num_maskable, 0)
            if shard is not None:
                shard = drop_modalities(shard, self._ranks.shard_rows(chance), config.modality_dropout)
        masked = int(masked_counts(num_maskable, config.mask_rate).sum()) if self._reencoder else 0
        counts = {"sentiment": len(rows), "mlm": masked, "auxiliary": int(self._known[rows].sum())}
        means = torch.zeros(len(self._reported), device=self._device)
        self._optimizer.zero_grad()
        for part in self._parts(shard):
            with precision(config, self._device):
                losses = self._losses(part)
            if not self._model.fitted_alone:
                losses.scaled_total(counts, posts=len(rows)).backward()
            means += torch.stack(
                [losses.mean(name).detach() * (losses.count(name) / max(counts[name], 1)) for name in self._reported]
            )
        self._ranks.all_reduce(means)
        if self._model.fitted_alone:
            return means, counts
        self._ranks.sum_gradients(self._model.parameters())
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self._model.parameters(), config.clip_norm)
        self._optimizer.step()
        if self._average:
            self._average.update(self._model)
        return means, counts

    def _parts(self, shard: Batch | None) -> list[Batch]:
        if shard is None:
            return []
        return [shard[start : start + self._micro_batch] for start in range(0, len(shard), self._micro_batch)]

    def _losses(self, batch: Batch) -> Losses:
        if isinstance(self._model, FusionModel):
            return fast.losses(self._model, batch, self._reencoder)
        return self._model.losses(batch, None)


def keeps_text(chance: Tensor, probability: float) -> Tensor:
    """Which posts keep their text, (B,) bool; of those that lose a modality, half lose the text."""
    return chance >= probability / 2


def drop_modalities(batch: Batch, chance: Tensor, probability: float) -> Batch:
    """Take one modality, text or image with equal chance, from each post with this probability.

    chance (B,): uniform in [0, 1), on the host.
    """
    has_text = keeps_text(chance, probability)
    has_image = ~has_text | (chance >= probability)
    device = batch.labels.device
    num_maskable = np.where(has_text.numpy(), batch.num_maskable, 0)
    return replace(batch, has_text=has_text.to(device), has_image=has_image.to(device), num_maskable=num_maskable)
