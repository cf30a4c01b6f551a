"""The moving average of a model's weights over the steps (`ema`): what is validated, kept and predicts in their place.

Beyond the paper: Polyak and Juditsky 1992, as an exponential average. After the first step it is the weights, after
each further one decay x average + (1 - decay) x weights. Buffers are the model's own.
"""

from typing import cast

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fusion.models.base import Model


class WeightAverage:
    """The average of a model, which begins as a copy of it. `model` has its weights."""

    def __init__(self, model: Model, decay: float) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.model = cast(Model, self._averaged.module)

    def update(self, model: Model) -> None:
        """After a step of the model."""
        self._averaged.update_parameters(model)

    def resume(self, steps: int) -> None:
        """Go on after so many steps; the weights are those that were loaded into `model`."""
        self._averaged.n_averaged.fill_(steps)
