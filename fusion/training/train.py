"""Trains a run: optimise, validate, keep the best epoch, stop early, save a state to resume from.

The test split is never read here. An epoch depends on the config, the cache and its own number alone, so a run that was
killed and resumed ends with the same numbers, on a CPU to the last bit.
"""

import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from fusion.config import Config
from fusion.data.batches import chunks
from fusion.data.feature_store import FeatureStore, Location
from fusion.evaluation.linear_probe import require_all_classes
from fusion.evaluation.metrics import score
from fusion.evaluation.predict import predict
from fusion.models.base import Dimensions
from fusion.models.fusion import FusionModel
from fusion.models.label_rule import require_modality_labels
from fusion.models.logit_adjustment import training_log_prior
from fusion.models.precision import resolved
from fusion.models.reencoding import Reencoder
from fusion.models.registry import build_model
from fusion.models.transformer import Transformer
from fusion.run import Run
from fusion.run_files import TrainingState
from fusion.tensor_files import require_memory
from fusion.training.distributed import Ranks
from fusion.training.epoch import Epoch, Step
from fusion.training.optimizer import new_optimizer
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.fingerprint import require_images
from pipeline.encoders.from_fingerprint import same_text_encoder
from pipeline.encoders.load import TextEncoder

EpochLine = dict[str, Any]
_BYTES_A_PARAMETER = 16  # float32: the weight, its gradient, and the two means of AdamW


@dataclass(frozen=True)
class ExecutionOptions:
    """Execution options: they affect time and memory, and change the numbers by rounding at most.

    cache_in: where features are held (`feature_store`). remember: bytes of masked texts' encodings to keep.
    micro_batch: posts that go through the model at a time; None, the whole batch. checkpointing: layers are computed
    again for the gradient. With dropout, the last two draw other random numbers. tensorboard: also write event files.
    """

    cache_in: Location = "auto"
    remember: int = 1 << 30
    micro_batch: int | None = None
    checkpointing: bool = False
    tensorboard: bool = False


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


def masking_encoder(cache: Cache, device: torch.device, config: Config, folder: str | None = None) -> TextEncoder:
    """The text encoder that made the cache, to encode masked texts again in the run's precision; `folder` says where it
    lies, if not where it did.

    Raises InputError if it can't be had or is another one, naming the field.
    """
    fingerprint = cache.fingerprint["text"]
    encoder = same_text_encoder(fingerprint, str(device), folder=folder, owner=cache.folder)
    if encoder.mask_id < 0:
        raise InputError(
            f"--text-encoder {folder or fingerprint['name']}: its tokenizer has no mask token; set mlm to false"
        )
    cache.require_word_pieces(encoder.vocabulary, encoder.width)
    return encoder.in_precision(resolved(config, device))


def require_trainable(cache: Cache, config: Config) -> None:
    """Raises InputError if the cache lacks what the configuration learns from: images, views, classes, labels."""
    if config.modalities != "text":
        unless = " unless modalities is text" if config.model == "fusion" else ""
        require_images(cache.fingerprint, cache.folder, f"the model {config.model} needs images{unless}")
    if config.views == "sample" and cache.views == 1:
        raise InputError(f"{cache.folder}: has one view of each image; for views sample extract with --views 2 to 6")
    require_all_classes(cache)
    if config.label_rule:
        require_modality_labels(cache)


def train(
    cache: Cache,
    config: Config,
    run: Run,
    device: torch.device,
    *,
    text_encoder: TextEncoder | None = None,
    means: ExecutionOptions = ExecutionOptions(),
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    on_epoch: Callable[[EpochLine], None] = lambda line: None,
    quiet: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> TrainResult:
    """Train from the cache into the run folder, from where an unfinished run there stopped.

    `on_epoch` gets each epoch's line of metrics once its state is saved; what it raises ends the training, resumably.
    Raises InputError on a cache without training or validation posts of all classes, and on a loss that is not finite.
    """
    require_trainable(cache, config)
    train_rows, val_rows = cache.rows("train"), cache.rows("val")
    torch.manual_seed(config.seed)
    m, channels = cache.patches_shape
    vocabulary = text_encoder.vocabulary if text_encoder else 0
    dimensions = Dimensions(channels, cache.text_width, vocabulary, patches=m)
    model = _build(config, dimensions, text_encoder, training_log_prior(cache)).to(device)
    optimizer = new_optimizer(model, config)
    trainable = sum(parameter.numel() for parameter in model.parameters())
    frozen = text_encoder.parameters if text_encoder else 0
    views = cache.views if config.views == "sample" else 1
    features = FeatureStore(cache, np.concatenate([train_rows, val_rows]), device, means.cache_in, views=views)
    say(f"features: {features.why}")
    say(f"precision: {resolved(config, device)}")
    started = time.perf_counter()
    ranks.barrier()  # all look at the folder before the first rank writes
    found = run.load_state(model, optimizer) if run.started else None
    ranks.barrier()
    if not run.started and ranks.is_main:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        parameters = {"trainable": trainable, "frozen_in_training": frozen}
        metadata = {"device": str(device), "precision": resolved(config, device), "versions": versions}
        run.start(config, cache, dimensions, {**metadata, "parameters": parameters})
    ranks.broadcast(model.state_dict().values())
    progress = found or TrainingState.model_construct(epoch=0, best_epoch=0, best_score=-1.0)
    if ranks.is_main:
        run.truncate_metrics(progress.epoch)
    for part in model.modules():
        if isinstance(part, Transformer):
            part.checkpointing = means.checkpointing
    reencoder = Reencoder(text_encoder, budget=means.remember) if text_encoder and config.mlm else None
    passes = Epoch(model, optimizer, cache, features, reencoder, ranks, micro_batch=means.micro_batch)
    with (
        _events(run, means.tensorboard and ranks.is_main, progress) as write_events,
        _bar(config.epochs, passes.steps, progress, quiet or not ranks.is_main) as bar,
    ):
        while progress.epoch < config.epochs and progress.epoch - progress.best_epoch < config.patience:
            epoch = progress.epoch + 1
            begun, waited = time.perf_counter(), features.waited
            line: EpochLine = {"epoch": epoch, **passes.run(epoch, partial(_show, bar, progress.best_score))}
            trained = time.perf_counter()
            line.update(_validate(model, cache, features, val_rows, text_encoder, ranks))
            ended = time.perf_counter()
            line["seconds"] = ended - begun
            line["speed"] = {
                "posts_per_second": len(train_rows) / (trained - begun),
                "validation_seconds": ended - trained,
                "waiting_share": (features.waited - waited) / (ended - begun),
                **(reencoder.pop_stats() if reencoder else {}),
            }
            better = line["val_weighted_f1"] > progress.best_score
            scored = {"best_epoch": epoch, "best_score": line["val_weighted_f1"]} if better else {}
            progress = progress.model_copy(update={"epoch": epoch, **scored})
            if ranks.is_main:
                run.append_metrics(line)
                if better:
                    run.save_model(model)
                run.save_state(model, optimizer, progress)
                write_events(line)
            _tell(say, line, progress)
            on_epoch(line)
    ranks.barrier()  # the first one has written all
    return _finish(run, progress, trainable, frozen, time.perf_counter() - started, ranks)


def _finish(run: Run, progress: TrainingState, trainable: int, frozen: int, wall: float, ranks: Ranks) -> TrainResult:
    lines = run.metrics()
    best = lines[progress.best_epoch - 1]
    validation = {name.removeprefix("val_"): value for name, value in best.items() if name.startswith("val_")}
    seconds = sum(line["seconds"] for line in lines)
    result = TrainResult(progress.best_epoch, progress.epoch, validation, trainable, frozen, seconds)
    metadata = {"best_epoch": result.best_epoch, "epochs": result.epochs, "validation": validation}
    if ranks.is_main:
        run.finish({**metadata, "train_seconds": seconds, "wall_seconds_of_last_start": wall})
    return result


def _build(
    config: Config, dimensions: Dimensions, text_encoder: TextEncoder | None, prior: torch.Tensor
) -> FusionModel:
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            size = sum(parameter.numel() for parameter in build_model(config, dimensions).parameters())
        require_memory(_BYTES_A_PARAMETER * size, f"config, training {size:,} parameters")
        words = text_encoder.word_embeddings if text_encoder and config.tie_mlm_head else None
        return build_model(config, dimensions, word_embeddings=words, log_prior=prior)
    except ValueError as error:
        raise InputError(f"config, {error}") from None


def _validate(
    model: FusionModel,
    cache: Cache,
    features: FeatureStore,
    rows: np.ndarray,
    text_encoder: TextEncoder | None,
    ranks: Ranks,
) -> dict[str, float]:
    """Scores and sentiment loss on validation, pass 1 only; with `validate_mlm` also the loss of eq 25."""
    device = next(model.parameters()).device
    ours = predict(model, cache, ranks.shard_rows(rows), device, features=features)
    probabilities = ranks.gather(ours, len(rows), device)
    truth = cache.labels[rows].astype(np.int64)
    loss = F.nll_loss(torch.from_numpy(probabilities).log(), torch.from_numpy(truth))
    scores = score(truth, probabilities.argmax(axis=1))
    line = {"val_loss": float(loss), **{f"val_{name}": value for name, value in scores.items()}}
    if model.config.validate_mlm and text_encoder:
        total, hidden = 0.0, 0
        with torch.no_grad():
            for batch in features.batches(chunks(rows, model.config.batch_size)):
                losses = model.losses(batch, text_encoder)
                total += float(losses.mean("mlm")) * losses.count("mlm")
                hidden += losses.count("mlm")
        line["val_loss_mlm"] = total / max(hidden, 1)
    return line


def _bar(epochs: int, steps: int, progress: TrainingState, quiet: bool) -> "tqdm[Any]":
    return tqdm(total=epochs * steps, initial=progress.epoch * steps, unit="step", desc="train", disable=quiet)


def _show(bar: "tqdm[Any]", best_score: float, step: Step) -> None:
    best = f"{best_score:.4f}" if best_score >= 0 else "-"
    bar.set_postfix(loss=f"{step.sentiment:.3f}", mlm=f"{step.mlm:.3f}", best_val_f1=best, refresh=False)
    bar.update()


def _tell(say: Callable[[str], None], line: EpochLine, progress: TrainingState) -> None:
    """An epoch in one line."""
    speed = line["speed"]
    known = f", {speed['remembered_share']:.0%} of masked texts remembered" if "remembered_share" in speed else ""
    say(
        f"epoch {line['epoch']}: loss {line['loss_sentiment']:.4f} + {line['loss_mlm']:.3f}, "
        f"val accuracy {line['val_accuracy']:.4f}, weighted F1 {line['val_weighted_f1']:.4f}"
        f"{' (best)' if progress.best_epoch == line['epoch'] else ''}; {line['seconds']:.1f} s, "
        f"{speed['posts_per_second']:.0f} posts/s, {speed['waiting_share']:.1%} waiting for data{known}"
    )


def _events(run: Run, wanted: bool, progress: TrainingState) -> AbstractContextManager[Callable[[EpochLine], None]]:
    """Writes TensorBoard event files where they are wanted."""
    if not wanted:
        return nullcontext(lambda line: None)
    from fusion.training.tensorboard import event_files

    return event_files(run.folder, after=progress.epoch)
