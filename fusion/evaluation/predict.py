"""Class probabilities of cached posts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fusion.config import Config
from fusion.data.batches import Batch, chunks, read_batch
from fusion.data.feature_store import Features, FeatureStore
from fusion.data.pooled_store import PooledStore
from fusion.data.requirements import require_features
from fusion.evaluation.calibration import tempered
from fusion.models.base import Model
from fusion.models.ensemble import members_of
from fusion.models.own import as_model
from fusion.models.precision import precision
from pipeline.cache.reader import Cache
from pipeline.common.device import resolve_device
from pipeline.common.errors import Diverged


def predict_rows(
    model: nn.Module,
    cache: Cache | str | Path,
    rows: np.ndarray | Sequence[int],
    device: torch.device | str = "auto",
    *,
    config: Config | None = None,
    batch_size: int | None = None,
    image_rows: np.ndarray | None = None,
    features: Features | None = None,
) -> np.ndarray:
    """Class probabilities of cached posts (len(rows), classes) float64, by a model or a module of one's own.

    rows: their numbers in the cache. config: of a module of one's own, whose precision and views are used. The module
    is left in the mode, training or evaluation, that it was in. The other arguments are those of `member_logs`.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    rows = np.asarray(rows)
    if rows.dtype == bool:
        rows = np.flatnonzero(rows)
    chosen = resolve_device(device) if isinstance(device, str) else device
    ours = as_model(model, cache, config).to(chosen)
    with mode_kept(ours):
        logs = log_probabilities(
            ours, cache, rows, chosen, batch_size=batch_size, image_rows=image_rows, features=features
        )
    return np.exp(logs)


@contextmanager
def mode_kept(model: nn.Module) -> Iterator[None]:
    """Leave each part of a model in the mode, training or evaluation, that it is in."""
    training = [module for module in model.modules() if module.training]
    try:
        yield
    finally:
        for module in training:
            module.training = True


def log_probabilities(model: Model, cache: Cache, rows: np.ndarray, device: torch.device, **options: Any) -> np.ndarray:
    """Logarithms of class probabilities (len(rows), classes) float64, at the model's temperature; the options are those
    of `member_logs`.
    """
    return tempered(mean_of_members(member_logs(model, cache, rows, device, **options)), model.temperature)


def mean_of_members(logs: np.ndarray) -> np.ndarray:
    """Log-probabilities of members (M, N, classes) to those of their mean (N, classes)."""
    return np.asarray(np.logaddexp.reduce(logs, axis=0) - np.log(len(logs)))


class MemberSums:
    """Adds up what the members of a model say of some posts, view by view; a single model is its only member."""

    def __init__(self, model: Model, posts: int, device: torch.device) -> None:
        self._members, self._device = members_of(model), device
        self._sums = np.full((len(self._members), posts, model.dimensions.classes), -np.inf)

    def add(self, batch: Batch, view: int, at: np.ndarray | slice = slice(None)) -> None:
        """Add a view of the posts `at`. A member that was trained on first views sees no other."""
        for sums, member in zip(self._sums, self._members, strict=True):
            if view == 0 or member.config.views == "sample":
                with precision(member.config, self._device):
                    logits = member(batch)
                logs = logits.cpu().double().log_softmax(dim=1).numpy()  # not every device has float64
                sums[at] = np.logaddexp(sums[at], logs)

    def means(self, views: int) -> np.ndarray:
        """Each member's log-probabilities (members, posts, classes), the mean over the views that it saw of so many."""
        seen = [views if member.config.views == "sample" else 1 for member in self._members]
        return self._sums - np.log(seen)[:, None, None]


@torch.inference_mode()
def member_logs(
    model: Model,
    cache: Cache,
    rows: np.ndarray,
    device: torch.device,
    *,
    batch_size: int | None = None,
    image_rows: np.ndarray | None = None,
    features: Features | None = None,
) -> np.ndarray:
    """Logarithms of each member's class probabilities (members, len(rows), classes) float64, before any temperature;
    with `image_rows`, each text is paired with the image of another post. Raises Diverged naming a post for which a
    model's output is not finite.

    A model that was trained on sampled views predicts with the mean over all views.
    Texts of like length share a batch: padding costs time, and a post's prediction does not depend on its neighbours.
    `features`: a feature store that holds the rows. `batch_size`: as the model says, unless given.
    """
    model.eval()
    order = np.argsort(cache.lengths[rows], kind="stable")
    batches = list(chunks(order, batch_size or model.posts_at_once))
    features = features or _store(model, cache, rows if image_rows is None else np.union1d(rows, image_rows), device)
    views = cache.views if model.config.views == "sample" else 1
    sums = MemberSums(model, len(rows), device)
    for view in range(views):
        shown = np.full(len(cache), view)
        if image_rows is None:
            read = features.batches((rows[at] for at in batches), shown)
        elif isinstance(features, PooledStore):
            read = features.pairs(((rows[at], image_rows[at]) for at in batches), shown)
        else:
            read = (
                read_batch(cache, rows[at], device, image_rows=image_rows[at], views=shown[rows[at]]) for at in batches
            )
        for at, batch in zip(batches, read, strict=True):
            sums.add(batch, view, at)
    logs = sums.means(views)
    if not (finite := np.isfinite(logs).all(axis=(0, 2))).all():
        raise Diverged(f"post {cache.ids[rows[finite.argmin()]]}: the model's prediction is not finite")
    return logs


def _store(model: Model, cache: Cache, rows: np.ndarray, device: torch.device) -> Features:
    """Where the features of the rows are read from: of a model on pooled vectors, no words and no patches."""
    if not model.pooled_alone:
        require_features(cache, model.config)
        return FeatureStore(cache, rows, device, "map")
    return PooledStore(cache, rows, device, views=cache.views if model.config.views == "sample" else 1)
