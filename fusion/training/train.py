"""Trains a run: optimise, validate, keep the best epoch, stop early, save a state to resume from.

The test split is never read here. An epoch depends on the config, the cache and its own number alone, so a run that was
killed and resumed ends with the same numbers, on a CPU to the last bit.
"""

import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from fusion.config import Config
from fusion.data.feature_store import FeatureStore, Location
from fusion.data.requirements import require_trainable
from fusion.models.base import Dimensions, Model
from fusion.models.logit_adjustment import training_log_prior
from fusion.models.precision import resolved
from fusion.models.reencoding import Reencoder
from fusion.models.registry import build_model
from fusion.models.transformer import Transformer
from fusion.run import Run
from fusion.run_files import TrainingState
from fusion.tensor_files import require_memory
from fusion.training.display import Display, EpochMetrics
from fusion.training.distributed import Ranks
from fusion.training.epoch import Epoch, Step
from fusion.training.optimizer import new_optimizer
from fusion.training.validate import validate
from pipeline.cache.reader import Cache
from pipeline.common.errors import Diverged, InputError, Stopped
from pipeline.common.locks import only_writer
from pipeline.common.signals import StopRequest
from pipeline.encoders.from_fingerprint import same_text_encoder
from pipeline.encoders.load import TextEncoder

_BYTES_A_PARAMETER = 16  # float32: the weight, its gradient, and the two means of AdamW


@dataclass(frozen=True)
class ExecutionOptions:
    """Execution options: they affect time and memory, and change the numbers by rounding at most.

    cache_in: where features are held (`feature_store`). encodings_bytes: memory for masked texts' encodings.
    micro_batch: posts that go through the model at a time; None, the whole batch. checkpointing: layers are computed
    again for the gradient. With dropout, the last two draw other random numbers. tensorboard: also write event files.
    """

    cache_in: Location = "auto"
    encodings_bytes: int = 1 << 30
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


def train(
    cache: Cache,
    config: Config,
    run: Run,
    device: torch.device,
    *,
    text_encoder: TextEncoder | None = None,
    execution: ExecutionOptions = ExecutionOptions(),
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    on_epoch: Callable[[EpochMetrics], None] = lambda line: None,
    stop: StopRequest | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> TrainResult:
    """Train from the cache into the run folder, from where an unfinished run there stopped; with `overwrite` anew, in
    place of what is there once all that training needs is checked.

    `on_epoch` gets each epoch's line of metrics once its state is saved; what it raises ends the training, resumably,
    and so does `stop` after the step in hand. Raises InputError on a cache without training or validation posts of all
    classes, if another process trains into the folder, and when stopped; Diverged on what is not finite.
    """
    require_trainable(cache, config)
    with only_writer(run.folder) if ranks.is_main else nullcontext():
        if not overwrite:
            run.require_not_failed()
        try:
            return _train(
                cache, config, run, device, text_encoder, execution, ranks, on_epoch, stop, overwrite, quiet, say
            )
        except Diverged as error:
            if ranks.is_main:
                run.note_end("failed", str(error))
            raise


def _train(
    cache: Cache,
    config: Config,
    run: Run,
    device: torch.device,
    text_encoder: TextEncoder | None,
    execution: ExecutionOptions,
    ranks: Ranks,
    on_epoch: Callable[[EpochMetrics], None],
    stop: StopRequest | None,
    overwrite: bool,
    quiet: bool,
    say: Callable[[str], None],
) -> TrainResult:
    """The training itself: build, loop, finish."""
    # Build.
    train_rows, val_rows = cache.rows("train"), cache.rows("val")
    model = _build(cache, config, text_encoder, execution).to(device)
    optimizer = new_optimizer(model, config)
    views = cache.views if config.views == "sample" else 1
    rows = np.concatenate([train_rows, val_rows])
    features = FeatureStore(cache, rows, device, execution.cache_in, views=views)
    for split, counts in cache.class_counts().items():
        say(f"{split}: {sum(counts.values())} posts, {', '.join(f'{n} {name}' for name, n in counts.items())}")
    say(f"features: {features.reason}")
    say(f"precision: {resolved(config, device)}")
    started = time.perf_counter()
    if overwrite and ranks.is_main:
        run.clear()
    state = _resume_or_start(run, cache, model, optimizer, text_encoder, ranks)
    reencoder = Reencoder(text_encoder, cache_bytes=execution.encodings_bytes) if text_encoder and config.mlm else None
    training = Epoch(model, optimizer, cache, features, reencoder, ranks, micro_batch=execution.micro_batch)
    display = Display(
        run,
        epochs=config.epochs,
        steps=training.steps,
        done=state.epoch,
        best_score=state.best_score,
        quiet=quiet or not ranks.is_main,
        say=say,
        tensorboard=execution.tensorboard and ranks.is_main,
    )

    # Loop.
    with display:
        while state.epoch < config.epochs and state.epoch - state.best_epoch < config.patience:
            epoch, waited = state.epoch + 1, features.waited
            begun = time.perf_counter()
            line: EpochMetrics = {"epoch": epoch, **training.run(epoch, partial(_step, display, run, state, stop))}
            trained = time.perf_counter()
            line.update(validate(model, cache, features, val_rows, text_encoder, ranks))
            ended = time.perf_counter()
            line["seconds"] = ended - begun
            line["speed"] = {
                "posts_per_second": len(train_rows) / (trained - begun),
                "validation_seconds": ended - trained,
                "waiting_share": (features.waited - waited) / (ended - begun),
                **(reencoder.pop_stats() if reencoder else {}),
            }
            better = line["val_weighted_f1"] > state.best_score
            best = {"best_epoch": epoch, "best_score": line["val_weighted_f1"]} if better else {}
            state = state.model_copy(update={"epoch": epoch, **best})
            if ranks.is_main:
                run.append_metrics(line)
                run.save_state(model, optimizer, state)
                if better:
                    run.save_model(model, state)
            display.epoch(line, better)
            on_epoch(line)

    # Finish.
    ranks.barrier()  # the main rank has written all
    lines = run.metrics()
    best_line = lines[state.best_epoch - 1]
    result = TrainResult(
        best_epoch=state.best_epoch,
        epochs=state.epoch,
        validation={name.removeprefix("val_"): value for name, value in best_line.items() if name.startswith("val_")},
        trainable_parameters=_parameters(model),
        frozen_parameters=text_encoder.parameters if text_encoder else 0,
        seconds=sum(line["seconds"] for line in lines),
    )
    if ranks.is_main:
        scores = {"best_epoch": result.best_epoch, "epochs": result.epochs, "validation": result.validation}
        scores["state"] = "finished" if result.epochs == config.epochs else "stopped early"
        wall = time.perf_counter() - started
        run.finish({**scores, "train_seconds": result.seconds, "wall_seconds_of_last_start": wall})
    return result


def _step(display: Display, run: Run, state: TrainingState, stop: StopRequest | None, step: Step) -> None:
    """After a step: show it, and end the training if that was asked for. Raises Stopped naming the way to resume."""
    display.step(step)
    if stop:
        done = f"{state.epoch} of {display.epochs} epochs are finished"
        raise Stopped(f"stopped by {stop.signal}; {done}; `train ... --out {run.folder} --resume` resumes")


def masking_encoder(cache: Cache, device: torch.device, config: Config, folder: str | None = None) -> TextEncoder:
    """The text encoder that made the cache, to encode masked texts again in the run's precision.

    folder: where its files are now, if not where the cache's fingerprint says. Raises InputError if it is unavailable
    or another one, naming the field.
    """
    fingerprint = cache.fingerprint["text"]
    encoder = same_text_encoder(fingerprint, str(device), folder=folder, owner=cache.folder)
    if encoder.mask_id < 0:
        raise InputError(
            f"--text-encoder {folder or fingerprint['name']}: its tokenizer has no mask token; set mlm to false"
        )
    cache.require_word_pieces(encoder.vocabulary, encoder.width)
    return encoder.in_precision(resolved(config, device))


def _build(cache: Cache, config: Config, text_encoder: TextEncoder | None, execution: ExecutionOptions) -> Model:
    """The model with the weights that the seed draws. Raises InputError if it does not fit into memory."""
    m, channels = cache.patches_shape
    vocabulary = text_encoder.vocabulary if text_encoder else 0
    dimensions = Dimensions(channels, cache.text_width, vocabulary, patches=m)
    torch.manual_seed(config.seed)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            size = _parameters(build_model(config, dimensions))
        require_memory(_BYTES_A_PARAMETER * size, f"config, training {size:,} parameters")
        words = text_encoder.word_embeddings if text_encoder and config.tie_mlm_head else None
        model = build_model(config, dimensions, word_embeddings=words, log_prior=training_log_prior(cache))
    except ValueError as error:
        raise InputError(f"config, {error}") from None
    for module in model.modules():
        if isinstance(module, Transformer):
            module.checkpointing = execution.checkpointing
    return model


def _resume_or_start(
    run: Run,
    cache: Cache,
    model: Model,
    optimizer: torch.optim.Optimizer,
    text_encoder: TextEncoder | None,
    ranks: Ranks,
) -> TrainingState:
    """The state to train on from: that of the unfinished run in the folder, else that of a run which begins there."""
    ranks.barrier()  # every rank reads the folder before the main rank writes
    state = run.load_state(model, optimizer) if run.started else None
    ranks.barrier()
    if not run.started and ranks.is_main:
        device = next(model.parameters()).device
        run.start(
            model.config,
            cache,
            model.dimensions,
            {
                "device": str(device),
                "precision": resolved(model.config, device),
                "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
                "parameters": {
                    "trainable": _parameters(model),
                    "frozen_in_training": text_encoder.parameters if text_encoder else 0,
                },
            },
        )
    ranks.broadcast(model.state_dict().values())
    state = state or TrainingState.model_construct(epoch=0, best_epoch=0, best_score=-1.0)
    if ranks.is_main:
        run.truncate_metrics(state.epoch)
        if state.epoch:
            run.complete_model(model, state)
    return state


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
