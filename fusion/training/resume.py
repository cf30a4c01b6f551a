"""Where a training begins: at the state of the unfinished run in its folder, or with a new run there."""

import torch

from fusion.models.base import Model
from fusion.run import Run
from fusion.run_files import TrainingState
from fusion.training.distributed import Ranks
from fusion.training.record import NOTHING_TRAINED, start_run
from pipeline.cache.reader import Cache
from pipeline.encoders.load import TextEncoder


def resume_or_start(
    run: Run,
    cache: Cache,
    model: Model,
    optimizer: torch.optim.Optimizer,
    average: Model | None,
    text_encoder: TextEncoder | None,
    ranks: Ranks,
) -> TrainingState:
    """The state to train on from: that of the unfinished run in the folder, else that of a run which begins there.

    `average` is the model with the moving average of the weights, where they are averaged.
    """
    ranks.barrier()  # every rank reads the folder before the main rank writes
    state = run.load_state(model, optimizer, average) if run.started else None
    device = next(model.parameters()).device
    ranks.require_same((state.epoch if state else 0) if run.started else -1, run.folder, device)
    if not run.started and ranks.is_main:
        start_run(run, cache, model, device, frozen=text_encoder.parameters if text_encoder else 0)
    ranks.broadcast(model.state_dict().values())
    state = state or NOTHING_TRAINED
    if ranks.is_main:
        run.metrics_file.truncate(state.epoch)
        if state.epoch:
            run.complete_model(average or model, state)
    return state
