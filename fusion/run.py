"""The run folder: a run's config, provenance, weights and training state, written so that a kill loses at most an
epoch.

config.yaml (re-runnable), run.json (provenance), splits.csv (each post's label and split), metrics.jsonl (a line
an epoch), model.safetensors (the best epoch's weights), train_state.safetensors (to resume; removed when the run is
finished).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fusion.checkpoint import load_model, load_state, load_weights, save_model, save_state, saved_epoch
from fusion.config import Config, save_config
from fusion.data.batches import Batch
from fusion.data.requirements import require_features
from fusion.models.base import Dimensions, Model
from fusion.models.ensemble import Ensemble
from fusion.models.own import OwnModel, ready
from fusion.names import OWN
from fusion.run_files import TrainingState
from fusion.run_folder import MODEL, STATE, RunFolder
from fusion.run_posts import (
    PostMatch,
    RunCache,
    RunPost,
    assigned,
    format_posts,
    labels_unknown,
    posts_of,
    read_posts,
)
from fusion.tensor_files import require_memory
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, option, switch, wording
from pipeline.common.files import write_text
from pipeline.encoders.fingerprint import first_difference


class Run(RunFolder):
    """A run folder: written by training, read afterwards."""

    def open_cache(
        self, folder: str | Path | None = None, splits: str | Path | None = None, *, allow_unmatched: bool = False
    ) -> RunCache:
        """The cache that the run was trained from, or another of the same encoders: the only way from a run to a cache.

        Posts that are the run's own, by id and by content, have the run's split; others have none in the run's own
        cache, and keep their split in another one, `folder`. The file `splits` goes before both. Raises InputError if
        the encoders are others, if the cache keeps fewer features than the model reads, if the run's own cache is not
        where it was, and on a split file as `Cache.with_splits` does.
        """
        if folder is None and not self.cache_folder.is_dir():
            raise InputError(
                f"{self.cache_folder}: no such cache, and {self.folder} was trained from it; if it has moved, give its "
                f"folder with {option('cache')}"
            )
        metadata = self.metadata
        cache = Cache(folder or self.cache_folder, target=metadata["target"])
        if difference := first_difference(metadata["fingerprint"], cache.fingerprint):
            raise InputError(f"{cache.folder}: computed by other encoders than those of {self.folder}; {difference}")
        cache.require_sizes(metadata["dimensions"], self.folder)
        for run in self.members or [self]:
            require_features(cache, run.config)
        as_it_is, cache = cache, cache.with_names(metadata["labels"])
        match = self._match(cache)
        own, labels = match.post >= 0, match.cache.labels
        own_labels = metadata["labels_from"] == "splits"
        if own_labels:
            labels = np.where(own, match.labels, labels)
        seen = cache.with_assignments(labels, np.where(own, match.splits, -1 if folder is None else cache.splits))
        relabelled = int(np.sum(own & (labels != match.labels)))
        if splits:
            seen = seen.with_splits(splits, allow_unmatched=allow_unmatched)
            stranger = labels_unknown(seen, metadata["labels"])
            seen = seen.with_names(metadata["labels"])
        else:
            stranger = labels_unknown(as_it_is, metadata["labels"], ~own if own_labels else None)
        notes = [stranger, "" if metadata["exported"] else match.note(relabelled)]
        return RunCache(seen, match, "; ".join(filter(None, notes)))

    def _match(self, cache: Cache) -> PostMatch:
        unchanged = cache.manifest_sha256 == self.metadata["manifest_sha256"]
        return PostMatch(self._posts_in(cache), cache, unchanged=unchanged)

    def _posts_in(self, cache: Cache) -> list[RunPost]:
        """The run's posts; a run that kept no hashes has those of the cache where that is unchanged, an export none."""
        if self.metadata["exported"]:
            return []
        posts = read_posts(self.splits)
        if cache.manifest_sha256 != self.metadata["manifest_sha256"] or all(post.content for post in posts):
            return posts
        known = {post.id: post for post in posts_of(cache.with_splits(self.splits))}
        return [known.get(post.id, post) for post in posts]

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
        if cache.target != self.metadata["target"]:
            target = self.metadata["target"]
            raise InputError(f"{self.folder}: an unfinished run of the target {target!r}, not {cache.target!r}")
        cache = cache.with_names(self.metadata["labels"])
        match = self._match(cache)
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
        names = self.metadata["labels"]
        if self.metadata["target"] != cache.target or labels_unknown(cache, names):
            return "another target or other labels"
        cache = cache.with_names(names)
        match = self._match(cache)
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
                "target": cache.target,
                "labels": list(cache.label_names),
                "dimensions": asdict(dimensions),
                **metadata,
            }
        )

    def _write_splits(self, cache: Cache) -> None:
        write_text(self.splits, format_posts(posts_of(cache)))

    def save_model(self, model: Model, state: TrainingState) -> None:
        """The best epoch's weights, which say of which epoch they are."""
        save_model(self.folder / MODEL, model, state)

    def load_weights(self, model: Model, epoch: int) -> None:
        """Give a model the best epoch's weights, and set it to predict. Raises InputError for other weights."""
        load_weights(self.folder / MODEL, model, epoch=epoch)
        model.eval()

    def load_model(self, device: torch.device, module: nn.Module | None = None, batch: Batch | None = None) -> Model:
        """The best epoch's model, ready to predict. A run of a custom module needs that `module`; the weights are
        loaded into it, and its lazy layers get sizes from `batch`.

        Raises InputError if weights, run.json and config.yaml do not fit each other.
        """
        metadata, config = self.metadata, self.config
        if members := self.members:
            for member in members:
                if problem := member.unlike(metadata):
                    raise InputError(f"{member.folder}: {problem} than the ensemble {self.folder}; make it again")
            ensemble = load_together(members, Dimensions(**metadata["dimensions"]), device)
            ensemble.temperature = metadata["temperature"]
            return ensemble
        if config.model == OWN and module is None:
            what = f"a run of a module of your own, {metadata.get('module')}"
            raise InputError(f"{self.folder}: {what}; use it from Python with that module as `model`, docs/library.md")
        if config.model != OWN and module is not None:
            raise InputError(f"{self.folder}: a run of the model {config.model}; leave `model` out")
        try:
            if module is not None:
                self.require_module(module)
                model: Model = OwnModel(module, config, Dimensions(**metadata["dimensions"])).to(device).eval()
                if batch is not None:
                    ready(model, batch)
                load_weights(self.folder / MODEL, model, epoch=metadata.get("best_epoch"))
            else:
                epoch = metadata.get("best_epoch")
                model = load_model(self.folder / MODEL, config, metadata["dimensions"], device, epoch=epoch)
        except ValueError as error:
            raise InputError(f"{self.folder}: config.yaml does not fit run.json ({error})") from None
        model.temperature = metadata["temperature"]
        return model

    def unlike(self, other: dict[str, Any]) -> str:
        """What of a finished run keeps it from predicting together with one of this metadata; empty if nothing does."""
        ours = self.require_finished()
        if difference := first_difference(other["fingerprint"], ours["fingerprint"]):
            return f"of other encoders, {difference},"
        for name in ("target", "labels"):
            if ours[name] != other[name]:
                return f"another {name}" if name == "target" else "other labels, or in another order,"
        sizes = [Dimensions(**one["dimensions"]).of_features for one in (ours, other)]
        return "" if sizes[0] == sizes[1] else "other sizes of features"

    def require_module(self, module: nn.Module) -> None:
        """Raises InputError for a module of another class than the one that the run was trained with."""
        if (name := type(module).__name__) != self.metadata.get("module", name):
            raise InputError(f"{self.folder}: a run of the module {self.metadata['module']}, not {name}")

    def save_state(
        self, model: Model, optimizer: torch.optim.Optimizer, average: Model | None, state: TrainingState
    ) -> None:
        """Everything that the next epoch depends on. The random state is not in it: each epoch seeds its own."""
        save_state(self.folder / STATE, model, optimizer, average, state)

    def load_state(
        self, model: Model, optimizer: torch.optim.Optimizer, average: Model | None = None
    ) -> TrainingState | None:
        """Restore what `save_state` wrote; None if no epoch was finished. Raises InputError if it is damaged."""
        return load_state(self.folder / STATE, model, optimizer, average)

    def complete_model(self, model: Model, state: TrainingState) -> None:
        """Write the best weights, those of the state, where a kill came between the state's file and theirs."""
        path = self.folder / MODEL
        if state.best_epoch == state.epoch and (not path.is_file() or saved_epoch(path) not in (None, state.epoch)):
            self.save_model(model, state)


def load_together(members: Sequence[Run], dimensions: Dimensions, device: torch.device) -> Ensemble:
    """The models of finished runs as one, ready to predict. Raises InputError if they do not fit into memory together,
    and what `load_model` raises.
    """
    require_memory(2 * sum((member.folder / MODEL).stat().st_size for member in members), f"{len(members)} members")
    return Ensemble([member.load_model(device) for member in members], dimensions).eval()
