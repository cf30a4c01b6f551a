"""Displays an evaluation: the rows of its table of scores, the table as text, and the colours of all plots."""

from collections.abc import Callable
from statistics import mean, stdev
from typing import Any, NamedTuple

from fusion.evaluation.metrics import FEW, SCORES
from fusion.evaluation.ranking import RANKING

MOST_CLASSES = 12  # of which a table or a matrix can be read
MOST_CONFUSIONS = 10
_OF_MEMBERS: tuple[tuple[str, Callable[[list[float]], float]], ...] = (("mean", mean), ("deviation", stdev))

BLUE, ORANGE = "#3f83d0", "#dd7a26"  # of like lightness on white and on black; apart for the colour-blind
GREY = "#8a8f98"


class ScoreRow(NamedTuple):
    """A row of the table of scores; `posts` where they are fewer than all, `interval` where there is one."""

    title: str
    scores: dict[str, float]
    interval: dict[str, list[float]]
    posts: int | None = None


def score_rows(result: dict[str, Any]) -> list[ScoreRow]:
    """The table of scores of an evaluation: the model, its decisions by a threshold, the controls, the probe."""
    probe, clean, decided = result["versus_probe"], result["without_duplicates"], result.get("at_threshold")
    members = result.get("members") or []
    return [
        ScoreRow("this model", result, result["interval"]),
        *(ScoreRow(f"members, {what}", of_members(members, get), {}) for what, get in _OF_MEMBERS if members),
        *([ScoreRow(f"at threshold {decided['threshold']:.3f}", decided, decided["interval"])] if decided else []),
        *([ScoreRow("without duplicates", clean, {}, clean["posts"])] if clean else []),
        *(ScoreRow(name.replace("_", " "), scores, {}) for name, scores in result["controls"].items()),
        *([ScoreRow(f"linear probe, {probe.get('kind', 'both')}", probe["probe"], {})] if probe else []),
        *([ScoreRow("model - probe", probe["difference"], probe["interval"])] if probe else []),
    ]


def of_members(members: list[dict[str, float]], get: Callable[[list[float]], float]) -> dict[str, float]:
    """The mean or the deviation of each score that all members have."""
    common = [name for name in (*SCORES, *RANKING) if all(one.get(name) is not None for one in members)]
    return {name: get([one[name] for one in members]) for name in common}


def format_scores(result: dict[str, Any]) -> str:
    """The evaluation as lines for a terminal; shares in percent."""
    few = f"; under {FEW} posts scores say little" if result["posts_used"] < FEW else ""
    titles = shown_scores(result)
    lines = [
        f"{result['split']}: {result['posts_used']} posts used, {result['posts_failed']} failed{few}",
        f"{'':20}" + "".join(f"{title:>18}" for title in titles.values()),
    ]
    for row in score_rows(result):
        shares = [row.scores.get(name) for name in titles]
        lines.append(f"{row.title:20}" + "".join(f"{'':>18}" if x is None else f"{100 * x:>18.2f}" for x in shares))
        if row.interval:
            ends = [row.interval.get(name) for name in titles]
            texts = ["" if end is None else f"{100 * end[0]:.1f} to {100 * end[1]:.1f}" for end in ends]
            lines.append(f"{'  95 % interval':20}" + "".join(f"{text:>18}" for text in texts))
    if not result["without_duplicates"]:
        lines.append("without duplicates: every post repeats a training post")
    classes = result["per_class"].values()
    if absent := sum(not one["support"] for one in classes):
        without = f"{absent} of {len(classes)} classes without a post here"
        lines.append(f"{without}: they count as 0 in macro F1, and not in AUROC and average precision")
    if decided := result.get("at_threshold"):
        line = f"at threshold: {decided['label']!r} where its probability is at least {decided['threshold']:.3f}"
        lines.append(f"{line}, chosen on validation; all else, and `predict`, by the likelier class")
    if fitted := result.get("calibration"):
        text = "{before[ece]:.2%} before and {after[ece]:.2%} after temperature {temperature:.3f}".format(**fitted)
        lines.append(f"calibration error: {text}")
    kinds = "Wilson's for this model's accuracy, else " if result["interval"].get("accuracy_by") == "Wilson" else ""
    if result["versus_probe"] and result["versus_probe"]["interval"].get("accuracy_by") == "Bonett-Price":
        kinds = f"Bonett and Price's for the difference in accuracy, {kinds}"
    lines.append(f"intervals: {kinds}bootstrap over posts")
    if alone := result["versus_probe"]:
        counts = f"model {alone['only_model_right']}, probe {alone['only_probe_right']} posts"
        lines.append(f"right where the other is wrong: {counts}")
    else:
        lines.append(f"no linear probe: {result['without_probe']}")
    return "\n".join([*lines, "", *_class_lines(result)])


def shown_scores(result: dict[str, Any]) -> dict[str, str]:
    """The scores that an evaluation has, with their titles."""
    return {name: title for name, title in {**SCORES, **RANKING}.items() if result.get(name) is not None}


def top_confusions(result: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(label, predicted, posts) of the commonest mistakes."""
    names, counts = list(result["per_class"]), result["confusion"]["counts"]
    found = [
        (names[row], names[column], count)
        for row, cells in enumerate(counts)
        for column, count in enumerate(cells)
        if count and row != column
    ]
    return sorted(found, key=lambda mistake: -mistake[2])[:MOST_CONFUSIONS]


def _class_lines(result: dict[str, Any]) -> list[str]:
    """Precision, recall and F1 of each class beside the confusion matrix; of many classes the worst, and the commonest
    mistakes.
    """
    names, few = list(result["per_class"]), len(result["per_class"]) <= MOST_CLASSES
    worst = sorted(names, key=lambda name: result["per_class"][name]["f1"])[:MOST_CLASSES]
    listed = names if few else worst
    wide = max(9, *(len(name) for name in listed))
    head = f"{'':{wide}} {'precision':>11}{'recall':>9}{'F1':>9}{'posts':>8}"
    lines = [head + ("   predicted " + " ".join(f"{name:>9}" for name in names) if few else "")]
    for name in listed:
        scores = result["per_class"][name]
        line = f"{name:{wide}} {scores['precision']:>11.1%}{scores['recall']:>9.1%}{scores['f1']:>9.1%}"
        line += f"{scores['support']:>8}"
        if few:
            counts = result["confusion"]["counts"][names.index(name)]
            cells = zip(names, counts, strict=True)
            line += f"{'':13}" + " ".join(f"{count:>{max(9, len(column))}}" for column, count in cells)
        lines.append(line)
    if not few:
        lines += [f"the {len(worst)} of {len(names)} classes with the lowest F1", "", "commonest mistakes:"]
        lines += [
            f"  {count} posts of {name} were predicted as {other}" for name, other, count in top_confusions(result)
        ]
    return lines
