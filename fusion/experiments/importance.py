"""Draws the importance of each setting of a sweep, as a PNG."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from fusion.evaluation.display import BLUE
from pipeline.common.files import write_bytes


def draw_importance(shares: dict[str, float], path: Path) -> None:
    """A bar for each setting, the most important on top."""
    names = sorted(shares, key=shares.__getitem__)
    figure = Figure(figsize=(6, 1 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, [shares[name] for name in names], color=BLUE, height=0.6)
    axes.bar_label(bars, [f"{shares[name]:.2f}" for name in names], padding=3)
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("share in how validation weighted F1 differs (PED-ANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_bytes(path, picture.getvalue())
