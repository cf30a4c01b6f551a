"""Draws a table's comparison as a PNG: each row's difference to the full model, its interval, and the paper's."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fusion.evaluation.display import BLUE, GREY, ORANGE
from fusion.experiments.tables.markdown import Line, reference_title
from fusion.experiments.tables.rows import FULL
from pipeline.common.files import write_bytes

_LONGEST = 60  # characters of a title, for which the figure has room


def draw_differences(result: dict[str, Any], lines: Sequence[Line], path: Path) -> bool:
    """Accuracy minus the full model's, in points, a row a line; False, and no file, if there is none to compare."""
    compared = [line for line in lines if line.difference]
    if not compared:
        return False
    data = result["published"]
    own = next((line.row["published"].get(data) for line in lines if line.row["key"] == FULL), None)
    figure = Figure(figsize=(8.5, 1.2 + 0.36 * len(compared)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=GREY, linewidth=1)
    for place, line in enumerate(compared):
        assert line.difference
        low, high = (100 * end for end in line.difference.interval["accuracy"])
        middle = 100 * line.difference.mean["accuracy"]
        axes.plot([low, high], [place, place], "-", color=BLUE, linewidth=2)
        axes.plot(middle, place, "o", color=BLUE, label="ours, 95 % interval" if place == 0 else None)
        published = line.row["published"].get(data)
        if published and own:
            labelled = any(text == "the paper's" for text in axes.get_legend_handles_labels()[1])
            step = published[0] - own[0]
            axes.plot(step, place, "D", mfc="none", color=ORANGE, label=None if labelled else "the paper's")
    axes.set_yticks(range(len(compared)), [_as_written(line.row["title"]) for line in compared])
    axes.invert_yaxis()
    axes.set_xlabel(f"accuracy minus {_as_written(reference_title(result))}'s, points")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_bytes(path, picture.getvalue())
    return True


def _as_written(title: str) -> str:
    """A title that fits, with its dollar signs, which would begin a formula."""
    short = title if len(title) <= _LONGEST else f"{title[: _LONGEST - 3]}..."
    return short.replace("$", r"\$")
