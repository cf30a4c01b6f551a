"""The rows of a study: any models, presets and probes, and the ensembles of their seeds.

A row is written as a name and settings: `pooled`, `dnn-lr`, `packaged+mlm=false`, `probe`. A preset stands for itself,
a model on pooled vectors for the preset `pooled` with this model, another model for the preset `packaged` with it, and
one that is fitted, not trained, for itself.
"""

import re
from collections.abc import Sequence

from fusion.config import Config, load_config
from fusion.evaluation.linear_probe import KINDS, LOGISTIC, MODALITIES
from fusion.experiments.tables.rows import Row
from fusion.models.registry import model_class
from fusion.names import model_modules, pooled_models, presets
from pipeline.common.errors import InputError, option

MAJORITY = "majority"
_LONGEST_KEY, _LONGEST_TITLE = 100, 200  # characters, as a table's file may have them
_PROBES = {
    "probe": ("probe-both", "linear probe, both"),
    **{f"probe-{one}": (f"probe-{one}", f"linear probe, {one}") for one in MODALITIES[:2]},
    **{f"probe-{kind}": (f"probe-{kind}", f"probe {kind}, both") for kind in KINDS if kind != LOGISTIC},
}


def study_rows(models: Sequence[str], ensembles: Sequence[str]) -> list[Row]:
    """A row for each entry of `models`, then one for each entry of `ensembles`: rows joined by commas, whose seeds'
    probabilities are averaged. Raises InputError for what is no row, and for one that is named twice.
    """
    rows = [_row(text) for text in models]
    of_text = dict(zip(models, rows, strict=True))
    for text in ensembles:
        members = text.split(",")
        if unknown := [name for name in members if name not in of_text or of_text[name].kind != "trained"]:
            raise InputError(f"{option('ensemble', text)}: {unknown[0]!r} is no trained row of {option('models')}")
        parts = [of_text[name] for name in members]
        title = f"mean of the seeds of {' and '.join(row.title for row in parts)}"
        key = f"mean-{'-'.join(row.key for row in parts)}"[:_LONGEST_KEY]
        rows.append(
            Row(
                key, title[:_LONGEST_TITLE], kind="ensemble", group="ensembles", members=tuple(row.key for row in parts)
            )
        )
    keys = [row.key for row in rows]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"{option('models')}: {twice[0]} is named twice")
    return rows


def _row(text: str) -> Row:
    name, *settings = text.split("+")
    if name == MAJORITY or name in _PROBES:
        if settings:
            raise InputError(f"{option('models', text)}: {name} has no settings")
        key, title = (MAJORITY, "majority class") if name == MAJORITY else _PROBES[name]
        return Row(key, title, kind="majority" if name == MAJORITY else "probe", group="floors")
    config = _config(text, name, tuple(settings))
    title = f"preset {name}" if name in presets() else model_class(name).title
    values = config.model_dump()
    key = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:_LONGEST_KEY]
    del values["seed"]
    whole = ", ".join([title, *(entry.replace("=", " ") for entry in settings)])
    return Row(key, whole[:_LONGEST_TITLE], values, group="models")


def _config(text: str, name: str, settings: tuple[str, ...]) -> Config:
    if name in presets():
        return load_config(name, settings=settings)
    if name in model_modules():
        preset = "pooled" if name in pooled_models() else "packaged"
        fitted = model_class(name).fitted_alone  # reads none of a training's settings
        return load_config(None if fitted else preset, settings=(f"model={name}", *settings))
    known = ", ".join([*presets(), *model_modules(), *_PROBES, MAJORITY])
    raise InputError(f"{option('models', text)}: {name!r} is no preset, model or probe; known are {known}")
