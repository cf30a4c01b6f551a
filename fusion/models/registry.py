"""A configuration's model name in, the model out. Only the module of the model that is asked for is imported."""

from importlib import import_module
from typing import Any

from torch import Tensor

from fusion.config import Config
from fusion.models.base import Dimensions

CLASSES = {
    "fusion": "fusion.models.fusion_model.FusionModel",
    "dnn-lr": "fusion.models.baselines.dnn_lr.DnnLr",
    "cnn-multi": "fusion.models.baselines.cnn_multi.CnnMulti",
    "multisentinet": "fusion.models.baselines.multisentinet.MultiSentiNet",
    "co-mn-hop": "fusion.models.baselines.co_mn_hop.CoMnHop",
    "fenet": "fusion.models.baselines.fenet.FENet",
    "itignn": "fusion.models.baselines.itignn.Itignn",
    "cmcn": "fusion.models.baselines.cmcn.Cmcn",
    "clmlf": "fusion.models.baselines.clmlf.Clmlf",
    "mvcn": "fusion.models.baselines.mvcn.Mvcn",
    "clcaf": "fusion.models.baselines.clcaf.Clcaf",
}
BASELINES = tuple(name for name in CLASSES if name != "fusion")


def model_class(name: str) -> Any:
    """The class of a model name. A baseline's has a `title` for tables, which says what it is without."""
    module, _, class_name = CLASSES[name].rpartition(".")
    return getattr(import_module(module), class_name)


def build_model(
    config: Config,
    dimensions: Dimensions,
    *,
    word_embeddings: Tensor | None = None,
    log_prior: Tensor | None = None,
) -> Any:
    """The configured model, freshly initialised: a FusionModel, or a fusion.models.baselines.base.Baseline.

    Both have `config`, `forward(batch)` and `losses(batch, text_encoder)`. `word_embeddings` and `log_prior` are the
    fusion model's, for `tie_mlm_head` and `logit_adjustment`. Raises ValueError naming the setting if config and
    dimensions don't fit.
    """
    options = {"word_embeddings": word_embeddings, "log_prior": log_prior} if config.model == "fusion" else {}
    return model_class(config.model)(config, dimensions, **options)
