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
from fusion.data.feature_store import FeatureStore
from fusion.models import fast_losses as fast
from fusion.models.base import Losses
from fusion.models.fusion import FusionModel
from fusion.models.label_rule import known_labels
from fusion.models.masking import hidden_counts
from fusion.models.precision import precision
from fusion.models.reencoding import Reencoder
from fusion.training.distributed import Ranks
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError

SYNC_EVERY = 50  # steps on a GPU between looks at the losses: each look waits for the device


@dataclass
class Step:
    """One step's mean losses, sentiment by post and MLM by hidden position of the whole batch; posts in this pass."""

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
        model: FusionModel,
        optimizer: torch.optim.Optimizer,
        cache: Cache,
        features: FeatureStore,
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
        self._device = next(model.parameters()).device
        self.steps = math.ceil(len(self._rows) / self._config.batch_size)

    def run(self, epoch: int, on_step: Callable[[Step], None] = lambda step: None) -> dict[str, float]:
        """Train over all posts once; epochs count from 1. Returns the mean losses: sentiment by post, MLM by hidden
        position, the label rule's by known label. Raises InputError on a loss that is not finite.
        """
        config, rows = self._config, self._rows
        seed = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0])
        draws = torch.Generator().manual_seed(seed)  # what all ranks must agree on
        torch.manual_seed(seed + self._ranks.rank)  # dropout and random masks
        self._model.train()
        batches = list(length_bucketed_batches(rows, self._cache.lengths[rows], config.batch_size, config.seed, epoch))
        shares = [self._ranks.shard_rows(batch) for batch in batches]
        sums = np.zeros((2, 3 if config.label_rule else 2))  # of each loss over what it is a mean of, and of this
        unseen: list[tuple[int, Tensor, int]] = []
        lr = config.lr
        views = None
        if config.views == "sample":
            views = sampled_views(len(self._cache), self._cache.views, config.seed, epoch)
        for number, (batch, share) in enumerate(zip(batches, self._batches(shares, views), strict=True)):
            lr = learning_rate(config, (epoch - 1) * self.steps + number, config.epochs * self.steps)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            losses, hidden = self._step(batch, share, draws)
            unseen.append((number, losses, hidden))
            if self._device.type == "cpu" or number % SYNC_EVERY == SYNC_EVERY - 1 or number == self.steps - 1:
                for seen, values, count in unseen:
                    means = values.tolist()
                    self._require_finite(epoch, seen, means, batches[seen])
                    counts = [len(batches[seen]), count, int(self._known[batches[seen]].sum())][: len(means)]
                    sums += np.array([np.multiply(means, counts), counts])
                    on_step(Step(seen, means[0], means[1], counts[0]))
                unseen.clear()
        sentiment, mlm, *auxiliary = (sums[0] / np.maximum(sums[1], 1)).tolist()
        return {
            "loss": sentiment + config.mlm_weight * mlm + config.auxiliary_weight * sum(auxiliary),
            "loss_sentiment": sentiment,
            "loss_mlm": mlm,
            **({"loss_auxiliary": auxiliary[0]} if auxiliary else {}),
            "hidden": int(sums[1, 1]),
            "lr": lr,
        }

    def _batches(self, shares: list[np.ndarray], views: np.ndarray | None) -> Any:
        """This rank's batches; None where a small last batch leaves it without a post."""
        read = self._features.batches((share for share in shares if len(share)), views)
        return (next(read) if len(share) else None for share in shares)

    def _step(self, rows: np.ndarray, share: Batch | None, draws: torch.Generator) -> tuple[Tensor, int]:
        """One optimiser step. Returns the batch's mean losses, still on the device, and its hidden positions.

        The losses are (2,), or with the label rule (3,).
        """
        config = self._config
        words = self._cache.lengths[rows] - 2
        if config.modality_dropout:
            chance = torch.rand(len(rows), generator=draws)
            words = np.where(keeps_text(chance, config.modality_dropout).numpy(), words, 0)
            if share is not None:
                share = drop_modalities(share, self._ranks.shard_rows(chance), config.modality_dropout)
        hidden = int(hidden_counts(words, config.mask_rate).sum()) if self._reencoder else 0
        known = int(self._known[rows].sum())
        means = torch.zeros(3 if config.label_rule else 2, device=self._device)
        self._optimizer.zero_grad()
        for part in self._parts(share):
            with precision(config, self._device):
                losses = self._losses(part)
            known_here = int(self._known[part.rows].sum())
            shares = len(part) / len(rows), losses.hidden / max(hidden, 1), known_here / max(known, 1)
            losses.share(*shares, config).backward()
            means += torch.stack([loss.detach() * share for loss, share in zip(losses.means, shares, strict=False)])
        self._ranks.sum_gradients(self._model.parameters())
        self._ranks.all_reduce(means)
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self._model.parameters(), config.clip_norm)
        self._optimizer.step()
        return means, hidden

    def _parts(self, share: Batch | None) -> list[Batch]:
        if share is None:
            return []
        return [share[start : start + self._micro_batch] for start in range(0, len(share), self._micro_batch)]

    def _losses(self, batch: Batch) -> Losses:
        if self._config.model == "fusion":
            return fast.losses(self._model, batch, self._reencoder)
        return self._model.losses(batch, None)

    def _require_finite(self, epoch: int, step: int, losses: list[float], rows: np.ndarray) -> None:
        if not math.isfinite(sum(losses)):
            posts = ", ".join(self._cache.ids[row] for row in rows[:5])
            raise InputError(
                f"training stopped in epoch {epoch}, step {step + 1}: the loss is {' + '.join(map(str, losses))} "
                f"(posts {posts}, ...); lower lr or set clip_norm"
            )


def keeps_text(chance: Tensor, rate: float) -> Tensor:
    """Which posts keep their text, (B,) bool; of those that lose a modality, half lose the text."""
    return chance >= rate / 2


def drop_modalities(batch: Batch, chance: Tensor, rate: float) -> Batch:
    """Take one modality, text or image with equal chance, from each post with probability `rate`.

    chance (B,): uniform in [0, 1), on the host.
    """
    has_text = keeps_text(chance, rate)
    has_image = ~has_text | (chance >= rate)
    device = batch.labels.device
    words = np.where(has_text.numpy(), batch.words, 0)
    return replace(batch, has_text=has_text.to(device), has_image=has_image.to(device), words=words)


def learning_rate(config: Config, step: int, total: int) -> float:
    """The rate at a step (from 0) of `total`: a linear rise over the warm-up, then the schedule."""
    warmup = int(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    if config.schedule == "linear":
        return config.lr * (1 - share)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * share))
    return config.lr


def new_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW, one kernel for all weights; biases, norms and segment vectors are not decayed."""
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim > 1 and not name.startswith("segments") else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)
