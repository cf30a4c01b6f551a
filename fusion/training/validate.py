"""Scores a model on the validation posts after an epoch."""

import numpy as np
import torch
import torch.nn.functional as F

from fusion.data.batches import chunks
from fusion.data.feature_store import Features
from fusion.evaluation.calibration import FEWEST, calibrate
from fusion.evaluation.metrics import score
from fusion.evaluation.predict import log_probabilities
from fusion.evaluation.threshold import best_threshold
from fusion.models.base import Model
from fusion.training.distributed import Ranks
from pipeline.cache.reader import Cache
from pipeline.encoders.load import TextEncoder


def validate(
    model: Model,
    cache: Cache,
    features: Features,
    rows: np.ndarray,
    text_encoder: TextEncoder | None,
    ranks: Ranks,
) -> dict[str, float]:
    """Scores and sentiment loss (pass 1) on the validation rows, as a line of metrics names them.

    Of two classes also the decision threshold that these posts choose, if both are there; with `validate_mlm` also the
    masked-language loss (eq 25).
    """
    logs, labels = _predicted(model, cache, features, rows, ranks)
    loss = F.nll_loss(torch.from_numpy(logs), torch.from_numpy(labels))
    scores = score(labels, logs.argmax(axis=1), logs.shape[1])
    line = {"val_loss": float(loss), **{f"val_{name}": value for name, value in scores.items()}}
    if logs.shape[1] == 2 and 0 < labels.sum() < len(labels):
        line["val_threshold"] = best_threshold(labels, np.exp(logs))
    if model.config.validate_mlm and text_encoder:
        line["val_loss_mlm"] = _mlm_loss(model, features, rows, text_encoder)
    return line


def calibration(model: Model, cache: Cache, features: Features, rows: np.ndarray, ranks: Ranks) -> dict[str, float]:
    """What the validation rows choose for the model whose weights are kept: `calibrate`. Too few of them choose the
    temperature 1, and leave the epoch's threshold as it is.
    """
    if len(rows) < FEWEST:
        return {"temperature": 1.0}
    return calibrate(*_predicted(model, cache, features, rows, ranks))


def _predicted(
    model: Model, cache: Cache, features: Features, rows: np.ndarray, ranks: Ranks
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (N, classes) of rows, which the ranks share out, and their labels (N,)."""
    device = next(model.parameters()).device
    shard = log_probabilities(model, cache, ranks.shard_rows(rows), device, features=features)
    return ranks.gather(shard, len(rows), device), cache.labels[rows].astype(np.int64)


@torch.no_grad()
def _mlm_loss(model: Model, features: Features, rows: np.ndarray, text_encoder: TextEncoder) -> float:
    """The mean over all masked words."""
    total, count = 0.0, 0
    for batch in features.batches(chunks(rows, model.config.batch_size)):
        losses = model.losses(batch, text_encoder)
        total += float(losses.mean("mlm")) * losses.count("mlm")
        count += losses.count("mlm")
    return total / max(count, 1)
