"""Exports a finished run: a folder with what another machine needs to predict, and a model card.

What only training needs is left behind: the masked-language head, the optimiser, the posts' ids, paths of this machine.
"""

from pathlib import Path
from typing import Any

import torch

from fusion.checkpoint import weights_metadata
from fusion.config import save_config
from fusion.inference.model_card import model_card
from fusion.models.base import Model
from fusion.models.ensemble import Ensemble, members_of
from fusion.models.registry import build_model
from fusion.run import Run
from fusion.run_folder import MODEL, member_folders, remove_member_folders
from fusion.tensor_files import save_tensors
from pipeline.common.errors import InputError, switch
from pipeline.common.files import write_json, write_text
from pipeline.common.folders import remove_file
from pipeline.encoders.onnx_runtime import onnx_runtime
from pipeline.encoders.text_vector import MEAN, text_pooling

_KEPT_FACTS = (
    *("manifest_sha256", "fingerprint", "target", "labels", "dimensions", "versions", "parameters"),
    *("members", "best_epoch", "epochs", "validation", "temperature"),
)
ONNX = "model.onnx"
CARD = "README.md"
_OWN_FILES = ("run.json", "config.yaml", MODEL, CARD, ONNX)


def export(run: Run, out: str | Path, *, onnx: bool = False) -> dict[str, Any]:
    """Write the folder; run.json last, since it says that the others are there. Returns the files' sizes in bytes.

    Raises InputError if the run is not finished, or with `onnx` if the graph can't be made or is not exact.
    """
    out, metadata = Path(out), run.require_finished()
    if metadata.get("exported"):
        raise InputError(f"{run.folder}: is an export already; copy the folder")
    trained = run.load_model(torch.device("cpu"))
    model_card(run, None)  # what it reads may be damaged: found before anything is written
    remove_export(out)
    models = []
    for number, (one, weights) in enumerate(zip(run.members or [run], members_of(trained), strict=True)):
        folder = Run(out).member(number).folder if run.members else out
        models.append(_write_model(one, weights, folder))
        if run.members:
            _write_facts(one, folder)
    whole = models[0] if not run.members else Ensemble(models, trained.dimensions)
    whole.temperature = trained.temperature
    difference = _write_onnx(whole.eval(), run, out / ONNX) if onnx else None
    write_text(out / CARD, model_card(run, difference))
    _write_facts(run, out)
    folders = [out, *member_folders(out)]
    written = (folder / name for folder in folders for name in _OWN_FILES if (folder / name).exists())
    return {path.relative_to(out).as_posix(): path.stat().st_size for path in written}


def _write_model(run: Run, trained: Model, out: Path) -> Model:
    """Write what prediction needs of a model: configuration and weights. Returns it, without the rest."""
    config = run.config.model_copy(update={"mlm": False})
    model = build_model(config, trained.dimensions)
    weights = trained.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(out / MODEL, tensors, weights_metadata({"epoch": run.metadata["best_epoch"]}))
    save_config(out / "config.yaml", config)
    return model


def _write_facts(run: Run, out: Path) -> None:
    """Write run.json, which says that the other files are there."""
    metadata = run.metadata
    kept = {name: metadata[name] for name in _KEPT_FACTS if name in metadata}
    write_json(out / "run.json", {"finished": True, "exported": True, **kept})


def remove_export(out: Path) -> None:
    """Remove an earlier export's own files, first the one that says that the others are there.

    Raises InputError if a run lies there, which is no export.
    """
    if Run(out).started and not Run(out).metadata.get("exported"):
        raise InputError(f"{out}: a run lies there; give another name for the export")
    for folder in (out, *member_folders(out)):
        for name in _OWN_FILES:
            remove_file(folder / name)
    remove_member_folders(out)


def _write_onnx(model: Model, run: Run, path: Path) -> float:
    try:  # some systems have no wheels of theirs
        onnx_runtime()
        import onnxscript  # noqa: F401

        from fusion.inference.onnx import write_onnx
    except ImportError as error:
        raise InputError(f"{switch('onnx')} needs {error.name}: pip install {error.name}") from None
    own_vector = text_pooling(run.metadata["fingerprint"]) != MEAN
    return write_onnx(model, path, run.metadata["labels"], own_vector=own_vector)
