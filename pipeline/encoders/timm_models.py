"""Builds timm models and puts weights into them, in timm's own form or in one that timm can convert."""

import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.common.errors import InputError, option

# What a head's outputs number where they are CLIP's projection into the space that texts share: ImageNet's classes and
# those of other labelled sets are other numbers (a test holds this for all of timm's entries).
PROJECTIONS = (384, 512, 640, 768, 1024, 1152, 1280)
SMALLEST, LARGEST = 32, 1024  # side of pictures; the largest native one of timm's models is 1024 too


def config_of(name: str) -> Any:
    """timm's entry of a model, with licence, transform and where its weights are; None of a name that timm lacks."""
    import timm

    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # a known model under an unknown tag
        return None


def create(name: str, *, size: int | None = None, with_projection: bool = False) -> Any:
    """The timm model `name` without weights and without a classifier; `with_projection` keeps a head that is CLIP's
    projection.

    size: the side of its pictures, where it is not the model's own. Raises InputError if timm knows no such model, or
    if the model takes no pictures of this size.
    """
    import timm

    options: dict[str, Any] = {}
    config = config_of(name)
    if not (with_projection and config and config.num_classes in PROJECTIONS):
        options["num_classes"] = 0
    if size and config and size != config.input_size[-1]:
        if not SMALLEST <= size <= LARGEST:
            raise InputError(f"{option('image_size', size)}: must be {SMALLEST} to {LARGEST}")
        if config.fixed_input_size:
            options["img_size"] = size
    try:
        model: Any = timm.create_model(name, pretrained=False, **options)
    except Exception as error:  # RuntimeError for other names; for sizes what PyTorch and timm like
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "img_size" in options:
            raise no_such_size(name, size, reason) from None
        if not isinstance(error, RuntimeError | ValueError):
            raise
        raise InputError(f"{option('image_encoder', name)}: timm knows no such model ({reason})") from None
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if size and isinstance(patch, tuple) and size % patch[0]:
        raise no_such_size(name, size, f"its patches are {patch[0]} pixels wide; take a multiple of that")
    return model


def no_such_size(name: str, size: int | None, reason: str) -> InputError:
    return InputError(f"{option('image_size', size)}: {name} takes no pictures of this size ({reason})")


def has_projection(model: Any) -> bool:
    """Whether the model's head is CLIP's projection, and no classifier."""
    return getattr(model, "num_classes", 0) in PROJECTIONS


def load_weights(model: Any, name: str, state: dict[str, Tensor], source: Path | str) -> None:
    """Put weights into a model: timm's own names and shapes as they are, others through timm's `checkpoint_filter_fn`,
    which knows the original DINOv2's and OpenCLIP's names, among others, and fits position embeddings to other sizes.

    Classifiers are left out. `source` is for messages. Raises InputError if a tensor is missing, or is another one's.
    """
    wanted = {key: tensor.shape for key, tensor in model.state_dict().items()}
    try:
        fitting = _without_classifier(model, state)
        if {key: tensor.shape for key, tensor in fitting.items()} != wanted and (convert := _converter(model)):
            fitting = _without_classifier(model, convert(dict(state), model))
        model.load_state_dict(fitting)
    except Exception as error:  # RuntimeError for other names and shapes, and what PyTorch likes for odd tensors
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{source}: not weights of {name} ({reason})") from None


def _without_classifier(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if has_projection(model):
        return state
    names = model.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{one}." for one in ((names,) if isinstance(names, str) else names))
    return {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}


def _converter(model: Any) -> Any:
    """timm's function that turns other checkpoints of a family into its own form; None of a family that has none."""
    import timm

    family = sys.modules[timm.models.model_entrypoint(model.pretrained_cfg["architecture"]).__module__]
    return getattr(family, "checkpoint_filter_fn", None)
