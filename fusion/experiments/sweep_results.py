"""Reports a sweep: a row for each trial, the best one's configuration, a plot of importance."""

from pathlib import Path
from typing import Any

from fusion.config import save_config
from fusion.experiments.search_space import Space, optuna
from fusion.run import Run
from pipeline.common.errors import InputError
from pipeline.common.files import csv_text, write_text
from pipeline.common.folders import remove_file

TABLE, BEST, IMPORTANCE = "trials.csv", "best.yaml", "importance.png"
SCORE = "val_weighted_f1"
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def trial_folder(out: Path, number: int) -> Path:
    """A trial's run folder."""
    return out / f"trial-{number:04d}"


def trial_rows(study: "optuna.Study", space: Space) -> list[dict[str, Any]]:
    """A row for each trial. A pruned trial's score is its best epoch's so far; a failed one has none."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        epochs = trial.intermediate_values
        score = max(epochs.values(), default=None) if trial.state.name == "PRUNED" else trial.value
        row = {
            "trial": trial.number,
            "state": _STATES[trial.state.name],
            SCORE: score,
            "epochs": max(epochs, default=0),
        }
        settings = {name: trial.params.get(name) for name in space}
        rows.append({**row, **settings, "reason": trial.user_attrs.get("reason", "")})
    return rows


def format_trials(rows: list[dict[str, Any]]) -> str:
    """The table for people, the best on top."""
    ranked = sorted(rows, key=lambda row: (row["state"] != "complete", -(row[SCORE] or 0)))
    cells = [list(rows[0])]
    for row in ranked:
        cells.append(
            [f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row.values()]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


def write_results(study: "optuna.Study", out: Path, space: Space) -> None:
    """The table and the best configuration so far; of all trials' weights, only the best one's are kept."""
    rows = trial_rows(study, space)
    write_text(out / TABLE, csv_text(list(rows[0]), [list(row.values()) for row in rows]))
    best = best_trial(study)
    for row in rows:
        if row["trial"] != best:
            for name in ("model.safetensors", "train_state.safetensors"):
                remove_file(trial_folder(out, row["trial"]) / name)
    if best is not None:
        save_config(out / BEST, Run(trial_folder(out, best)).config)


def best_trial(study: "optuna.Study") -> int | None:
    """The completed trial of the highest score; of equals, the first."""
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    return max(complete, key=lambda trial: (trial.value, -trial.number)).number if complete else None


def summary(study: "optuna.Study", out: Path, space: Space) -> dict[str, Any]:
    """The summary of a sweep; draws the plot. Raises InputError with the first failure if no trial was completed."""
    best = best_trial(study)
    done = study.get_trials(deepcopy=False)
    counts = {word: sum(trial.state.name == state for trial in done) for state, word in _STATES.items()}
    if best is None:
        reason = next((trial.user_attrs["reason"] for trial in done if "reason" in trial.user_attrs), "")
        raise InputError(f"{out}: none of {len(done)} trials was completed; the first failure: {reason}")
    shares = importance(study)
    if shares:
        from fusion.experiments.importance import draw_importance

        draw_importance(shares, out / IMPORTANCE)
    trial = study.trials[best]
    chosen = {"best_trial": best, SCORE: trial.value, "best": trial.params}
    return {"trials": counts, **chosen, "importance": shares, "rows": trial_rows(study, space)}


def importance(study: "optuna.Study") -> dict[str, float]:
    """Each setting's share of the variance between completed trials (PED-ANOVA); empty while fewer than two differ."""
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len({trial.value for trial in complete}) < 2:
        return {}
    return {name: float(share) for name, share in optuna.importance.get_param_importances(study).items()}


def describe_trial(study: "optuna.Study", number: int) -> str:
    """A trial's outcome in one line."""
    trial = study.get_trials(deepcopy=False)[number]
    settings = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial.params.items())
    reached = trial.value if trial.value is not None else max(trial.intermediate_values.values(), default=0)
    outcome = trial.user_attrs.get("reason") or f"weighted F1 {reached:.4f}"
    best = best_trial(study)
    so_far = f"; best {study.trials[best].value:.4f} (trial {best})" if best is not None else ""
    return f"trial {number} {_STATES[trial.state.name]}: {outcome}; {settings}{so_far}"
