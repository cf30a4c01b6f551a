"""Chooses what computes the frozen encoders: PyTorch, or on a CPU ONNX Runtime. Features change by rounding only.

`auto` takes ONNX Runtime where it is installed, where it gives PyTorch's features of a few posts to 1e-5, and where the
encoder's graph lies ready or the posts are so many that making it pays.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from filelock import FileLock

from pipeline.common.errors import InputError, option
from pipeline.encoders.graph import Graph, graph_file, largest_difference, make_graph
from pipeline.encoders.image import ImageEncoder, NoImages
from pipeline.encoders.ready import keep
from pipeline.encoders.runtimes import AUTO, ONNXRUNTIME, TORCH
from pipeline.encoders.text import TextEncoder

TOLERANCE = 1e-5  # of a feature, relative to the largest
WORTH = 1000  # posts for which making the graphs, 14 s for the packaged encoders on one core, pays
_LONGEST_WAIT = 600.0  # seconds, for another process that makes the same graph

Say = Callable[[str], None]


def use_runtime(
    encoder: ImageEncoder | TextEncoder, wanted: str, *, posts: int = 0, say: Say = lambda line: None
) -> None:
    """Let an encoder compute by the runtime `wanted`; its `runtime` then says which it is. posts: how many are to be
    encoded.

    With `auto` a line for `say` says why ONNX Runtime is not used where it was tried. Raises InputError where it is
    wanted by name and can't be used.
    """
    if isinstance(encoder, NoImages):
        return
    if wanted == TORCH:
        encoder.use(None)
        return
    problem = _unfit(encoder)
    if not problem:
        path = graph_file(encoder.kind, encoder.graph_facts)
        if wanted == AUTO and posts < WORTH and not path.exists():
            encoder.use(None)
            return
        try:
            _make_once(encoder, path, say)
            encoder.use(None)
            expected = encoder.probed()
            encoder.use(Graph(path))
            difference = largest_difference(expected, encoder.probed())
        except Exception as error:  # the exporter and ONNX Runtime raise almost anything for a model they can't follow
            path.unlink(missing_ok=True)
            problem = f"it can't follow this model ({' '.join(str(error).split())[:160] or type(error).__name__})"
        else:
            if difference <= TOLERANCE:
                keep(encoder, path, expected)
                say(f"{encoder.name}: ONNX Runtime computes it, its features within {difference:.1g} of PyTorch's")
                return
            problem = f"its features differ from PyTorch's by {difference:.2g}, over {TOLERANCE:g}"
    encoder.use(None)
    if wanted == ONNXRUNTIME:
        raise InputError(f"{option('runtime', ONNXRUNTIME)}: {encoder.name}: {problem}; use {TORCH}")
    if problem != _GPU:
        say(f"{encoder.name}: PyTorch computes it; ONNX Runtime is not used: {problem}")


_GPU = "it is for processors, and the encoder is on a GPU"


def _unfit(encoder: ImageEncoder | TextEncoder) -> str:
    """Why an encoder is for PyTorch alone; empty if it is not."""
    if encoder.device.type != "cpu":
        return _GPU
    if encoder.fingerprint["compute_dtype"] != "float32":
        return f"it computes in float32, not in {encoder.fingerprint['compute_dtype']}"
    missing = [name for name in ("onnxruntime", "onnxscript") if find_spec(name) is None]
    return f"{missing[0]} is not installed" if missing else ""


def _make_once(encoder: ImageEncoder | TextEncoder, path: Any, say: Say) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=_LONGEST_WAIT):
        if not path.exists():
            say(f"{encoder.name}: making its graph for ONNX Runtime, once: {path}")
            module, example = encoder.exported()
            make_graph(module, example, path)
