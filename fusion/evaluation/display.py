"""Displays an evaluation: the rows of its table of scores, the table as text, and the colours of all plots."""

from typing import Any, NamedTuple

from fusion.evaluation.metrics import FEW, SCORES
from pipeline.posts.manifest import LABELS

BLUE, ORANGE = "#3f83d0", "#dd7a26"  # of like lightness on white and on black; apart for the colour-blind
GREY = "#8a8f98"


class ScoreRow(NamedTuple):
    """A row of the table of scores; `posts` where they are fewer than all, `interval` where there is one."""

    title: str
    scores: dict[str, float]
    interval: dict[str, list[float]]
    posts: int | None = None


def score_rows(result: dict[str, Any]) -> list[ScoreRow]:
    """The table of scores of an evaluation: the model, the controls, the linear probe."""
    probe, clean = result["versus_probe"], result["without_duplicates"]
    return [
        ScoreRow("this model", result, result["interval"]),
        *([ScoreRow("without duplicates", clean, {}, clean["posts"])] if clean else []),
        *(ScoreRow(name.replace("_", " "), scores, {}) for name, scores in result["controls"].items()),
        *([ScoreRow(f"linear probe, {probe.get('kind', 'both')}", probe["probe"], {})] if probe else []),
        *([ScoreRow("model - probe", probe["difference"], probe["interval"])] if probe else []),
    ]


def format_scores(result: dict[str, Any]) -> str:
    """The evaluation as lines for a terminal; shares in percent."""
    few = f"; under {FEW} posts scores say little" if result["posts_used"] < FEW else ""
    lines = [
        f"{result['split']}: {result['posts_used']} posts used, {result['posts_failed']} failed{few}",
        f"{'':20}" + "".join(f"{title:>16}" for title in SCORES.values()),
    ]
    for row in score_rows(result):
        lines.append(f"{row.title:20}" + "".join(f"{100 * row.scores[name]:>16.2f}" for name in SCORES))
        if row.interval:
            ends = [f"{100 * row.interval[name][0]:.1f} to {100 * row.interval[name][1]:.1f}" for name in SCORES]
            lines.append(f"{'  95 % interval':20}" + "".join(f"{text:>16}" for text in ends))
    kinds = "Wilson's for this model's accuracy, else " if result["interval"].get("accuracy_by") == "Wilson" else ""
    if result["versus_probe"] and result["versus_probe"]["interval"].get("accuracy_by") == "Bonett-Price":
        kinds = f"Bonett and Price's for the difference in accuracy, {kinds}"
    lines.append(f"intervals: {kinds}bootstrap over posts")
    if alone := result["versus_probe"]:
        counts = f"model {alone['only_model_right']}, probe {alone['only_probe_right']} posts"
        lines.append(f"right where the other is wrong: {counts}")
    else:
        lines.append(f"no linear probe: {result['without_probe']}")
    lines += [
        "",
        f"{'':10}{'precision':>11}{'recall':>9}{'F1':>9}{'posts':>8}   predicted "
        + " ".join(f"{label:>9}" for label in LABELS),
    ]
    for (label, scores), counts in zip(result["per_class"].items(), result["confusion"]["counts"], strict=True):
        shares = f"{scores['precision']:>11.1%}{scores['recall']:>9.1%}{scores['f1']:>9.1%}{scores['support']:>8}"
        lines.append(f"{label:10}{shares}{'':13}{' '.join(f'{count:>9}' for count in counts)}")
    return "\n".join(lines)
