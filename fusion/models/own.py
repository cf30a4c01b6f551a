"""Adapts a module of one's own to what training, evaluation and explanation need of a model."""

from collections.abc import Callable

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models import base
from fusion.models.base import Dimensions, FrozenText, Losses, Term
from fusion.names import OWN
from pipeline.cache.reader import Cache
from pipeline.common.documents import first_problem
from pipeline.common.errors import InputError


class OwnModel(base.Model):
    """A module that was given from Python. No name chooses it, so it is not found as the files of this folder are."""

    title = "a module of one's own"

    def __init__(self, module: nn.Module, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        self.module = module

    @property
    def kept(self) -> nn.Module:
        return self.module

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, classes). Raises InputError if the module gives something else."""
        logits = self.module(batch)
        wanted, name = (len(batch), self.dimensions.classes), type(self.module).__name__
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or tuple(logits.shape) != wanted:
            what = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"{name}.forward: gives {what}, and logits are floating-point {wanted}")
        return logits

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """The module's own `losses(batch)`, where it has them: a `Losses`, or a scalar, the mean over the posts."""
        own: Callable[[Batch], object] | None = getattr(self.module, "losses", None)
        if own is None:
            return super().losses(batch)
        losses = own(batch)
        if isinstance(losses, Losses):
            return losses
        if not isinstance(losses, Tensor) or losses.ndim:
            name = type(self.module).__name__
            raise InputError(f"{name}.losses: gives neither a `Losses` nor a scalar, the mean over the posts")
        return Losses((Term("sentiment", losses, len(batch)),))


def as_model(module: nn.Module, cache: Cache, config: Config | None = None) -> base.Model:
    """A module as a model: one of ours as it is, one's own with a configuration, by default the default one.

    Raises InputError if the configuration has settings of the fusion model.
    """
    if isinstance(module, base.Model):
        if config not in (None, module.config):
            raise InputError("config: a model of this library has its own; leave it out")
        return module
    m, channels = cache.patches_shape
    return OwnModel(module, own_config(config), Dimensions(channels, cache.text_width, 0, patches=m))


def own_config(config: Config | None = None) -> Config:
    """The configuration of a run of one's own module: that one's settings of training alone."""
    given = config.model_dump(exclude_unset=True) if config else {}
    try:
        return Config(**{**given, "model": OWN, "mlm": False})
    except ValidationError as error:
        raise InputError(f"config, {first_problem(error)}") from None


@torch.no_grad()
def ready(model: base.Model, batch: Batch) -> base.Model:
    """The model, once it has given logits for a batch, from which lazy modules get their sizes.

    Raises InputError if it does not, if it has nothing to learn, or holds what cannot be kept.
    """
    model.eval()(batch)
    name = type(model.kept).__name__
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{name}: has no parameter that learns")
    for key, value in model.kept.state_dict().items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise InputError(f"{name}: {key} holds values that are not finite; register it with persistent=False")
    return model
