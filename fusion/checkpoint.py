"""The run folder: a run's config, provenance, weights and training state, written so that a kill loses at most an
epoch.

config.yaml (re-runnable), run.json (what made it, from what), splits.csv (which post was where), metrics.jsonl (a line
an epoch), model.safetensors (the best epoch's weights), train_state.safetensors (to resume; removed when the run is
finished).
"""

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusion.config import Config, load_config, save_config
from fusion.model import Dimensions, FusionModel
from fusion.models import build_model
from pipeline.cache import Cache
from pipeline.encoders import first_difference
from pipeline.errors import InputError
from pipeline.files import complete_or_absent, write_json, write_text
from pipeline.records import LABELS, SPLITS

_OWN_FILES = ("config.yaml", "run.json", "splits.csv", "metrics.jsonl", "model.safetensors", "train_state.safetensors")


@dataclass(frozen=True)
class Progress:
    """How far training has come, beside the tensors of train_state."""

    epoch: int  # epochs finished
    best_epoch: int
    best_score: float  # validation weighted F1


class Run:
    """A run folder, to write while training and to read afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def started(self) -> bool:
        return (self.folder / "run.json").is_file()

    @property
    def finished(self) -> bool:
        return self.started and self.facts["finished"]

    @property
    def facts(self) -> dict[str, Any]:
        """run.json. Raises InputError if this is no run folder."""
        if not self.started:
            raise InputError(f"{self.folder}: no run there (no run.json); make one with `train`")
        try:
            return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{self.folder / 'run.json'}: damaged ({error})") from None

    @property
    def config(self) -> Config:
        return load_config(file=self.folder / "config.yaml")

    def resumable_config(self) -> Config:
        """The unfinished run's own configuration, for going on with it."""
        if not self.started:
            raise InputError(f"{self.folder}: no unfinished run there to resume")
        return self.config

    @property
    def splits(self) -> Path:
        return self.folder / "splits.csv"

    def clear(self) -> None:
        """Remove the files of a run, and only those: the folder may hold a person's other files."""
        for name in _OWN_FILES:
            (self.folder / name).unlink(missing_ok=True)
        for pattern in ("evaluation-*.json", "events.out.tfevents.*"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def take_up(self, config: Config, cache: Cache, splits: Path | None) -> Cache:
        """The cache with the splits to train on. An unfinished run goes on only with the same config, features and
        splits.

        Raises InputError naming what differs.
        """
        if splits:
            cache = cache.with_splits(splits)
        if not self.started:
            return cache
        before, now = self.config.model_dump(), config.model_dump()
        if key := next((key for key in now if before[key] != now[key]), None):
            raise InputError(
                f"{self.folder}: an unfinished run with {key} {before[key]}, not {now[key]}; "
                "use --resume alone, or --overwrite"
            )
        if difference := first_difference(self.facts["fingerprint"], cache.fingerprint):
            raise InputError(f"{cache.folder}: of other encoders than the unfinished run {self.folder}; {difference}")
        if cache.manifest_sha256 != self.facts["manifest_sha256"]:
            raise InputError(f"{cache.folder}: holds other posts than the cache of the unfinished run {self.folder}")
        ours = cache.with_splits(self.splits)
        if splits and _assigned(cache) != _assigned(ours):
            raise InputError(f"{splits}: other splits or labels than those of the unfinished run {self.folder}")
        return ours

    def start(self, config: Config, cache: Cache, dimensions: Dimensions, facts: dict[str, Any]) -> None:
        """Write what the run is made of; run.json last, since it says that the others are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_config(self.folder / "config.yaml", config)
        self._write_splits(cache)
        self._write_facts(
            {
                "finished": False,
                "cache": str(cache.folder.resolve()),
                "manifest_sha256": cache.manifest_sha256,
                "fingerprint": cache.fingerprint,
                "labels": list(LABELS),
                "dimensions": asdict(dimensions),
                **facts,
            }
        )

    def finish(self, facts: dict[str, Any]) -> None:
        self._write_facts({**self.facts, **facts, "finished": True})
        (self.folder / "train_state.safetensors").unlink(missing_ok=True)

    def _write_facts(self, facts: dict[str, Any]) -> None:
        write_json(self.folder / "run.json", facts)

    def _write_splits(self, cache: Cache) -> None:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["id", "label", "split"])
        writer.writerows(_assigned(cache))
        write_text(self.splits, table.getvalue())

    def save_model(self, model: FusionModel) -> None:
        _save_tensors(self.folder / "model.safetensors", _tensors(model))

    def load_model(self, device: torch.device) -> FusionModel:
        """The best epoch's model, ready to predict."""
        model = build_model(self.config, Dimensions(**self.facts["dimensions"]))
        path = self.folder / "model.safetensors"
        try:
            model.load_state_dict(_with_shared(model, load_file(path)))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(
                f"{path}: missing or damaged ({' '.join(str(error).split())[:200]}); train again"
            ) from None
        return model.to(device).eval()

    def save_state(self, model: FusionModel, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Everything that the next epoch depends on. The random state is not in it: each epoch seeds its own."""
        tensors = {f"model/{name}": tensor for name, tensor in _tensors(model).items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{number}/{key}": value for key, value in state.items()})
        _save_tensors(self.folder / "train_state.safetensors", tensors, json.dumps(asdict(progress)))

    def load_state(self, model: FusionModel, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Restore what `save_state` wrote; None if no epoch was finished."""
        path = self.folder / "train_state.safetensors"
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        weights = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
        model.load_state_dict(_with_shared(model, weights))
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, number, key = name.split("/")
                states.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        return progress

    def evaluation(self, split: str) -> dict[str, Any]:
        """What `evaluate` wrote of a split."""
        path = self.folder / f"evaluation-{split}.json"
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `evaluate {self.folder} --split {split}`")
        return json.loads(path.read_text(encoding="utf-8"))

    def append_metrics(self, line: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def cut_back(self, epochs: int) -> None:
        """Drop metrics of epochs after these, whose state was not saved."""
        if lines := self.metrics_lines():
            write_text(self.folder / "metrics.jsonl", "".join(lines[:epochs]))

    def metrics_lines(self) -> list[str]:
        path = self.folder / "metrics.jsonl"
        return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []

    def metrics(self) -> list[dict[str, Any]]:
        """The epochs, in order."""
        return [json.loads(line) for line in self.metrics_lines()]


def _assigned(cache: Cache) -> list[tuple[str, str, str]]:
    """(id, label, split) of every post that has both."""
    rows = zip(cache.ids, cache.labels, cache.splits, strict=True)
    return [(id_, LABELS[label], SPLITS[split]) for id_, label, split in rows if label >= 0 and split >= 0]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the second name that a shared Transformer has."""
    state = model.state_dict()
    if getattr(model, "mlm_transformer", None) is getattr(model, "transformer", None):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("mlm_transformer.")}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _with_shared(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_tensors`: the shared Transformer's weights under both names."""
    shared = {f"mlm_{name}": tensor for name, tensor in tensors.items() if name.startswith("transformer.")}
    return {
        **tensors,
        **{name: tensor for name, tensor in shared.items() if name in model.state_dict() and name not in tensors},
    }


def _save_tensors(path: Path, tensors: dict[str, Tensor], progress: str = "") -> None:
    with complete_or_absent(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, {"progress": progress} if progress else None)
        temporary.chmod(mode)  # safetensors leaves its files to their owner alone; a run folder may be shared
