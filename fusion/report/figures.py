"""A run folder in, one PNG out: its curves and the confusion matrix of an evaluation."""

import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from fusion.run import Run
from pipeline.common.files import write_bytes
from pipeline.posts.manifest import LABELS

plt.switch_backend("agg")  # figures are files; no window system needed

_BLUE, _ORANGE, _GREY = "#2f6db3", "#d9772b", "#8a8f98"


def draw_run(run: Run, evaluation: dict[str, Any], path: Path) -> None:
    """Losses, validation scores and the confusion matrix, side by side."""
    epochs = run.metrics()
    masked = any(line["hidden"] for line in epochs)
    figure, panels = plt.subplots(1, 4 if masked else 3, figsize=(16 if masked else 12.5, 3.8), layout="constrained")
    scores, losses, *words, matrix = panels
    _curve(scores, epochs, "val_accuracy", "accuracy", _BLUE)
    _curve(scores, epochs, "val_weighted_f1", "weighted F1", _ORANGE)
    scores.set_title("Validation scores")
    _curve(losses, epochs, "loss_sentiment", "training", _BLUE)
    _curve(losses, epochs, "val_loss", "validation", _ORANGE)
    losses.set_title("Sentiment loss (nats)")
    for axes in words:
        _curve(axes, epochs, "loss_mlm", "training", _BLUE)
        axes.set_title("Masked-language loss (nats)")
    for axes in (scores, losses, *words):
        axes.axvline(run.metadata["best_epoch"], color=_GREY, linestyle=":", linewidth=1, label="kept epoch")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    _confusion(matrix, np.array(evaluation["confusion"]["counts"]))
    matrix.set_title(f"{evaluation['split'].capitalize()} posts (accuracy {evaluation['accuracy']:.3f})")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    plt.close(figure)
    write_bytes(path, picture.getvalue())


def _curve(axes: Axes, epochs: list[dict[str, Any]], key: str, label: str, color: str) -> None:
    axes.plot(
        [line["epoch"] for line in epochs], [line[key] for line in epochs], "o-", color=color, label=label, markersize=3
    )


def _confusion(axes: Axes, counts: np.ndarray) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        text = f"{count}\n{shares[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center", color="white" if shares[row, column] > 0.5 else "black")
    axes.set_xticks(range(len(LABELS)), LABELS)
    axes.set_yticks(range(len(LABELS)), LABELS)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
