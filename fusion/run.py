"""The run folder: a run's config, provenance, weights and training state, written so that a kill loses at most an
epoch.

config.yaml (re-runnable), run.json (provenance), splits.csv (each post's label and split), metrics.jsonl (a line
an epoch), model.safetensors (the best epoch's weights), train_state.safetensors (to resume; removed when the run is
finished).
"""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion.config import Config, load_config, save_config
from fusion.models.base import Dimensions, Model
from fusion.models.registry import build_model
from fusion.run_files import MOST_EPOCHS, MOST_METRICS, MOST_RUN, EpochLine, Evaluation, Facts, TrainingState
from fusion.tensor_files import Expected, load_tensors, read_metadata, save_tensors, tensor_names
from pipeline.cache.reader import Cache
from pipeline.common.documents import parse_json, read_json
from pipeline.common.errors import InputError
from pipeline.common.files import csv_text, regular_text, write_json, write_text
from pipeline.common.folders import append_bytes, remove_file
from pipeline.encoders.fingerprint import first_difference
from pipeline.posts.manifest import LABELS, SPLITS

_OWN_FILES = ("config.yaml", "run.json", "splits.csv", "metrics.jsonl", "model.safetensors", "train_state.safetensors")
_ADAM = ("step", "exp_avg", "exp_avg_sq")  # of each parameter: how many steps, and the mean gradient and its square


class Run:
    """A run folder: written by training, read afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def started(self) -> bool:
        return (self.folder / "run.json").is_file()

    @property
    def finished(self) -> bool:
        return self.started and self._facts.finished

    @property
    def metadata(self) -> dict[str, Any]:
        """run.json, checked, without the fields that are null. Raises InputError if this is no run folder."""
        return self._facts.model_dump(exclude_none=True)

    @property
    def _facts(self) -> Facts:
        if not self.started:
            raise InputError(f"{self.folder}: no run there (no run.json); make one with `train`")
        return read_json(self.folder / "run.json", Facts, MOST_RUN)

    @property
    def cache_folder(self) -> Path:
        """The cache that the run was trained from. Raises InputError for an export, which names none."""
        if (folder := self._facts.cache) is None:
            raise InputError(f"{self.folder}: an export names no cache; give one with --cache")
        return Path(folder)

    def require_finished(self) -> dict[str, Any]:
        """The metadata of a run that can be used. Raises InputError if training is not finished."""
        metadata = self.metadata
        if not metadata["finished"]:
            raise InputError(
                f"{self.folder}: training is not finished; `train ... --out {self.folder} --resume` resumes it"
            )
        return metadata

    def open_cache(self, folder: Path | None = None, splits: Path | None = None) -> Cache:
        """The cache that the run was trained from, or another of the same encoders: the only way from a run to a cache.

        It has the splits of the file `splits`, else the run's own if it holds the posts that the run was trained on,
        else its own. Raises InputError if the encoders are others.
        """
        cache, metadata = Cache(folder or self.cache_folder), self.metadata
        if difference := first_difference(metadata["fingerprint"], cache.fingerprint):
            raise InputError(f"{cache.folder}: computed by other encoders than those of {self.folder}; {difference}")
        cache.require_sizes(metadata["dimensions"], self.folder)
        if splits:
            return cache.with_splits(splits)
        return cache.with_splits(self.splits) if cache.manifest_sha256 == metadata["manifest_sha256"] else cache

    @property
    def config(self) -> Config:
        return load_config(file=self.folder / "config.yaml")

    def resumable_config(self) -> Config:
        """The unfinished run's own configuration, to resume it."""
        if not self.started:
            raise InputError(f"{self.folder}: no unfinished run there to resume")
        return self.config

    @property
    def splits(self) -> Path:
        return self.folder / "splits.csv"

    def clear(self) -> None:
        """Remove the files of a run, and only those: the folder may hold a person's other files."""
        for name in _OWN_FILES:
            remove_file(self.folder / name)
        for pattern in ("evaluation-*.json", "events.out.tfevents.*"):
            for path in self.folder.glob(pattern):
                remove_file(path)

    def resume_or_start(self, config: Config, cache: Cache, splits: Path | None) -> Cache:
        """The cache with the splits to train on. An unfinished run resumes only with the same config, features and
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
        if difference := first_difference(self.metadata["fingerprint"], cache.fingerprint):
            raise InputError(f"{cache.folder}: from other encoders than the unfinished run {self.folder}; {difference}")
        if cache.manifest_sha256 != self.metadata["manifest_sha256"]:
            raise InputError(f"{cache.folder}: holds other posts than the cache of the unfinished run {self.folder}")
        ours = cache.with_splits(self.splits)
        if splits and _assigned(cache) != _assigned(ours):
            raise InputError(f"{splits}: other splits or labels than those of the unfinished run {self.folder}")
        return ours

    def start(self, config: Config, cache: Cache, dimensions: Dimensions, metadata: dict[str, Any]) -> None:
        """Write config, splits and provenance; run.json last, since it says that the others are complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_config(self.folder / "config.yaml", config)
        self._write_splits(cache)
        self._write_metadata(
            {
                "finished": False,
                "cache": str(cache.folder.resolve()),
                "manifest_sha256": cache.manifest_sha256,
                "fingerprint": cache.fingerprint,
                "labels": list(LABELS),
                "dimensions": asdict(dimensions),
                **metadata,
            }
        )

    def finish(self, metadata: dict[str, Any]) -> None:
        self._write_metadata({**self._facts.model_dump(exclude_unset=True), **metadata, "finished": True})
        remove_file(self.folder / "train_state.safetensors")

    def _write_metadata(self, metadata: dict[str, Any]) -> None:
        write_json(self.folder / "run.json", metadata)

    def _write_splits(self, cache: Cache) -> None:
        write_text(self.splits, csv_text(("id", "label", "split"), _assigned(cache)))

    def save_model(self, model: Model) -> None:
        save_tensors(self.folder / "model.safetensors", _tensors(model))

    def load_model(self, device: torch.device) -> Model:
        """The best epoch's model, ready to predict.

        The file's tensors are compared with the model's before either takes memory. Raises InputError if these,
        run.json and config.yaml do not fit each other.
        """
        config, dimensions = self.config, Dimensions(**self.metadata["dimensions"])
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.filterwarnings("error", "Initializing zero-element tensors")  # a width or a vocabulary of 0
                expected = _expected(build_model(config, dimensions))
        except (ValueError, UserWarning) as error:
            raise InputError(f"{self.folder}: config.yaml does not fit run.json ({error})") from None
        tensors = load_tensors(self.folder / "model.safetensors", expected)
        model: Model = build_model(config, dimensions)
        model.load_state_dict(_with_shared(model, tensors))
        return model.to(device).eval()

    def save_state(self, model: Model, optimizer: torch.optim.Optimizer, progress: TrainingState) -> None:
        """Everything that the next epoch depends on. The random state is not in it: each epoch seeds its own."""
        tensors = {f"model/{name}": tensor for name, tensor in _tensors(model).items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{number}/{key}": value for key, value in state.items()})
        save_tensors(self.folder / "train_state.safetensors", tensors, {"progress": progress.model_dump_json()})

    def load_state(self, model: Model, optimizer: torch.optim.Optimizer) -> TrainingState | None:
        """Restore what `save_state` wrote; None if no epoch was finished. Raises InputError if it is damaged."""
        path = self.folder / "train_state.safetensors"
        if not path.is_file():
            return None
        progress = parse_json(read_metadata(path).get("progress", ""), TrainingState, f"{path}, progress")
        expected = {f"model/{name}": kind for name, kind in _expected(model).items()}
        names = tensor_names(path)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            if f"optimizer/{number}/step" in names:  # a parameter that had no gradient yet has no state
                for key in _ADAM:
                    expected[f"optimizer/{number}/{key}"] = parameter.dtype, () if key == "step" else parameter.shape
        tensors = load_tensors(path, expected)
        weights = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
        model.load_state_dict(_with_shared(model, weights))
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, number_, key = name.split("/")
                states.setdefault(int(number_), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        return progress

    def evaluation(self, split: str) -> dict[str, Any]:
        """The evaluation of a split. Raises InputError if there is none, and if the file or the run is damaged."""
        path = self.folder / f"evaluation-{split}.json"
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `evaluate {self.folder} --split {split}`")
        self.require_finished()
        evaluation = read_json(path, Evaluation)
        if evaluation.split != split:
            raise InputError(f"{path}: damaged, split: is {evaluation.split}, not {split}")
        return evaluation.model_dump()

    def append_metrics(self, line: dict[str, Any]) -> None:
        append_bytes(self.folder / "metrics.jsonl", f"{json.dumps(line)}\n".encode())

    def truncate_metrics(self, epochs: int) -> None:
        """Drop metrics of epochs after these, whose state was not saved. Raises InputError if some of these are
        missing.
        """
        lines = self._metrics_lines()
        if len(lines) < epochs:
            raise InputError(
                f"{self.folder / 'metrics.jsonl'}: damaged, has {len(lines)} epochs, and the training state {epochs}"
            )
        if lines:
            write_text(self.folder / "metrics.jsonl", "".join(lines[:epochs]))

    def _metrics_lines(self) -> list[str]:
        """The lines of metrics.jsonl; an incomplete last line, which a kill or a full disk leaves, counts as absent."""
        path = self.folder / "metrics.jsonl"
        try:
            lines = regular_text(path, MOST_METRICS).split("\n")[:-1] if path.is_file() else []
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: damaged, not UTF-8 at byte {error.start}") from None
        if len(lines) > MOST_EPOCHS:
            raise InputError(f"{path}: damaged, over the limit of {MOST_EPOCHS} epochs")
        return [f"{line}\n" for line in lines]

    def metrics(self) -> list[dict[str, Any]]:
        """The epochs, in order. Raises InputError naming the first line that is damaged."""
        epochs = []
        for number, line in enumerate(self._metrics_lines(), start=1):
            where = f"{self.folder / 'metrics.jsonl'}, line {number}"
            epoch = parse_json(line, EpochLine, where)
            if epoch.epoch != number:
                raise InputError(f"{where}: damaged, epoch: is {epoch.epoch}, not {number}")
            epochs.append(epoch.model_dump(exclude_none=True))
        return epochs


def _assigned(cache: Cache) -> list[tuple[str, str, str]]:
    """(id, label, split) of every post that has both."""
    rows = zip(cache.ids, cache.labels, cache.splits, strict=True)
    return [(id_, LABELS[label], SPLITS[split]) for id_, label, split in rows if label >= 0 and split >= 0]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the second name that a shared Transformer has."""
    state, names = model.state_dict(), _expected(model)
    return {name: state[name].detach().cpu().contiguous() for name in names}


def _with_shared(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_tensors`: the shared Transformer's weights under both names."""
    shared = {f"mlm_{name}": tensor for name, tensor in tensors.items() if name.startswith("transformer.")}
    return {
        **tensors,
        **{name: tensor for name, tensor in shared.items() if name in model.state_dict() and name not in tensors},
    }


def _expected(model: nn.Module) -> Expected:
    """The tensors that `_tensors` makes of a model: dtype and shape by name."""
    shared = getattr(model, "mlm_transformer", None) is getattr(model, "transformer", None)
    return {
        name: (tensor.dtype, tensor.shape)
        for name, tensor in model.state_dict().items()
        if not (shared and name.startswith("mlm_transformer."))
    }
