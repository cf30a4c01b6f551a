"""Shows a table to people: Markdown with intervals, and sentences that say what the posts support.

Nothing is trained or read beside the JSON, so a table can be made again, and looked at in other ways, at any time.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion.evaluation.compare import Difference, compare
from fusion.evaluation.metrics import LEVEL, SCORES, Scores, score
from fusion.experiments.tables.rows import FULL
from pipeline.common.markup import escaped


@dataclass(frozen=True)
class Line:
    """What is to be said of one row; `difference` is None for the row that others are compared with, and without
    repeats.
    """

    row: dict[str, Any]
    scores: list[Scores]  # by repeat
    difference: Difference | None

    @property
    def title(self) -> str:
        """For Markdown."""
        return escaped(self.row["title"])


def lines_of(result: dict[str, Any]) -> list[Line]:
    """The rows with predictions, each with its scores and its difference to those of the reference: for the same seeds,
    where both have seeds.
    """
    truth, classes = _codes(result["labels"]), len(result["classes"])
    reference = {
        repeat["seed"]: _codes(repeat["predicted"])
        for row in result["rows"]
        if row["key"] == _reference(result)
        for repeat in row["repeats"]
    }
    lines = []
    for row in result["rows"]:
        predictions = {repeat["seed"]: _codes(repeat["predicted"]) for repeat in row["repeats"]}
        if not predictions:
            continue
        seeds = [
            seed
            for seed in dict.fromkeys([*reference, *predictions])
            if (seed in predictions or None in predictions) and (seed in reference or None in reference)
        ]
        if len(seeds) > 1:
            seeds = [seed for seed in seeds if seed is not None]
        difference = None
        if seeds and row["key"] != _reference(result):
            ours, theirs = (
                np.array([codes[seed] if seed in codes else codes[None] for seed in seeds])
                for codes in (predictions, reference)
            )
            difference = compare(truth, ours, theirs, classes)
        lines.append(Line(row, [score(truth, codes, classes) for codes in predictions.values()], difference))
    return lines


def _reference(result: dict[str, Any]) -> str:
    """The key of the row that all others are compared with."""
    key: str = result.get("reference", FULL)
    return key


def reference_title(result: dict[str, Any]) -> str:
    """What sentences and headings call that row."""
    key = _reference(result)
    return "the full model" if key == FULL else next(row["title"] for row in result["rows"] if row["key"] == key)


def markdown(result: dict[str, Any], lines: Sequence[Line] | None = None) -> str:
    """The table, what the posts support, and what each row costs."""
    lines = lines_of(result) if lines is None else lines
    parts = [_scores_table(result, lines), support(result, lines), _costs_table(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def support(result: dict[str, Any], lines: Sequence[Line]) -> str:
    """Plain sentences: which differences are beyond their intervals, and how small one could be seen."""
    compared = [(line, line.difference) for line in lines if line.difference]
    if not compared:
        return ""
    posts, repeats = len(result["labels"]), max(len(line.scores) for line in lines)
    beyond = [(line, found) for line, found in compared if found.excludes_zero("accuracy")]
    other = escaped(reference_title(result))
    sentences = [_sentence(line, found, other) for line, found in beyond]
    within = [line.title for line, found in compared if not found.excludes_zero("accuracy")]
    papers = [found for line, found in compared if result["published"] in line.row["published"]]
    ends = [found.interval["accuracy"] for found in papers or [found for _, found in compared]]
    width = statistics.median((high - low) / 2 for low, high in ends)
    parts = ["**What the posts support.**", *sentences]
    if within:
        parts.append(f"No difference in accuracy to {other} is shown for: {'; '.join(within)}.")
    parts.append(
        f"With {posts} posts and {repeats} {'repeat' if repeats == 1 else 'repeats'}, the interval of a row"
        f"{' of the paper' if papers else ''} reaches about {100 * width:.1f} points to either side, so a smaller step "
        f"can't be seen{_steps(result, lines)}."
    )
    if beyond and len(compared) > 1:
        parts.append(
            f"Of {len(compared)} comparisons at {LEVEL:.0%}, about {(1 - LEVEL) * len(compared):.1f} would look like a "
            "difference by chance."
        )
    if lacking := [escaped(row["title"]) for row in result["rows"] if not row["repeats"]]:
        parts.append(f"Missing: {'; '.join(lacking)}.")
    if failed := [f"{escaped(run['title'])} ({escaped(run['why'])})" for run in result.get("failed", [])]:
        parts.append(f"Failed: {'; '.join(failed)}.")
    if left_out := [f"{escaped(row['title'])} ({escaped(row['why'])})" for row in result.get("left_out", [])]:
        parts.append(f"Left out: {'; '.join(left_out)}.")
    return " ".join(parts)


def _sentence(line: Line, found: Difference, other: str) -> str:
    low, high = found.interval["accuracy"]
    side = "above" if found.mean["accuracy"] > 0 else "below"
    return (
        f"{line.title[0].upper()}{line.title[1:]}: {abs(100 * found.mean['accuracy']):.1f} points of accuracy {side} "
        f"{other}, beyond its interval ({_signed(low)} to {_signed(high)})."
    )


def _steps(result: dict[str, Any], lines: Sequence[Line]) -> str:
    """How large the paper's own steps in this table are."""
    data = result["published"]
    figures = {line.row["key"]: line.row["published"][data][0] for line in lines if data in line.row["published"]}
    steps = [abs(figure - figures[FULL]) for key, figure in figures.items() if key != FULL and FULL in figures]
    if not steps:
        return ""
    span = f"{min(steps):.1f} to {max(steps):.1f}" if len(steps) > 1 else f"{steps[0]:.1f}"
    return f"; the paper's steps in this table are {span} points, of one run each"


def _scores_table(result: dict[str, Any], lines: Sequence[Line]) -> str:
    data = result["published"]
    published = any(data in line.row["published"] for line in lines)
    head = ["percent", *SCORES.values(), "validation accuracy", *(["paper: accuracy / F1"] if published else [])]
    short = "full" if _reference(result) == FULL else escaped(reference_title(result))
    head += [f"minus {short}: accuracy", f"minus {short}: weighted F1", f"right alone: it / {short}"]
    rows = [head, ["---"] * len(head)]
    group = lines[0].row["group"]
    for line in lines:
        if line.row["group"] != group:
            group = line.row["group"]
            rows.append([f"*{escaped(group)}*", *[""] * (len(head) - 1)])
        cells = [f"**{line.title}**" if line.row["key"] == _reference(result) else line.title]
        cells += [_mean([one[name] for one in line.scores]) for name in SCORES]
        validation = [repeat["validation"]["accuracy"] for repeat in line.row["repeats"] if "validation" in repeat]
        cells.append(_mean(validation) if validation and line.row["kind"] != "shuffled" else "")
        if published:
            figures = line.row["published"].get(data)
            cells.append(f"{figures[0]:.2f} / {figures[1]:.2f}" if figures else "")
        cells += _differences(line.difference)
        rows.append(cells)
    return _piped(rows)


def _differences(found: Difference | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    shown = [
        f"{_signed(found.mean[name])} ({_signed(found.interval[name][0])} to {_signed(found.interval[name][1])})"
        for name in ("accuracy", "weighted_f1")
    ]
    return [*shown, f"{found.only_ours:.1f} / {found.only_other:.1f}"]


def _costs_table(lines: Sequence[Line]) -> str:
    trained = [line for line in lines if line.row["kind"] == "trained"]
    if not trained:
        return ""
    rows = [["", "trained parameters", "frozen in training", "repeats", "seconds a repeat", "best epoch"], ["---"] * 6]
    for line in trained:
        repeats = line.row["repeats"]
        parameters = repeats[0]["parameters"]
        seconds, epochs = ([repeat[key] for repeat in repeats] for key in ("seconds", "best_epoch"))
        rows.append(
            [
                line.title,
                f"{parameters['trainable']:,}",
                f"{parameters['frozen_in_training']:,}",
                str(len(repeats)),
                f"{statistics.median(seconds):.0f}",
                f"{statistics.median(epochs):g}",
            ]
        )
    return _piped(rows)


def _piped(rows: list[list[str]]) -> str:
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in rows)


def _mean(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _codes(digits: str) -> np.ndarray:
    return np.array([int(digit) for digit in digits], dtype=np.int64)
