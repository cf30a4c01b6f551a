"""Trains over all posts once: batches, losses, gradients over micro-batches and ranks, and the learning rate."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion.data.batches import Batch, length_bucketed_batches, sampled_views
from fusion.data.feature_store import Features
from fusion.models import fast_losses as fast
from fusion.models.base import Losses, Model
from fusion.models.fusion import FusionModel
from fusion.models.label_rule import known_labels
from fusion.models.masking import masked_counts
from fusion.models.precision import precision
from fusion.models.reencoding import Reencoder
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
    ) -> None:
        self._model, self._optimizer, self._reencoder = model, optimizer, reencoder
        self._config = model.config
        self._cache, self._features, self._ranks = cache, features, ranks
        self._micro_batch = micro_batch or self._config.batch_size
        self._rows, self._known = cache.rows("train"), known_labels(cache)
        self._reported = ("sentiment", "mlm", *(["auxiliary"] if self._config.label_rule else []))
        self._device = next(model.parameters()).device
        self.steps = math.ceil(len(self._rows) / self._config.batch_size)

    def run(self, epoch: int, on_step: Callable[[Step], None] = lambda step: None) -> dict[str, float]:
        """Train over all posts once; epochs count from 1. Returns the mean losses: sentiment by post, MLM by masked
        position, the label rule's by known label. Raises InputError on a loss that is not finite. A model with
        `fitted_alone` is fitted, and then gives its losses; it takes no step.
        """
        config, rows = self._config, self._rows
        if self._model.fitted_alone:
            self._model.fit(self._cache)
        seed = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0])
        draws = torch.Generator().manual_seed(seed)  # what all ranks must agree on
        torch.manual_seed(seed + self._ranks.rank)  # dropout and random masks
        self._model.train()
        batches = list(length_bucketed_batches(rows, self._cache.lengths[rows], config.batch_size, config.seed, epoch))
        shards = [self._ranks.shard_rows(batch) for batch in batches]
        sums, counted = Counter[str](), Counter[str]()  # of each loss over what it is a mean of, and of this
        unread: list[tuple[int, Tensor, dict[str, int]]] = []
        lr = config.lr
        views = None
        if config.views == "sample":
            views = sampled_views(len(self._cache), self._cache.views, config.seed, epoch)
        for number, (batch, shard) in enumerate(zip(batches, self._batches(shards, views), strict=True)):
            lr = learning_rate(config, (epoch - 1) * self.steps + number, config.epochs * self.steps)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            unread.append((number, *self._step(batch, shard, draws)))
            if self._device.type == "cpu" or number % SYNC_EVERY == SYNC_EVERY - 1 or number == self.steps - 1:
                for step, values, counts in unread:
                    means = dict(zip(self._reported, values.tolist(), strict=True))
                    self._require_finite(epoch, step, list(means.values()), batches[step])
                    for name, mean in means.items():
                        sums[name] += mean * counts[name]
                        counted[name] += counts[name]
                    on_step(Step(step, means["sentiment"], means["mlm"], counts["sentiment"]))
                unread.clear()
        losses = {name: sums[name] / max(counted[name], 1) for name in self._reported}
        auxiliary = losses.get("auxiliary", 0.0)
        return {
            "loss": losses["sentiment"] + config.mlm_weight * losses["mlm"] + config.auxiliary_weight * auxiliary,
            **{f"loss_{name}": mean for name, mean in losses.items()},
            "hidden": counted["mlm"],
            "lr": 0.0 if self._model.fitted_alone else lr,
        }

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
        if not self._model.fitted_alone:
            self._ranks.sum_gradients(self._model.parameters())
            if config.clip_norm:
                nn.utils.clip_grad_norm_(self._model.parameters(), config.clip_norm)
            self._optimizer.step()
        return means, counts

    def _parts(self, shard: Batch | None) -> list[Batch]:
        if shard is None:
            return []
        return [shard[start : start + self._micro_batch] for start in range(0, len(shard), self._micro_batch)]

    def _losses(self, batch: Batch) -> Losses:
        if isinstance(self._model, FusionModel):
            return fast.losses(self._model, batch, self._reencoder)
        return self._model.losses(batch, None)

    def _require_finite(self, epoch: int, step: int, losses: list[float], rows: np.ndarray) -> None:
        if not math.isfinite(sum(losses)):
            posts = ", ".join(self._cache.ids[row] for row in rows[:5])
            raise Diverged(
                f"training stopped in epoch {epoch}, step {step + 1}: the loss is {' + '.join(map(str, losses))} "
                f"(posts {posts}, ...); lower lr or set clip_norm"
            )


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
