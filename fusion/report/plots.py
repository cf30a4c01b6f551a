"""Draws a run's curves and calibration as inline SVG, whose text and lines take the page's own colour."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fusion.evaluation.calibration import Bin
from fusion.evaluation.display import BLUE, ORANGE

_INK = "#010203"  # becomes the page's text colour, light or dark
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mscf",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def curves(epochs: Sequence[dict[str, Any]], best: int) -> list[tuple[str, Markup]]:
    """Validation scores, losses of classes and, where words were masked, of masked words: (title, SVG) each."""
    drawings = [
        ("Validation scores", [("val_accuracy", "accuracy"), ("val_weighted_f1", "weighted F1")]),
        ("Classification loss (nats)", [("loss_sentiment", "training"), ("val_loss", "validation")]),
    ]
    if any(line.get("hidden") for line in epochs):
        drawings.append(("Masked-language loss (nats)", [("loss_mlm", "training")]))
    return [(title, _curve(title, epochs, best, lines)) for title, lines in drawings]


def reliability_diagram(bins: Sequence[Bin]) -> Markup:
    """How often the predictions of each bin were right, against how sure the model was; the diagonal is perfect."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], linestyle=":", color=_INK, linewidth=1)
        axes.bar(
            [one.low for one in bins],
            [one.accuracy for one in bins],
            width=[one.high - one.low for one in bins],
            align="edge",
            color=BLUE,
            alpha=0.35,
            edgecolor=BLUE,
        )
        axes.plot([one.confidence for one in bins], [one.accuracy for one in bins], "o", color=ORANGE, markersize=5)
        for one in bins:
            axes.annotate(
                str(one.posts), ((one.low + one.high) / 2, one.accuracy), (0, 5), textcoords="offset points",
                ha="center", fontsize=8,
            )  # fmt: skip
        axes.set(xlim=(0.3, 1), ylim=(0, 1.08), xlabel="highest probability", ylabel="fraction of right predictions")
        return _inline(figure, "Reliability diagram")


def _curve(title: str, epochs: Sequence[dict[str, Any]], best: int, lines: list[tuple[str, str]]) -> Markup:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        axes = figure.subplots()
        for (key, label), (color, line, marker) in zip(lines, ((BLUE, "-", "o"), (ORANGE, "--", "s")), strict=False):
            values = [epoch[key] for epoch in epochs]
            numbers = [epoch["epoch"] for epoch in epochs]
            axes.plot(numbers, values, line, marker=marker, color=color, label=label, markersize=4)
        _mark_epoch(axes, best)
        axes.legend(frameon=False, fontsize=9)
        return _inline(figure, title)


def _mark_epoch(axes: Axes, best: int) -> None:
    axes.axvline(best, color=_INK, linestyle=":", linewidth=1, alpha=0.6, label="kept epoch")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.06, y=0.12)


def _inline(figure: Figure, title: str) -> Markup:
    """The figure as an <svg> element that scales with its column; no metadata, no size of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    for pattern, instead in (
        (r"<metadata>.*?</metadata>", ""),
        (r"<style.*?</style>", ""),  # would reach beyond the drawing
        (r' id="[a-z0-9.]+_\d+"', ""),  # nothing refers to these, and they'd stand in the page twice
        (r"font-family: [^;\"]*", "font-family: inherit"),
        (r'(?<=<svg)([^>]*?) width="[^"]*"', r"\1"),
        (r'(?<=<svg)([^>]*?) height="[^"]*"', r"\1"),
    ):
        text = re.sub(pattern, instead, text, flags=re.DOTALL)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
