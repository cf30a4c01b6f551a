"""The run folder: a run's config, provenance, weights and training state, written so that a kill loses at most an
epoch.

config.yaml (re-runnable), run.json (provenance), splits.csv (each post's label and split), metrics.jsonl (a line
an epoch), model.safetensors (the best epoch's weights), train_state.safetensors (to resume; removed when the run is
finished).
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fusion.checkpoint import load_model, load_state, load_weights, save_model, save_state, saved_epoch
from fusion.config import Config, load_config, save_config
from fusion.data.batches import Batch
from fusion.evaluation_file import evaluation_file, read_evaluation, require_evaluated
from fusion.metrics_file import MetricsFile
from fusion.models.base import Dimensions, Model
from fusion.models.own import OwnModel, ready
from fusion.names import OWN
from fusion.run_files import MOST_RUN, Facts, TrainingState
from fusion.run_posts import PostMatch, RunCache, RunPost, assigned, format_posts, posts_of, read_posts
from pipeline.cache.reader import Cache
from pipeline.common.documents import read_json
from pipeline.common.errors import Diverged, InputError, option, switch, wording
from pipeline.common.files import sha256_of_file, write_json, write_text
from pipeline.common.folders import remove_file
from pipeline.encoders.fingerprint import first_difference
from pipeline.posts.manifest import LABELS

MODEL, STATE = "model.safetensors", "train_state.safetensors"
_OWN_FILES = ("config.yaml", "run.json", "splits.csv", "metrics.jsonl", MODEL, STATE)


class Run:
    """A run folder: written by training, read afterwards."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

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
            raise InputError(f"{self.folder}: an export names no cache; give one with {option('cache')}")
        return Path(folder)

    def require_finished(self) -> dict[str, Any]:
        """The metadata of a run that can be used. Raises InputError if training is not finished."""
        metadata = self.metadata
        self.require_not_failed()
        if not metadata["finished"]:
            way = wording(f"`train ... --out {self.folder} --resume`", "train() into the same folder")
            raise InputError(f"{self.folder}: training is not finished; {way} resumes it")
        return metadata

    def require_unfinished(self) -> None:
        """Raises InputError for a run whose training is finished."""
        if self.finished:
            raise InputError(
                f"{self.folder}: this run is finished, there is nothing to resume; give another folder, or "
                f"{switch('overwrite')}"
            )

    def open_cache(
        self, folder: str | Path | None = None, splits: str | Path | None = None, *, allow_unmatched: bool = False
    ) -> RunCache:
        """The cache that the run was trained from, or another of the same encoders: the only way from a run to a cache.

        Posts that are the run's own, by id and by content, have the run's split; others have none in the run's own
        cache, and keep their split in another one, `folder`. The file `splits` goes before both. Raises InputError if
        the encoders are others, if the run's own cache is not where it was, and on a split file as `Cache.with_splits`
        does.
        """
        if folder is None and not self.cache_folder.is_dir():
            raise InputError(
                f"{self.cache_folder}: no such cache, and {self.folder} was trained from it; if it has moved, give its "
                f"folder with {option('cache')}"
            )
        cache, metadata = Cache(folder or self.cache_folder), self.metadata
        if difference := first_difference(metadata["fingerprint"], cache.fingerprint):
            raise InputError(f"{cache.folder}: computed by other encoders than those of {self.folder}; {difference}")
        cache.require_sizes(metadata["dimensions"], self.folder)
        match = PostMatch(self._posts_in(cache), cache)
        own, labels = match.post >= 0, match.cache.labels
        if metadata["labels_from"] == "splits":
            labels = np.where(own, match.labels, labels)
        seen = cache.with_assignments(labels, np.where(own, match.splits, -1 if folder is None else cache.splits))
        relabelled = int(np.sum(own & (labels != match.labels)))
        if splits:
            seen = seen.with_splits(splits, allow_unmatched=allow_unmatched)
        return RunCache(seen, match, "" if metadata["exported"] else match.note(relabelled))

    def _posts_in(self, cache: Cache) -> list[RunPost]:
        """The run's posts; a run that kept no hashes has those of the cache where that is unchanged, an export none."""
        if self.metadata["exported"]:
            return []
        posts = read_posts(self.splits)
        if cache.manifest_sha256 != self.metadata["manifest_sha256"] or all(post.content for post in posts):
            return posts
        known = {post.id: post for post in posts_of(cache.with_splits(self.splits))}
        return [known.get(post.id, post) for post in posts]

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

    def resume_or_start(
        self,
        config: Config,
        cache: Cache,
        *,
        same_splits: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> Cache:
        """The cache with the labels and splits to train on: an unfinished run keeps its own.

        It resumes only with the same config, encoders and posts, and with `same_splits` only if the cache has its
        labels and splits. `say` gets a line for what is not as it was when the run began. Raises InputError naming what
        differs.
        """
        if not self.started:
            return cache
        before, now = self.config.model_dump(), config.model_dump()
        if key := next((key for key in now if before[key] != now[key]), None):
            raise InputError(
                f"{self.folder}: an unfinished run with {key} {before[key]}, not {now[key]}; "
                f"{wording('use --resume alone', 'give the same')}, or {switch('overwrite')}"
            )
        if difference := first_difference(self.metadata["fingerprint"], cache.fingerprint):
            raise InputError(f"{cache.folder}: from other encoders than the unfinished run {self.folder}; {difference}")
        match = PostMatch(self._posts_in(cache), cache)
        if match.gone or match.changed:
            raise InputError(f"{match.note()}; the unfinished run {self.folder} needs all of them")
        ours = cache.with_assignments(match.labels, match.splits)
        if same_splits and assigned(cache) != assigned(ours):
            raise InputError(f"{cache.folder}: other splits or labels than those of the unfinished run {self.folder}")
        relabelled = int(np.sum((match.post >= 0) & (cache.labels != match.labels)))
        if note := match.note(relabelled):
            say(f"{note}; the run keeps its own labels and splits" if relabelled else note)
        return ours

    def difference_to(self, cache: Cache) -> str:
        """How the run's posts, labels and splits differ from the cache's, in a few words; empty if they do not."""
        match = PostMatch(self._posts_in(cache), cache)
        if match.gone or match.changed:
            return "other posts"
        ours = cache.with_assignments(match.labels, match.splits)
        return "" if assigned(cache) == assigned(ours) else "other splits or labels"

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
                "labels_from": "splits" if cache.relabelled else "cache",
                "fingerprint": cache.fingerprint,
                "labels": list(LABELS),
                "dimensions": asdict(dimensions),
                **metadata,
            }
        )

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write how training went; `state` in it says whether it stopped early."""
        before = self._facts.model_dump(exclude_unset=True, exclude={"reason"})  # an interruption's
        self._write_metadata({**before, **metadata, "finished": True})
        remove_file(self.folder / STATE)

    def note_end(self, state: str, reason: str) -> None:
        """Write that training was interrupted, or has failed, and why."""
        self._write_metadata({**self._facts.model_dump(exclude_unset=True), "state": state, "reason": reason[:2000]})

    @property
    def failure(self) -> str:
        """Why the run has failed; empty if it has not."""
        return self._facts.reason if self.started and self._facts.state == "failed" else ""

    def require_not_failed(self) -> None:
        """Raises Diverged for a run that has failed: the same settings would fail again."""
        if self.failure:
            raise Diverged(
                f"{self.folder}: this run has failed: {self.failure}; change settings, {switch('overwrite')}"
            )

    def _write_metadata(self, metadata: dict[str, Any]) -> None:
        write_json(self.folder / "run.json", metadata)

    def _write_splits(self, cache: Cache) -> None:
        write_text(self.splits, format_posts(posts_of(cache)))

    @property
    def weights_sha256(self) -> str:
        """Of the best epoch's weights. Raises InputError if they are missing."""
        if not (path := self.folder / MODEL).is_file():
            raise InputError(f"{path}: missing or damaged; train again")
        return sha256_of_file(path)

    def save_model(self, model: Model, state: TrainingState) -> None:
        """The best epoch's weights, which say of which epoch they are."""
        save_model(self.folder / MODEL, model, state)

    def load_model(self, device: torch.device, module: nn.Module | None = None, batch: Batch | None = None) -> Model:
        """The best epoch's model, ready to predict. A run of a custom module needs that `module`; the weights are
        loaded into it, and its lazy layers get sizes from `batch`.

        Raises InputError if weights, run.json and config.yaml do not fit each other.
        """
        metadata, config = self.metadata, self.config
        if config.model == OWN and module is None:
            what = f"a run of a module of your own, {metadata.get('module')}"
            raise InputError(f"{self.folder}: {what}; use it from Python with that module as `model`, docs/library.md")
        if config.model != OWN and module is not None:
            raise InputError(f"{self.folder}: a run of the model {config.model}; leave `model` out")
        try:
            if module is not None:
                self.require_module(module)
                model = OwnModel(module, config, Dimensions(**metadata["dimensions"])).to(device).eval()
                if batch is not None:
                    ready(model, batch)
                load_weights(self.folder / MODEL, model, epoch=metadata.get("best_epoch"))
                return model
            return load_model(
                self.folder / MODEL, config, metadata["dimensions"], device, epoch=metadata.get("best_epoch")
            )
        except ValueError as error:
            raise InputError(f"{self.folder}: config.yaml does not fit run.json ({error})") from None

    def require_module(self, module: nn.Module) -> None:
        """Raises InputError for a module of another class than the one that the run was trained with."""
        if (name := type(module).__name__) != self.metadata.get("module", name):
            raise InputError(f"{self.folder}: a run of the module {self.metadata['module']}, not {name}")

    def save_state(self, model: Model, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
        """Everything that the next epoch depends on. The random state is not in it: each epoch seeds its own."""
        save_state(self.folder / STATE, model, optimizer, state)

    def load_state(self, model: Model, optimizer: torch.optim.Optimizer) -> TrainingState | None:
        """Restore what `save_state` wrote; None if no epoch was finished. Raises InputError if it is damaged."""
        return load_state(self.folder / STATE, model, optimizer)

    def complete_model(self, model: Model, state: TrainingState) -> None:
        """Write the best weights, those of the state, where a kill came between the state's file and theirs."""
        path = self.folder / MODEL
        if state.best_epoch == state.epoch and (not path.is_file() or saved_epoch(path) not in (None, state.epoch)):
            self.save_model(model, state)

    def evaluation(self, split: str) -> dict[str, Any]:
        """The evaluation of a split. Raises InputError if there is none, and if the file or the run is damaged."""
        self.require_not_failed()
        path = require_evaluated(self.folder, split)
        self.require_finished()
        return read_evaluation(path, split, self.weights_sha256)

    def evaluation_file(self, split: str, of: dict[str, Any]) -> Path:
        """Where an evaluation of these facts is written."""
        return evaluation_file(self.folder, split, of)

    def count_read(self, split: str) -> int:
        """How often the test split has been read; reading it again counts once more."""
        if split == "test":
            self._write_metadata(
                {**self._facts.model_dump(exclude_unset=True), "test_reads": self._facts.test_reads + 1}
            )
        return self._facts.test_reads

    @property
    def metrics_file(self) -> MetricsFile:
        return MetricsFile(self.folder / "metrics.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        """The epochs, in order. Raises InputError naming the first line that is damaged."""
        return self.metrics_file.read()
