"""Trains an ensemble: one configuration with several seeds, into one run folder.

RUN/members/NNNN is an ordinary run folder for each member, and RUN/run.json says how many there are. So a member is
trained, resumed, checked and loaded as any run is; what is the ensemble's own are its scores on validation, its
temperature and its threshold.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.config import Config
from fusion.data.requirements import require_trainable, settled
from fusion.evaluation.calibration import calibrate, log_loss
from fusion.evaluation.metrics import score
from fusion.evaluation.predict import mean_of_members, member_logs
from fusion.models.base import Model
from fusion.models.objective import objective_of
from fusion.run import Run
from fusion.run_files import MOST_MEMBERS
from fusion.training.build import dimensions_of, masking_encoder, require_fits
from fusion.training.distributed import Ranks
from fusion.training.record import surroundings
from fusion.training.train import ExecutionOptions, train
from pipeline.cache.reader import Cache
from pipeline.common.device import resolve_device
from pipeline.common.errors import Diverged, InputError, Stopped, option, switch, wording
from pipeline.common.locks import only_writer
from pipeline.common.signals import StopRequest
from pipeline.encoders.load import TextEncoder


@dataclass(frozen=True)
class EnsembleResult:
    """An ensemble's scores on validation, and what its members took together."""

    members: int
    validation: dict[str, float]
    temperature: float
    trainable_parameters: int
    frozen_parameters: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def train_ensemble(
    cache: Cache | str | Path,
    config: Config,
    run: Run | str | Path,
    members: int,
    device: torch.device | str = "auto",
    *,
    text_encoder: TextEncoder | None = None,
    execution: ExecutionOptions = ExecutionOptions(),  # noqa: B008 - frozen
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    stop: StopRequest | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> EnsembleResult:
    """Train so many members into one run folder, with the seeds `config.seed`, `config.seed` + 1, ...; the other
    arguments are those of `train`.

    An unfinished ensemble goes on with the member, and the epoch, at which it was stopped. Raises what `train` raises;
    the run has failed if one of its members diverges.
    """
    if not 2 <= members <= MOST_MEMBERS:
        raise InputError(f"{option('members', members)}: must be from 2 to {MOST_MEMBERS}")
    if config.seed + members > 2**32:
        raise InputError(f"{option('seed', config.seed)}: too high for {members} members, which take the seeds from it")
    cache = (cache if isinstance(cache, Cache) else Cache(cache)).with_used_names()
    run = run if isinstance(run, Run) else Run(run)
    chosen = resolve_device(device) if isinstance(device, str) else device
    config = settled(config, cache)
    require_trainable(cache, config)
    if config.mlm and text_encoder is None:
        text_encoder = masking_encoder(cache, chosen, config)
    started, dimensions = time.perf_counter(), dimensions_of(cache, text_encoder)
    size = require_fits(config, dimensions)
    objective_of(cache, config)  # a weight of an unknown class is refused before anything is removed
    frozen = text_encoder.parameters if text_encoder else 0
    with only_writer(run.folder) if ranks.is_main else nullcontext():
        if not overwrite:
            run.require_not_failed()
            run.require_unfinished()
            run.require_members(members)
            cache = run.resume_or_start(config, cache, same_splits=True)
        ranks.barrier()  # all have read the folder
        if ranks.is_main and (overwrite or not run.started):
            run.clear()
            learned = {"trainable": members * size, "frozen_in_training": frozen}
            facts = {**surroundings(config, chosen), "parameters": learned, "members": members}
            run.start(config, cache, dimensions, facts)
        ranks.barrier()  # the folder says what is trained
        try:
            for number, member in enumerate(run.members):
                ours = config.model_copy(update={"seed": config.seed + number})
                if _is_trained(member, ours):
                    continue
                say(f"member {number + 1} of {members}, seed {ours.seed}")
                train(
                    cache,
                    ours,
                    member,
                    chosen,
                    text_encoder=text_encoder,
                    execution=execution,
                    ranks=ranks,
                    stop=stop,
                    quiet=quiet,
                    say=say,
                )
        except (Diverged, Stopped, KeyboardInterrupt) as error:
            ended = _ended(run, error, number, members)
            if ranks.is_main:
                state = "failed" if isinstance(error, Diverged) else "interrupted"
                reason = str(ended) if state == "failed" else str(ended).split(";")[0]
                run.note_end(state, reason or type(error).__name__)
            raise ended from None
        if ranks.is_main:
            model = run.load_model(chosen)
            validation, temperature = validated(model, cache, chosen)
            seconds = sum(member.metadata["train_seconds"] for member in run.members)
            facts = {"validation": validation, "temperature": temperature, "train_seconds": seconds}
            run.finish({**facts, "state": "finished", "wall_seconds_of_last_start": time.perf_counter() - started})
        ranks.barrier()  # the ensemble is finished
    return result_of(run)


def _is_trained(member: Run, config: Config) -> bool:
    """Whether a member is finished. Raises InputError if it is another's."""
    if not member.finished:
        return False
    if member.config != config:
        raise InputError(f"{member.folder}: of other settings than the ensemble; {switch('overwrite')}")
    return True


def _ended(run: Run, error: BaseException, number: int, members: int) -> BaseException:
    """A member's end before its time, in the ensemble's words."""
    if isinstance(error, Diverged):
        return Diverged(f"member {number + 1} of {members}: {error}")
    if isinstance(error, Stopped):
        way = wording(f"`train ... --out {run.folder} --resume`", "the same call of train_ensemble()")
        return Stopped(f"{str(error).split(';')[0]}; {number} of {members} members are finished; {way} resumes")
    return error


def validated(model: Model, cache: Cache, device: torch.device) -> tuple[dict[str, float], float]:
    """Scores on the validation posts, uncalibrated loss and calibrated threshold among them, and the temperature."""
    rows = cache.rows("val")
    logs = mean_of_members(member_logs(model, cache, rows, device))
    labels = cache.labels[rows].astype(np.int64)
    chosen = calibrate(logs, labels)
    temperature = chosen.pop("temperature")
    return {"loss": log_loss(logs, labels), **score(labels, logs.argmax(axis=1), logs.shape[1]), **chosen}, temperature


def result_of(run: Run) -> EnsembleResult:
    facts = run.metadata
    return EnsembleResult(
        members=facts["members"],
        validation=facts["validation"],
        temperature=facts["temperature"],
        trainable_parameters=facts["parameters"]["trainable"],
        frozen_parameters=facts["parameters"]["frozen_in_training"],
        seconds=facts["train_seconds"],
    )
