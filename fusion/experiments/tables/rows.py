"""The rows of the paper's tables: what each is called, which settings it trains, what the paper published for it.

The published figures are those of Liu et al. (2024), tables 2, 3 and 4, in percent: accuracy and F1, by data set.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from fusion.config import Config, load_config
from fusion.models.registry import model_class
from fusion.names import baselines

Published = dict[str, tuple[float, float]]
# trained: with the row's settings; majority, probe: baselines without a seed; shuffled: the full model's predictions;
# ensemble: the mean of the probabilities of all seeds of trained rows
Kind = Literal["trained", "majority", "probe", "shuffled", "ensemble"]
TABLES = ("2", "3", "4", "beyond")
STUDY = "study"  # a table of any models
DATA_SETS = ("mvsa-single", "mvsa-multiple")
FULL = "full"  # the row that all others of a table of the paper are compared with


@dataclass(frozen=True)
class Row:
    """A row of a table. `key` names its folder and is the same in all tables; `settings` go over the base. `members`:
    the keys of the rows that an ensemble is of.
    """

    key: str
    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    published: Published = field(default_factory=dict)
    kind: Kind = "trained"
    group: str = "the paper's"
    members: tuple[str, ...] = ()

    def config(self, base: Config) -> Config:
        """What to train. Raises InputError where the base excludes the settings."""
        values = {**base.model_dump(), **self.settings}
        return load_config(settings=tuple(f"{key}={_yaml(value)}" for key, value in values.items()))


def rows_of(table: str, base: Config, *, extra: bool = True, with_baselines: bool = False) -> list[Row]:
    """The rows of a table, the full model first. `extra`: also those that the paper lacks and a careful reader wants.

    A row whose settings are the base's own is the full model.
    """
    rows = {"2": _table_2, "3": _table_3, "4": _table_4, "beyond": _beyond}[table](base)
    if extra:
        rows += [*_EXTRA.get(table, []), *(_presets() if table == "2" else [])]
    if with_baselines:
        rows += [
            Row(name, model_class(name).title, {"model": name}, _BASELINES.get(name, {}), group="same frozen features")
            for name in sorted(baselines(), key=[*_BASELINES, *baselines()].index)  # the paper's in its order
        ]
    return rows


def _both(single: tuple[float, float], multiple: tuple[float, float]) -> Published:
    return {"mvsa-single": single, "mvsa-multiple": multiple}


_PAPER = _both((76.89, 75.83), (72.06, 69.37))


def _full(title: str = "the full model") -> Row:
    return Row(FULL, title, published=_PAPER)


def _table_2(base: Config) -> list[Row]:
    separate = Row(
        "separate",
        "a Transformer of its own for each pass",
        {"share_transformer": False},
        _both((74.67, 73.78), (71.12, 66.89)),
    )
    return [_full("the full model, one shared Transformer"), separate]


def _table_3(base: Config) -> list[Row]:
    published = {
        0.15: _both((75.35, 74.90), (71.23, 68.55)),
        0.20: _both((75.78, 75.22), (71.64, 69.26)),
        0.25: _PAPER,
        0.30: _both((76.22, 75.03), (71.47, 69.02)),
    }
    own = Row(FULL, f"mask rate {base.mask_rate:.0%}, the full model", published=published.get(base.mask_rate, {}))
    others = [
        Row(f"mask-{rate:.0%}".removesuffix("%"), f"mask rate {rate:.0%}", {"mask_rate": rate}, figures)
        for rate, figures in published.items()
        if rate != base.mask_rate
    ]
    return [own, *others]


def _table_4(base: Config) -> list[Row]:
    return [
        _full(),
        Row("no-mlm", "without the masked-language loss", {"mlm": False}, _both((75.33, 74.52), (70.82, 66.18))),
        Row(
            "no-cross",
            "without cross-modal attention",
            {"cross_attention": False},
            _both((75.56, 74.63), (71.64, 67.72)),
        ),
        Row(
            "no-mlm-no-cross",
            "without both",
            {"mlm": False, "cross_attention": False},
            _both((74.44, 72.33), (70.58, 67.19)),
        ),
    ]


def _beyond(base: Config) -> list[Row]:
    options: list[tuple[str, str, dict[str, Any]]] = [
        *([("no-mlm", "without the masked-language loss", {"mlm": False})] if base.mlm else []),
        ("label-rule", "label rule as the output layer, heads for text and image", {"label_rule": True}),
        *((f"logit-adjustment-{t}", f"logit adjustment {t}", {"logit_adjustment": t}) for t in (0.25, 0.5, 1.0)),
        *((f"modality-dropout-{p}", f"modality dropout {p}", {"modality_dropout": p}) for p in (0.1, 0.2)),
        ("segments", "segment embeddings", {"segment_embeddings": True}),
        ("views", "views of an image sampled in training, averaged in answers", {"views": "sample"}),
    ]
    full = _full() if base.mlm else Row(FULL, "the full model, without the masked-language loss")
    return [full, *(Row(*option, group=_BEYOND) for option in options)]


def _presets() -> list[Row]:
    """What the preset `packaged-fast` changes in the one it was chosen with, over any base, and the preset `best`."""
    fast, start, best = (load_config(name).model_dump() for name in ("packaged-fast", "packaged", "best"))
    changes = {key: fast[key] for key in fast if fast[key] != start[key]}
    return [
        Row("packaged-fast", "preset packaged-fast", changes, group=_BEYOND),
        Row("best", "preset best", {key: best[key] for key in best if key != "seed"}, group=_BEYOND),
    ]


_BEYOND = "beyond the paper"
_READER = "for the careful reader"
_EXTRA = {
    "2": [
        Row("majority", "majority class", kind="majority", group=_READER),
        Row("probe-text", "linear probe, text", kind="probe", group=_READER),
        Row("probe-image", "linear probe, image", kind="probe", group=_READER),
        Row("probe-both", "linear probe, both", kind="probe", group=_READER),
        Row("image-shuffled", "the full model, another post's image", kind="shuffled", group=_READER),
        Row("text-shuffled", "the full model, another post's text", kind="shuffled", group=_READER),
        Row("text-only", "text only, words hidden at random", {"modalities": "text", "mask_choice": "random"},
            group=_READER),
        Row("image-only", "image only, no words to hide", {"modalities": "image", "mlm": False}, group=_READER),
    ],
    "4": [
        Row("mask-random", "words hidden at random, not by the image", {"mask_choice": "random"}, group=_READER),
        Row("mlm-cross-masked", "hidden words kept out of T' and I' of pass 2", {"mlm_cross": "masked"}, group=_READER),
        Row("attention-scaled", "attention scaled by 1/sqrt(d)", {"attention_scale": True}, group=_READER),
        Row("tied-head", "word head tied to BERT's input embeddings", {"tie_mlm_head": True}, group=_READER),
    ],
}  # fmt: skip

_BASELINES = {
    "dnn-lr": _both((61.42, 61.03), (67.86, 66.33)),
    "cnn-multi": _both((61.20, 58.37), (66.39, 64.19)),
    "multisentinet": _both((69.84, 69.63), (68.86, 68.11)),
    "co-mn-hop": _both((70.51, 70.01), (69.92, 69.83)),
    "fenet": _both((74.21, 74.06), (71.46, 71.21)),
    "itignn": {"mvsa-single": (73.84, 74.04)},
    "cmcn": _both((73.61, 75.03), (70.45, 70.45)),
    "clmlf": _both((75.33, 73.46), (72.00, 69.83)),
    "mvcn": _both((76.06, 74.55), (72.07, 70.01)),
    "clcaf": _both((76.44, 75.61), (70.53, 67.45)),
}


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
