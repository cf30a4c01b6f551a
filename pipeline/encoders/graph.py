"""A frozen encoder's arithmetic as an ONNX graph, which ONNX Runtime computes on a CPU, some models in a third of
PyTorch's time.

A graph is made once, in seconds, and kept in the user's cache folder, where it may be deleted at any time.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.common.files import complete_or_absent
from pipeline.encoders.onnx_runtime import onnx_runtime
from pipeline.encoders.runtimes import ONNXRUNTIME, TORCH

_FORM = "1"  # of the graphs; another one is another file
_KEPT = 40  # hexadecimal digits of a file's name


class Graph:
    """A graph, ready to compute. It may be called by several threads at a time, and computes on the caller's core."""

    def __init__(self, path: Path) -> None:
        onnxruntime = onnx_runtime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = [one.name for one in self._session.get_inputs()]

    def __call__(self, *values: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs for inputs in the order of the module that the graph was made from."""
        return tuple(self._session.run(None, dict(zip(self._inputs, values, strict=True))))


class Computed:
    """What both encoders are: computed by PyTorch, or by a graph in its place."""

    _graph: Graph | None = None

    def use(self, graph: Graph | None) -> None:
        """Compute by a graph from now on; None: by PyTorch."""
        self._graph = graph

    @property
    def runtime(self) -> str:
        """What computes the features, and its version, as `torch 2.9.0`."""
        return f"{TORCH} {torch.__version__}" if self._graph is None else f"{ONNXRUNTIME} {version(ONNXRUNTIME)}"


def kept_file(encoder: str, facts: Mapping[str, Any], ending: str) -> Path:
    """Where something of an `image` or `text` encoder is kept, or would be: of other facts, and of other versions of
    what makes and computes graphs, it is another file. Nothing is imported.
    """
    made_by = [_FORM, *(version(package) for package in ("torch", "onnxscript", "onnxruntime"))]
    name = hashlib.sha256(json.dumps([made_by, facts], sort_keys=True).encode()).hexdigest()[:_KEPT]
    return folder() / f"{encoder}-{name}{ending}"


def graph_file(encoder: str, facts: Mapping[str, Any]) -> Path:
    """Where the graph of an encoder lies, or would. facts: what decides its arithmetic."""
    return kept_file(encoder, facts, ".onnx")


def folder() -> Path:
    """The user's folder for graphs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mscf" / "graphs"


def make_graph(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Write a module's graph, complete or not at all. inputs: an example of each; its first size may vary, and the
    second too where there are two.

    Raises what the exporter raises, which is almost anything, for a module that it can't follow.
    """
    varies = torch.export.Dim.DYNAMIC
    free = [{0: varies, 1: varies} if value.ndim == 2 else {0: varies} for value in inputs.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx_runtime()  # before the exporter imports it
    with complete_or_absent(path) as temporary, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(temporary),
            input_names=list(inputs),
            dynamic_shapes=tuple(free),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def largest_difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """The largest difference between features, relative to the largest feature of its kind."""
    each = [np.abs(a - b).max() / max(np.abs(a).max(), 1e-30) for a, b in zip(expected, found, strict=True)]
    return float(max(each))
