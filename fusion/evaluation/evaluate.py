"""Evaluates a finished run: scores with intervals, shuffled-modality controls, the difference to the linear probe."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fusion.config import Config
from fusion.data.batches import read_batch
from fusion.evaluation.calibration import calibration_of, tempered
from fusion.evaluation.linear_probe import probe, probed_modalities
from fusion.evaluation.metrics import (
    FEW,
    LEVEL,
    RESAMPLES,
    Scores,
    bonett_price,
    bootstrap,
    confusion,
    intervals,
    score,
)
from fusion.evaluation.predict import mean_of_members, member_logs, mode_kept, predict_rows
from fusion.evaluation.ranking import ranking, ranking_intervals
from fusion.evaluation.threshold import predicted_at
from fusion.models.base import Model
from fusion.models.own import as_model
from fusion.models.precision import resolved
from fusion.run import Run, RunCache
from fusion.run_posts import PostMatch, posts_of
from pipeline.cache.reader import Cache
from pipeline.common.device import resolve_device
from pipeline.common.errors import InputError, option
from pipeline.common.files import sha256_of_file
from pipeline.posts.manifest import SPLITS

SHUFFLES = 3


def evaluate(
    run: Run | str | Path,
    device: torch.device | str = "auto",
    *,
    model: nn.Module | None = None,
    split: str = "test",
    splits: str | Path | None = None,
    cache: str | Path | None = None,
    allow_unmatched: bool = False,
    begin: Callable[[Path], None] = lambda path: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Score a finished run on one split; the keys of the result are those of `run_files.Evaluation`.

    model: the module, for a run of one's own; it gets the run's weights. splits, cache: a split file and a cache in
    place of the run's own.
    `begin` gets the file that the result belongs into, before any prediction; `say` gets a line for what is not as it
    was when the run was trained. Raises InputError if the run is not finished, the cache is of other encoders, or the
    posts were trained or selected on.
    """
    run = run if isinstance(run, Run) else Run(run)
    chosen = resolve_device(device) if isinstance(device, str) else device
    if run.require_finished().get("exported"):
        raise InputError(f"{run.folder}: an export knows no posts; evaluate the run that it was made of")
    opened = run.open_cache(cache, splits, allow_unmatched=allow_unmatched)
    shown, match = opened.cache, opened.match
    rows, left_out = _unseen(opened, split)
    of = {
        "cache": str(shown.folder.resolve()),
        "manifest_sha256": shown.manifest_sha256,
        "splits_sha256": sha256_of_file(Path(splits)) if splits else None,
        "labels": list(shown.label_names),
        "device": str(chosen),
        "precision": resolved(run.config, chosen),
        "weights_sha256": run.weights_sha256,
        "own_posts": _is_own(run, opened, rows, split, cache),
        "left_out": left_out,
    }
    begin(run.evaluation_file(split, of))
    left = f"{left_out} posts of split {split!r} are left out: this run was trained or selected on the same ones"
    for note in (opened.note, shown.splits_note, left if left_out else ""):
        if note:
            say(note)
    ours = run.load_model(chosen, model, read_batch(shown, rows[:2], chosen) if model is not None else None)
    reads = {"of": {**of, "test_reads": run.count_read(split)}}
    versus = partial(_versus_probe, run, opened, rows)
    threshold = run.metadata["validation"].get("threshold")
    return {"split": split, **reads, **_scored(ours, shown, rows, chosen, split, match, versus, threshold)}


def evaluate_model(
    model: nn.Module,
    cache: Cache | str | Path,
    device: torch.device | str = "auto",
    *,
    split: str = "test",
    config: Config | None = None,
) -> dict[str, Any]:
    """Score a model, or a module of one's own, on one split of a cache, as `evaluate` scores a run.

    What the model was trained on is not known here: it is taken to be the training split. config: of a module of one's
    own, whose precision and views are used.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    chosen = resolve_device(device) if isinstance(device, str) else device
    rows, match = cache.rows(split), PostMatch(posts_of(cache), cache)
    ours = as_model(model, cache, config).to(chosen)

    def versus(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
        return {"versus_probe": versus_probe(cache, cache, rows, truth, probabilities)}

    return {"split": split, **_scored(ours, cache, rows, chosen, split, match, versus)}


def _scored(
    model: Model,
    cache: Cache,
    rows: np.ndarray,
    device: torch.device,
    split: str,
    match: PostMatch,
    versus: Callable[[np.ndarray, np.ndarray], dict[str, Any]],
    threshold: float | None = None,
) -> dict[str, Any]:
    """All that is said of a model's predictions for these rows; `match` knows what it was trained on."""
    truth = cache.labels[rows].astype(np.int64)
    with mode_kept(model):
        members = member_logs(model, cache, rows, device)
    logs = mean_of_members(members)
    probabilities = np.exp(tempered(logs, model.temperature))
    predicted, names = probabilities.argmax(axis=1), cache.label_names
    classes = len(names)
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=range(classes), zero_division=0
    )
    fresh = ~match.repeats_training(rows)
    return {
        "posts_used": len(rows),
        "posts_failed": cache.failed(split),
        **score(truth, predicted, classes),
        **ranking(truth, probabilities),
        "interval": {**_intervals(truth, predicted, classes), **ranking_intervals(truth, probabilities)},
        "at_threshold": _at_threshold(threshold, truth, probabilities, names) if threshold is not None else None,
        "calibration": calibration_of(logs, truth, model.temperature),
        **({"members": [_scores(truth, np.exp(one)) for one in members]} if len(members) > 1 else {}),
        "per_class": {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for label, p, r, f, n in zip(names, precision, recall, f1, support, strict=True)
        },
        "confusion": {
            "rows": "truth",
            "columns": "predicted",
            "counts": confusion(truth, predicted, classes).tolist(),
        },
        "without_duplicates": {
            "posts": int(fresh.sum()),
            **score(truth[fresh], predicted[fresh], classes),
            **ranking(truth[fresh], probabilities[fresh]),
        }
        if fresh.any()
        else None,
        "controls": controls(model, cache, rows, device),
        **versus(truth, probabilities),
        "posts": [
            {
                "id": cache.ids[row],
                "label": names[label],
                "probabilities": dict(zip(names, map(float, values), strict=True)),
            }
            for row, label, values in zip(rows, truth, probabilities, strict=True)
        ],
    }


def _at_threshold(
    threshold: float, truth: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """The scores of deciding by the threshold that validation chose, in place of the likelier of two classes."""
    predicted = predicted_at(threshold, probabilities)
    return {
        "label": names[1],
        "threshold": threshold,
        **score(truth, predicted, 2),
        "interval": _intervals(truth, predicted, 2),
    }


def _intervals(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Any]:
    return {
        "level": LEVEL,
        "resamples": RESAMPLES,
        "accuracy_by": "Wilson",
        **intervals(truth, predicted, classes),
    }


def controls(
    model: Model, cache: Cache, rows: np.ndarray, device: torch.device, *, shuffles: int = SHUFFLES
) -> dict[str, Scores]:
    """Scores when every post has another post's image, or another post's text: mean of a few shuffles.

    A model that uses both modalities scores lower with either shuffled. Predictions are scored against the post that
    kept the other modality. Texts alone have the second one only, a single post none.
    """
    if len(rows) < 2:
        return {}  # there is no other post
    drawn = [derangement(len(rows), np.random.default_rng(number)) for number in range(shuffles)]
    truth = cache.labels[rows].astype(np.int64)
    shuffled = {
        "text_shuffled": [predict_rows(model, cache, rows[partner], device, image_rows=rows) for partner in drawn]
    }
    if cache.has_images:
        image = [predict_rows(model, cache, rows, device, image_rows=rows[partner]) for partner in drawn]
        shuffled = {"image_shuffled": image, **shuffled}
    return {name: _mean([_scores(truth, probabilities) for probabilities in each]) for name, each in shuffled.items()}


def _versus_probe(
    run: Run, opened: RunCache, rows: np.ndarray, truth: np.ndarray, probabilities: np.ndarray
) -> dict[str, Any]:
    """The comparison with the probe; it learns from the run's training posts, which another cache may not have."""
    source, match = opened.cache, opened.match
    if match.gone or match.changed:
        try:
            own = run.open_cache()
        except InputError as error:
            return {"versus_probe": None, "without_probe": str(error)}
        if own.match.gone or own.match.changed:
            return {"versus_probe": None, "without_probe": f"the probe needs the run's own posts; {own.note}"}
        source = own.cache
    else:
        source = source.with_assignments(np.where(match.post >= 0, source.labels, -1), match.splits)
    return {"versus_probe": versus_probe(source, opened.cache, rows, truth, probabilities)}


def versus_probe(
    cache: Cache, test: Cache, rows: np.ndarray, truth: np.ndarray, probabilities: np.ndarray
) -> dict[str, Any]:
    """The paired difference, model minus the linear probe of all modalities of the cache, on the rows of `test`."""
    modalities = probed_modalities(cache)[-1]
    linear = probe(cache, modalities, test=(test, rows))
    assert linear.test_probabilities is not None  # logistic regression has them
    predicted, classes = probabilities.argmax(axis=1), len(cache.label_names)
    right, probe_right = predicted == truth, linear.test_predictions == truth
    only_ours, only_probe = int((right & ~probe_right).sum()), int((~right & probe_right).sum())
    interval: dict[str, Any] = {
        **bootstrap(truth, predicted, classes, linear.test_predictions),
        **ranking_intervals(truth, probabilities, linear.test_probabilities),
    }
    # Where no post tells the two apart, or each does in one way, every resample is alike.
    if len(rows) < FEW or interval["accuracy"][0] == interval["accuracy"][1]:
        interval |= {"accuracy": bonett_price(only_ours, only_probe, len(rows)), "accuracy_by": "Bonett-Price"}
    probe_scores, ours = _scores(truth, linear.test_probabilities), _scores(truth, probabilities)
    return {
        "kind": modalities,
        "probe": probe_scores,
        "difference": {name: ours[name] - probe_scores[name] for name in ours},
        "interval": {"level": LEVEL, "resamples": RESAMPLES, **interval},
        "only_model_right": only_ours,
        "only_probe_right": only_probe,
    }


def _is_own(run: Run, opened: RunCache, rows: np.ndarray, split: str, cache: str | Path | None) -> bool:
    """Whether the rows are the run's own posts of this split: of another cache all of them, with the run's labels."""
    match = opened.match
    if not (match.post[rows] >= 0).all():
        return False
    if cache is None or Path(cache).resolve() == run.cache_folder.resolve():
        return True
    count = sum(post.split == split and not post.failed for post in match.posts)
    return len(rows) == count and bool((opened.cache.labels[rows] == match.labels[rows]).all())


def _scores(truth: np.ndarray, probabilities: np.ndarray) -> Scores:
    """All scores of probabilities (N, classes)."""
    predicted = probabilities.argmax(axis=1)
    return {**score(truth, predicted, probabilities.shape[1]), **ranking(truth, probabilities)}


def derangement(count: int, random: np.random.Generator) -> np.ndarray:
    """A permutation in which no post (of two or more) keeps its place."""
    order = random.permutation(count)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def _mean(scores: list[Scores]) -> Scores:
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}


def _unseen(opened: RunCache, split: str) -> tuple[np.ndarray, int]:
    """The rows of a split, and how many are left out because the run was trained or selected on the same post.

    Raises InputError if a split file names the run's own training or validation posts, and if no row is left.
    """
    match = opened.match
    try:
        rows = opened.cache.rows(split)
    except InputError as error:  # why there is none, where the cache is not what it was
        raise InputError("; ".join(filter(None, (str(error), opened.note)))) from None
    used = match.used_as(rows)
    seen = np.isin(used, (SPLITS.index("train"), SPLITS.index("val"))) & (used != SPLITS.index(split))
    named = rows[seen & (match.post[rows] >= 0)]
    if len(named) or seen.all():
        first = opened.cache.ids[(named if len(named) else rows)[0]]
        raise InputError(
            f"{int(seen.sum())} posts of split {split!r}, {first} among them, were trained or selected on by this run; "
            f"leave them out, or score {option('split', 'train')} or val"
        )
    return rows[~seen], int(seen.sum())
