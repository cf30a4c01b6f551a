"""Stage two: trains and evaluates models from cached features, predicts, explains and serves.

What a program of one's own needs can be imported from here; docs/library.md shows how. Each name loads its module when
it is first used, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion.config import Config, load_config
    from fusion.data.batches import Batch, iterate_batches
    from fusion.evaluation.display import format_scores
    from fusion.evaluation.evaluate import evaluate, evaluate_model
    from fusion.evaluation.predict import predict_rows
    from fusion.explanation.explain import explain_posts
    from fusion.inference.predictor import Predictor, RawPost
    from fusion.models.base import Losses, Term
    from fusion.run import Run
    from fusion.training.combine import combine_runs
    from fusion.training.ensemble import EnsembleResult, train_ensemble
    from fusion.training.train import ExecutionOptions, TrainResult, train
    from pipeline.cache.reader import Cache
    from pipeline.common.errors import InputError

_MODULES = {
    "fusion.config": ("Config", "load_config"),
    "fusion.data.batches": ("Batch", "iterate_batches"),
    "fusion.evaluation.display": ("format_scores",),
    "fusion.evaluation.evaluate": ("evaluate", "evaluate_model"),
    "fusion.evaluation.predict": ("predict_rows",),
    "fusion.explanation.explain": ("explain_posts",),
    "fusion.inference.predictor": ("Predictor", "RawPost"),
    "fusion.models.base": ("Losses", "Term"),
    "fusion.run": ("Run",),
    "fusion.training.combine": ("combine_runs",),
    "fusion.training.ensemble": ("EnsembleResult", "train_ensemble"),
    "fusion.training.train": ("ExecutionOptions", "TrainResult", "train"),
    "pipeline.cache.reader": ("Cache",),
    "pipeline.common.errors": ("InputError",),
}

__all__ = [
    "Batch",
    "Cache",
    "Config",
    "EnsembleResult",
    "ExecutionOptions",
    "InputError",
    "Losses",
    "Predictor",
    "RawPost",
    "Run",
    "Term",
    "TrainResult",
    "combine_runs",
    "evaluate",
    "evaluate_model",
    "explain_posts",
    "format_scores",
    "iterate_batches",
    "load_config",
    "predict_rows",
    "train",
    "train_ensemble",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
