"""Class probabilities of cached posts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fusion.config import Config
from fusion.data.batches import chunks, read_batch
from fusion.data.feature_store import Features, FeatureStore
from fusion.data.pooled_store import PooledStore
from fusion.models.base import Model
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
    is left in the mode, training or evaluation, that it was in. The other arguments are those of `log_probabilities`.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    rows = np.asarray(rows)
    if rows.dtype == bool:
        rows = np.flatnonzero(rows)
    chosen = resolve_device(device) if isinstance(device, str) else device
    ours = as_model(model, cache, config).to(chosen)
    training = [module for module in ours.modules() if module.training]
    try:
        return np.exp(
            log_probabilities(
                ours, cache, rows, chosen, batch_size=batch_size, image_rows=image_rows, features=features
            )
        )
    finally:
        for module in training:
            module.training = True


@torch.inference_mode()
def log_probabilities(
    model: Model,
    cache: Cache,
    rows: np.ndarray,
    device: torch.device,
    *,
    batch_size: int | None = None,
    image_rows: np.ndarray | None = None,
    features: Features | None = None,
) -> np.ndarray:
    """Logarithms of class probabilities (len(rows), classes) float64; with `image_rows`, each text is paired with the
    image of another post. Raises Diverged naming a post for which the model's output is not finite.

    A model that was trained on sampled views predicts with the mean over all views.
    Texts of like length share a batch: padding costs time, and a post's prediction does not depend on its neighbours.
    `features`: a feature store that holds the rows. `batch_size`: as the model says, unless given.
    """
    model.eval()
    order = np.argsort(cache.lengths[rows], kind="stable")
    batches = list(chunks(order, batch_size or model.posts_at_once))
    features = features or _store(model, cache, rows if image_rows is None else np.union1d(rows, image_rows), device)
    views = cache.views if model.config.views == "sample" else 1
    total = np.full((len(rows), model.dimensions.classes), -np.inf)
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
            with precision(model.config, device):
                logits = model(batch)
            logs = logits.cpu().double().log_softmax(dim=1).numpy()  # not every device has float64
            total[at] = np.logaddexp(total[at], logs)
    if not (finite := np.isfinite(total).all(axis=1)).all():
        raise Diverged(f"post {cache.ids[rows[finite.argmin()]]}: the model's prediction is not finite")
    return total - np.log(views)


def _store(model: Model, cache: Cache, rows: np.ndarray, device: torch.device) -> Features:
    """Where the features of the rows are read from: of a model on pooled vectors, no words and no patches."""
    if not model.pooled_alone:
        return FeatureStore(cache, rows, device, "map")
    return PooledStore(cache, rows, device, views=cache.views if model.config.views == "sample" else 1)
