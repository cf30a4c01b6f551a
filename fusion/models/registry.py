"""Builds the model that a configuration names. Only the module of that model is imported."""

from importlib import import_module

from torch import Tensor

from fusion.config import Config
from fusion.data.requirements import unequal_widths
from fusion.models.base import Dimensions, Model
from fusion.names import FUSION, OWN, model_modules


def model_class(name: str) -> type[Model]:
    """The class of a model name: the one that its module defines. Raises ValueError for `own`, which has none."""
    if name == OWN:
        raise ValueError("model: own is a module that is given from Python; see docs/library.md")
    module = import_module(model_modules()[name])
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Model)]
    return next(found for found in classes if found.__module__ == module.__name__)


def build_model(
    config: Config,
    dimensions: Dimensions,
    *,
    word_embeddings: Tensor | None = None,
) -> Model:
    """The configured model, freshly initialised.

    `word_embeddings` are the fusion model's, for `tie_mlm_head`. Raises ValueError naming the setting if config and
    dimensions don't fit.
    """
    if not config.is_settled:
        raise ValueError("label_rule, views: auto is for training, which writes what it came to")
    if problem := unequal_widths(config, dimensions.channels, dimensions.image_vector_width):
        raise ValueError(problem)
    own = {"word_embeddings": word_embeddings} if config.model == FUSION else {}
    return model_class(config.model)(config, dimensions, **own)
