"""A cache and a config in, a finished run folder out: optimise, validate, keep the best, stop early, checkpoint,
resume.

The test split is never read here. An epoch depends on the config, the cache and its own number alone, so a run that was
killed and resumed ends with the same numbers, on a CPU to the last bit.
"""

import math
import platform
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fusion.batches import Batch, in_order, read_batch, shuffled
from fusion.checkpoint import Progress, Run
from fusion.config import Config
from fusion.evaluate import precision, predict, score
from fusion.model import Dimensions, FusionModel
from fusion.probe import require_all_classes
from pipeline.cache import Cache
from pipeline.encoders import TextEncoder
from pipeline.errors import InputError
from pipeline.fingerprint import same_text_encoder


@dataclass(frozen=True)
class TrainResult:
    """The best epoch by validation weighted F1, and what the run took."""

    best_epoch: int
    epochs: int
    validation: dict[str, float]
    trainable_parameters: int
    frozen_parameters: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def masking_encoder(cache: Cache, device: torch.device, folder: str | None = None) -> TextEncoder:
    """The text encoder that made the cache, to encode masked texts again; `folder` says where it lies, if not where it
    did.

    Raises InputError if it can't be had or is another one, naming the field.
    """
    marks = cache.fingerprint["text"]
    encoder = same_text_encoder(marks, str(device), folder=folder, owner=cache.folder)
    if encoder.mask_id < 0:
        raise InputError(f"--text-encoder {folder or marks['name']}: its tokenizer has no mask token; set mlm to false")
    return encoder


def train(
    cache: Cache,
    config: Config,
    run: Run,
    device: torch.device,
    *,
    text_encoder: TextEncoder | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train from the cache into the run folder, from where an unfinished run there stopped.

    Raises InputError on a cache without training or validation posts of all classes, and on a loss that is not finite.
    """
    require_all_classes(cache)
    train_rows, val_rows = cache.rows("train"), cache.rows("val")
    torch.manual_seed(config.seed)
    dimensions = Dimensions(cache.patches_shape[1], cache.text_width, text_encoder.vocabulary if text_encoder else 0)
    model = _build(config, dimensions, text_encoder).to(device)
    optimizer = _optimizer(model, config)
    trainable = sum(parameter.numel() for parameter in model.parameters())
    frozen = text_encoder.parameters if text_encoder else 0
    if run.started:
        progress = run.load_state(model, optimizer)
    else:
        progress = None
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        parameters = {"trainable": trainable, "frozen_in_training": frozen}
        run.start(config, cache, dimensions, {"device": str(device), "versions": versions, "parameters": parameters})
    progress = progress or Progress(epoch=0, best_epoch=0, best_score=-1.0)
    steps = math.ceil(len(train_rows) / config.batch_size)
    started = time.perf_counter()
    with tqdm(
        total=config.epochs * steps, initial=progress.epoch * steps, unit="step", desc="train", disable=quiet
    ) as bar:
        while progress.epoch < config.epochs and progress.epoch - progress.best_epoch < config.patience:
            epoch = progress.epoch + 1
            epoch_started = time.perf_counter()
            torch.manual_seed(_epoch_seed(config.seed, epoch))  # dropout and random masks
            line: dict[str, Any] = {
                "epoch": epoch,
                **_train_epoch(model, optimizer, cache, train_rows, epoch, text_encoder, bar),
            }
            line.update(_validate(model, cache, val_rows, device, text_encoder))
            line["seconds"] = time.perf_counter() - epoch_started
            run.append_metrics(line)
            if line["val_weighted_f1"] > progress.best_score:
                progress = Progress(epoch, epoch, line["val_weighted_f1"])
                run.save_model(model)
            progress = replace(progress, epoch=epoch)
            run.save_state(model, optimizer, progress)
            bar.set_postfix(val_f1=f"{line['val_weighted_f1']:.4f}", best=f"{progress.best_score:.4f}")
    best = run.metrics()[progress.best_epoch - 1]
    validation = {name.removeprefix("val_"): value for name, value in best.items() if name.startswith("val_")}
    seconds = sum(line["seconds"] for line in run.metrics())
    result = TrainResult(progress.best_epoch, progress.epoch, validation, trainable, frozen, seconds)
    facts = {
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "validation": validation,
        "train_seconds": seconds,
    }
    run.finish({**facts, "wall_seconds_of_last_start": time.perf_counter() - started})
    return result


def _build(config: Config, dimensions: Dimensions, text_encoder: TextEncoder | None) -> FusionModel:
    try:
        words = text_encoder.word_embeddings if text_encoder and config.tie_mlm_head else None
        return FusionModel(config, dimensions, word_embeddings=words)
    except ValueError as error:
        raise InputError(f"config, {error}") from None


def _train_epoch(
    model: FusionModel,
    optimizer: torch.optim.Optimizer,
    cache: Cache,
    rows: np.ndarray,
    epoch: int,
    text_encoder: TextEncoder | None,
    bar: "tqdm[Any]",
) -> dict[str, float]:
    """One pass over the training posts. Returns the mean losses, sentiment by post and MLM by hidden position."""
    config = model.config
    device = next(model.parameters()).device
    model.train()
    steps = math.ceil(len(rows) / config.batch_size)
    sentiment, mlm, hidden = 0.0, 0.0, 0
    for step, batch_rows in enumerate(shuffled(rows, cache.lengths[rows], config.batch_size, config.seed, epoch)):
        batch = read_batch(cache, batch_rows, device)
        if config.modality_dropout:
            batch = drop_modalities(batch, config.modality_dropout)
        lr = learning_rate(config, (epoch - 1) * steps + step, config.epochs * steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with precision(config, device):
            losses = model.losses(batch, text_encoder)
        loss_sentiment, loss_mlm = float(losses.sentiment.detach()), float(losses.mlm.detach())
        if not math.isfinite(loss_sentiment + loss_mlm):
            posts = ", ".join(cache.ids[row] for row in batch_rows[:5])
            raise InputError(
                f"training stopped in epoch {epoch}, step {step + 1}: the loss is {loss_sentiment} + {loss_mlm} "
                f"(posts {posts}, ...); lower lr or set clip_norm"
            )
        optimizer.zero_grad()
        losses.total.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        sentiment += loss_sentiment * len(batch)
        mlm += loss_mlm * losses.hidden
        hidden += losses.hidden
        bar.update()
    mean_sentiment, mean_mlm = sentiment / len(rows), mlm / max(hidden, 1)
    return {
        "loss": mean_sentiment + config.mlm_weight * mean_mlm,
        "loss_sentiment": mean_sentiment,
        "loss_mlm": mean_mlm,
        "hidden": hidden,
        "lr": lr,
    }


def _validate(
    model: FusionModel, cache: Cache, rows: np.ndarray, device: torch.device, text_encoder: TextEncoder | None
) -> dict[str, float]:
    """Scores and sentiment loss on validation, pass 1 only; with `validate_mlm` also the loss of eq 25."""
    probabilities = predict(model, cache, rows, device)
    truth = cache.labels[rows].astype(np.int64)
    loss = F.nll_loss(torch.from_numpy(probabilities).log(), torch.from_numpy(truth))
    scores = score(truth, probabilities.argmax(axis=1))
    line = {"val_loss": float(loss), **{f"val_{name}": value for name, value in scores.items()}}
    if model.config.validate_mlm and text_encoder:
        total, hidden = 0.0, 0
        with torch.no_grad():
            for batch_rows in in_order(rows, model.config.batch_size):
                losses = model.losses(read_batch(cache, batch_rows, device), text_encoder)
                total += float(losses.mlm) * losses.hidden
                hidden += losses.hidden
        line["val_loss_mlm"] = total / max(hidden, 1)
    return line


def drop_modalities(batch: Batch, rate: float) -> Batch:
    """Take one modality, text or image with equal chance, from each post with probability `rate`."""
    chance = torch.rand(len(batch), device=batch.labels.device)
    return replace(batch, has_text=chance >= rate / 2, has_image=(chance < rate / 2) | (chance >= rate))


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


def _optimizer(model: FusionModel, config: Config) -> torch.optim.Optimizer:
    """AdamW; biases, norms and segment vectors are not decayed."""
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim > 1 and not name.startswith("segments") else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr)


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
