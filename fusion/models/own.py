"""Adapts a module of one's own to what training, evaluation and explanation need of a model."""

from collections.abc import Callable

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.data.requirements import settled
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
        losses, where = own(batch), f"{type(self.module).__name__}.losses"
        if isinstance(losses, Tensor) and not losses.ndim:
            return Losses((Term("sentiment", losses, len(batch)),))
        if not isinstance(losses, Losses):
            raise InputError(f"{where}: gives neither a `Losses` nor a scalar, the mean over the posts")
        if "sentiment" not in [term.name for term in losses.terms]:
            raise InputError(f"{where}: needs a Term named 'sentiment', the loss to report")
        if any(term.mean.ndim for term in losses.terms):
            raise InputError(f"{where}: the mean of each Term must be a scalar")
        return losses


def as_model(module: nn.Module, cache: Cache, config: Config | None = None) -> base.Model:
    """A module as a model: a model of this library as it is, any other wrapped with a configuration, by default the
    default one.

    Raises InputError if the configuration has settings of the fusion model.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"model: must be a torch.nn.Module or a Config, not {type(module).__name__}")
    if isinstance(module, base.Model):
        if config not in (None, module.config):
            raise InputError("config: a model of this library has its own; leave it out")
        return module
    m, channels = cache.patches_shape
    vectors = {"text_pooled": cache.text_pooled_width, "image_pooled": cache.image_pooled_width}
    sizes = {"classes": len(cache.label_names), "patches": m, **vectors}
    chosen = settled(own_config(config), cache)
    return OwnModel(module, chosen, Dimensions(channels, cache.text_width, 0, **sizes))


def own_config(config: Config | None = None) -> Config:
    """The configuration for training a custom module."""
    given = config.model_dump(exclude_unset=True) if config else {}
    try:
        return Config(**{**given, "model": OWN})
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
        raise InputError(f"{name}: has no trainable parameter (requires_grad)")
    buffers = {key for key, _ in model.kept.named_buffers()}
    for key, value in model.kept.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name}: {key} is no tensor, and only tensors can be kept; leave get_extra_state out")
        if not value.isfinite().all():
            way = "register it with persistent=False" if key in buffers else "initialise it with finite values"
            raise InputError(f"{name}: {key} holds values that are not finite; {way}")
    return model
