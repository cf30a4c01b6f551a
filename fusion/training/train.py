"""Trains a run: optimise, validate, keep the best epoch, stop early, save a state to resume from.

The test split is never read here. An epoch depends on the config, the cache and its own number alone, so a run that was
killed and resumed ends with the same numbers, on a CPU to the last bit.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fusion.config import Config
from fusion.data.batches import read_batch
from fusion.data.feature_store import Features, FeatureStore, Location
from fusion.data.pooled_store import PooledStore
from fusion.data.requirements import require_trainable, settled
from fusion.models.base import Model
from fusion.models.objective import objective_of
from fusion.models.own import as_model, ready
from fusion.models.precision import resolved
from fusion.models.reencoding import Reencoder
from fusion.names import pooled_models
from fusion.run import Run
from fusion.run_files import TrainingState
from fusion.training.average import WeightAverage
from fusion.training.build import masking_encoder, new_model
from fusion.training.display import Display, EpochMetrics
from fusion.training.distributed import Ranks
from fusion.training.epoch import Epoch, Step
from fusion.training.optimizer import new_optimizer
from fusion.training.record import TrainResult, after_epoch, finish_run, has_ended, result_of
from fusion.training.resume import resume_or_start
from fusion.training.validate import calibration, validate
from pipeline.cache.reader import Cache
from pipeline.common.device import resolve_device
from pipeline.common.errors import Diverged, InputError, Stopped, wording
from pipeline.common.locks import only_writer
from pipeline.common.signals import StopRequest
from pipeline.encoders.load import TextEncoder


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


def train(
    cache: Cache | str | Path,
    model: nn.Module | Config,
    run: Run | str | Path,
    device: torch.device | str = "auto",
    *,
    config: Config | None = None,
    text_encoder: TextEncoder | None = None,
    execution: ExecutionOptions = ExecutionOptions(),
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    on_epoch: Callable[[EpochMetrics], None] = lambda line: None,
    stop: StopRequest | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> TrainResult:
    """Train a model from the cache into the run folder, from where an unfinished run there stopped; with `overwrite`
    anew, in place of what is there once all that training needs is checked.

    model: a configuration of a model that ships, or a module of one's own, a `torch.nn.Module` with `forward(batch)`,
    logits (B, classes) of a `Batch`, and `losses(batch)` where it minimises more than cross-entropy. A module is
    trained with the settings of `config`, and has the best epoch's weights in the end.
    text_encoder: encodes masked words again, for a model with the masked-language loss; without it the cache's own.

    `on_epoch` gets each epoch's line of metrics once its state is saved; what it raises ends the training, resumably,
    and so does `stop` after the step in hand. Raises InputError on a cache without training or validation posts of all
    classes, if the run there is finished, of other settings or trained by another process, and when stopped; Diverged
    on what is not finite.
    """
    cache = (cache if isinstance(cache, Cache) else Cache(cache)).with_used_names()
    run = run if isinstance(run, Run) else Run(run)
    chosen = resolve_device(device) if isinstance(device, str) else device
    if isinstance(model, Model):
        raise InputError("model: a model of this library is trained by its configuration; give `model.config`")
    if isinstance(model, Config) and config is not None:
        raise InputError("config: only for a module of your own; the settings are those of the second argument")
    own = None if isinstance(model, Config) else model
    settings = settled(model if isinstance(model, Config) else as_model(model, cache, config).config, cache)
    require_trainable(cache, settings)
    if settings.mlm and text_encoder is None:
        text_encoder = masking_encoder(cache, chosen, settings)
    with (
        torch.random.fork_rng(devices=[chosen] if chosen.type == "cuda" else []),
        only_writer(run.folder) if ranks.is_main else nullcontext(),
    ):
        if not overwrite:  # what the folder holds now: another training may have ended since the caller looked
            run.require_not_failed()
            run.require_unfinished()
            run.require_members(None)
            cache = run.resume_or_start(settings, cache, same_splits=True)
            if own is not None and run.started:
                run.require_module(own)
        try:
            return _train(
                cache, settings, own, run, chosen, text_encoder, execution, ranks, on_epoch, stop, overwrite, quiet, say
            )
        except (Diverged, Stopped) as error:
            if ranks.is_main:
                state = "failed" if isinstance(error, Diverged) else "interrupted"
                run.note_end(state, str(error).split(";")[0] if state == "interrupted" else str(error))
            raise
        except KeyboardInterrupt:
            if ranks.is_main and run.started:
                run.note_end("interrupted", "KeyboardInterrupt")
            raise


def _train(
    cache: Cache,
    config: Config,
    own: nn.Module | None,
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
    rows, views = np.concatenate([train_rows, val_rows]), cache.views if config.views == "sample" else 1
    features: Features
    if config.model in pooled_models():
        features = PooledStore(cache, rows, device, views=views)
    else:
        features = FeatureStore(cache, rows, device, execution.cache_in, views=views)
    if own is None:
        model = new_model(cache, config, text_encoder, features=features, checkpointing=execution.checkpointing).to(
            device
        )
    else:
        model = ready(as_model(own, cache, config).to(device), read_batch(cache, train_rows[:2], device))
    if config.has_objective:
        model.objective = objective_of(cache, config).to(device)
    optimizer = new_optimizer(model, config)
    average = WeightAverage(model, config.ema) if config.ema else None
    kept = average.model if average else model
    for split, counts in cache.class_counts().items():
        say(f"{split}: {sum(counts.values())} posts ({', '.join(f'{name}: {n}' for name, n in counts.items())})")
    say(f"features: {features.reason}")
    say(f"precision: {resolved(config, device)}")
    started = time.perf_counter()
    if overwrite and ranks.is_main:
        run.clear()
    state = resume_or_start(run, cache, model, optimizer, average.model if average else None, text_encoder, ranks)
    reencoder = Reencoder(text_encoder, cache_bytes=execution.encodings_bytes) if text_encoder and config.mlm else None
    micro_batch = execution.micro_batch
    training = Epoch(model, optimizer, cache, features, reencoder, ranks, micro_batch=micro_batch, average=average)
    if average:
        average.resume(state.epoch * training.steps)
    display = Display(
        run,
        epochs=model.most_epochs,
        steps=training.steps,
        done=state.epoch,
        best_score=state.best_score,
        quiet=quiet or not ranks.is_main,
        say=say,
        tensorboard=execution.tensorboard and ranks.is_main,
    )

    # Loop.
    with display:
        while not has_ended(model, state):
            epoch, waited = state.epoch + 1, features.waited
            begun = time.perf_counter()
            line: EpochMetrics = {"epoch": epoch, **training.run(epoch, partial(_step, display, run, state, stop))}
            trained = time.perf_counter()
            line.update(validate(kept, cache, features, val_rows, text_encoder, ranks))
            ended = time.perf_counter()
            line["seconds"] = ended - begun
            line["speed"] = {
                "posts_per_second": len(train_rows) / (trained - begun),
                "validation_seconds": ended - trained,
                "waiting_share": (features.waited - waited) / (ended - begun),
                **(reencoder.pop_stats() if reencoder else {}),
            }
            state, better = after_epoch(config, state, line)
            if ranks.is_main:
                run.metrics_file.append(line)
                run.save_state(model, optimizer, average.model if average else None, state)
                if better:
                    run.save_model(kept, state)
            display.epoch(line)
            on_epoch(line)

    # Finish.
    ranks.barrier()  # the main rank has written all
    if ranks.is_main:
        run.load_weights(model, state.best_epoch)
    ranks.broadcast(model.state_dict().values())
    chosen = calibration(model, cache, features, val_rows, ranks)
    frozen = text_encoder.parameters if text_encoder else 0
    result = result_of(model, state, run.metrics(), chosen, frozen=frozen)
    if ranks.is_main:
        finish_run(run, model, result, time.perf_counter() - started)
    ranks.barrier()
    return result


def _step(display: Display, run: Run, state: TrainingState, stop: StopRequest | None, step: Step) -> None:
    """After a step: show it, and end the training if that was asked for. Raises Stopped naming the way to resume."""
    display.step(step)
    if stop:
        done = f"{state.epoch} of {display.epochs} epochs are finished"
        way = wording(f"`train ... --out {run.folder} --resume`", "the same call of train()")
        raise Stopped(f"stopped by {stop.signal}; {done}; {way} resumes")
