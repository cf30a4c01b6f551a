"""Exports a finished run: a folder with what another machine needs to predict, and a model card.

What only training needs is left behind: the masked-language head, the optimiser, the posts' ids, paths of this machine.
"""

from pathlib import Path
from typing import Any

import torch

from fusion.checkpoint import weights_metadata
from fusion.config import save_config
from fusion.inference.model_card import model_card
from fusion.models.base import Dimensions, Model
from fusion.models.registry import build_model
from fusion.run import Run
from fusion.tensor_files import save_tensors
from pipeline.common.errors import InputError, switch
from pipeline.common.files import write_json, write_text
from pipeline.common.folders import remove_file
from pipeline.encoders.text_vector import MEAN, text_pooling

_KEPT_FACTS = (
    *("manifest_sha256", "fingerprint", "target", "labels", "dimensions", "versions", "parameters"),
    *("best_epoch", "epochs", "validation"),
)
ONNX = "model.onnx"
CARD = "README.md"
_OWN_FILES = ("run.json", "config.yaml", "model.safetensors", CARD, ONNX)


def export(run: Run, out: str | Path, *, onnx: bool = False) -> dict[str, Any]:
    """Write the folder; run.json last, since it says that the others are there. Returns the files' sizes in bytes.

    Raises InputError if the run is not finished, or with `onnx` if the graph can't be made or is not exact.
    """
    out, metadata = Path(out), run.require_finished()
    if metadata.get("exported"):
        raise InputError(f"{run.folder}: is an export already; copy the folder")
    trained = run.load_model(torch.device("cpu")).state_dict()
    config = run.config.model_copy(update={"mlm": False})
    model = build_model(config, Dimensions(**metadata["dimensions"]))
    model.load_state_dict({name: trained[name] for name in model.state_dict()})
    model_card(run, None)  # what it reads may be damaged: found before anything is written
    remove_export(out)
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(out / "model.safetensors", tensors, weights_metadata({"epoch": metadata["best_epoch"]}))
    save_config(out / "config.yaml", config)
    difference = _write_onnx(model.eval(), run, out / ONNX) if onnx else None
    write_text(out / CARD, model_card(run, difference))
    kept = {name: metadata[name] for name in _KEPT_FACTS if name in metadata}
    write_json(out / "run.json", {"finished": True, "exported": True, **kept})
    return {name: (out / name).stat().st_size for name in _OWN_FILES if (out / name).exists()}


def remove_export(out: Path) -> None:
    """Remove an earlier export's own files, first the one that says that the others are there.

    Raises InputError if a run lies there, which is no export.
    """
    if Run(out).started and not Run(out).metadata.get("exported"):
        raise InputError(f"{out}: a run lies there; give another name for the export")
    for name in _OWN_FILES:
        remove_file(out / name)


def _write_onnx(model: Model, run: Run, path: Path) -> float:
    try:
        import onnxruntime  # noqa: F401 - needed below, and missing most often
        import onnxscript  # noqa: F401

        from fusion.inference.onnx import write_onnx
    except ImportError as error:
        raise InputError(f"{switch('onnx')} needs {error.name}: pip install -e '.[onnx]'") from None
    own_vector = text_pooling(run.metadata["fingerprint"]) != MEAN
    return write_onnx(model, path, run.metadata["labels"], own_vector=own_vector)
