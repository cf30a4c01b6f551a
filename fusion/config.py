"""The configuration of a run: presets, YAML files and `key=value` settings, validated together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fusion.names import FUSION, OWN, baselines, model_modules, pooled_models, presets
from pipeline.common.documents import parse_yaml
from pipeline.common.documents import read_yaml as read_plain_yaml
from pipeline.common.errors import InputError, option
from pipeline.common.files import write_text

# Settings of the fusion model alone. Training settings and the sizes mean the same to the baselines.
_FUSION_ONLY = (
    "modalities",
    "cross_attention",
    "share_transformer",
    "attention_scale",
    "segment_embeddings",
    "standardise",
    "pooled_product",
    "modality_dropout",
    "label_rule",
    "auxiliary_weight",
)
_NOT_POOLED = tuple(name for name in _FUSION_ONLY if name not in ("label_rule", "auxiliary_weight"))
# Settings of models that minimise cross-entropy: the baselines have losses of their own.
_CROSS_ENTROPY_ONLY = ("logit_adjustment", "class_weights", "label_smoothing")


def _known_model(name: str) -> str:
    if name not in model_modules() and name != OWN:
        raise ValueError(f"no such model; known are {', '.join(model_modules())}")
    return name


Fraction = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]


class Config(BaseModel):
    """Everything that determines a run, apart from its cache. The defaults are the paper's where it gives any."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # A file of fusion/models/ or fusion/models/baselines/, which says which settings it reads; `fusion` is the paper's
    model: Annotated[str, AfterValidator(_known_model)] = FUSION
    width: Annotated[int, Field(ge=1, le=1 << 14)] = 768
    heads: Annotated[int, Field(ge=1, le=1 << 10)] = 12
    layers: Annotated[int, Field(ge=1, le=256)] = 3
    feedforward: Annotated[int, Field(ge=1, le=1 << 17)] | None = None  # None: 4 x width
    dropout: Annotated[float, Field(ge=0, le=0.99)] = 0.1  # of the fusion model, in T and in `pooled_product`
    input_dropout: Fraction = 0.0  # of the encoders' features, before eqs 4 and 6; of the vectors of a pooled model
    # Beyond the paper: the encoders' features as deviations from the training posts; pooled models always do so
    standardise: bool = False
    modalities: Literal["both", "text", "image"] = "both"
    cross_attention: bool = True  # eqs 7-11; without them pass 1 is [T; I]
    share_transformer: bool = True  # one T for eqs 12 and 22
    attention_scale: bool = False  # beyond the paper: eq 7 divided by sqrt(width)
    segment_embeddings: bool = False  # beyond the paper: a learned vector for each of the four blocks
    pooled_product: bool = False  # beyond the paper: eq 15 also reads the product of text and image (fusion.py)
    # Not in the paper: probability that a training post loses one modality; one that loses its image still has the
    # words to mask chosen by it
    modality_dropout: Fraction = 0.0

    # Beyond the paper, of a cache with several views: train on a random one each epoch, predict with the mean over all
    # auto: sample where the cache has several
    views: Literal["first", "sample", "auto"] = "first"

    # The masked-language loss
    mlm: bool = True  # the fusion model's alone: with a baseline it is always false
    mlm_weight: Weight = 1.0  # eq 13
    mask_rate: Annotated[float, Field(gt=0, le=1)] = 0.25
    mask_choice: Literal["image", "random"] = "image"  # eqs 18-19, or words at random
    mask_projection: bool = True  # eq 6 after eq 21; False is eq 21 to the letter and needs D = width
    mlm_cross: Literal["unmasked", "masked"] = "unmasked"  # beyond the paper: masked keeps masked words out of eq 22
    tie_mlm_head: bool = False  # beyond the paper: eq 24 with BERT's input embeddings
    validate_mlm: bool = False  # also report the loss of eq 25 on validation

    # The sentiment head and its loss, beyond the paper: label_rule.py and logit_adjustment.py in fusion/models/
    # Predict the text's and the image's own label, and derive the post's by the label rule; auto: where the cache has
    # MVSA's labels of both
    label_rule: bool | Literal["auto"] = False
    auxiliary_weight: Weight = 0.5  # weight of the two modality heads' auxiliary loss
    logit_adjustment: Weight = 0.0  # tau, strength of the adjustment towards rare classes; 0 disables it
    # What a training post weighs: each alike, each class alike, or given by class, {hateful: 2}, others 1
    class_weights: Literal["none", "balanced"] | dict[str, Weight] = "none"
    label_smoothing: Fraction = 0.0  # share of the target that all classes get alike

    # Training; the paper gives batch size and learning rate, not the rest
    batch_size: Annotated[int, Field(ge=1, le=1 << 16)] = 64
    lr: Annotated[float, Field(gt=0)] = 2e-5
    weight_decay: Weight = 0.01
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up, over all epochs
    warmup: Fraction = 0.0  # fraction of all steps in which the learning rate rises to lr
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    ema: Fraction = 0.0  # decay of the moving average of the weights that is validated and kept; 0: the weights
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 20
    patience: Annotated[int, Field(ge=1, le=100_000)] = 5  # epochs without a better validation weighted F1
    keep: Literal["best", "last"] = "best"  # which epoch's weights: of the best validation weighted F1, or the last's
    # bfloat16: autocast over float32 weights; auto: bfloat16 where the hardware has it, else float32
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="before")
    @classmethod
    def _disable_mlm_for_baselines(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values if values.get("model", FUSION) == FUSION else {**values, "mlm": False}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        pooled = pooled_models()
        if self.model != FUSION:
            for name in _NOT_POOLED if self.model in pooled else _FUSION_ONLY:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: only the fusion model has it, not {self.model}; leave it out")
        if self.model in baselines():
            for name in _CROSS_ENTROPY_ONLY:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: the baseline {self.model} has a loss of its own; leave it out")
        if self.input_dropout and self.model not in (known := (FUSION, *pooled)):
            raise ValueError(f"input_dropout: only {', '.join(known)} have it, not {self.model}; leave it out")
        if self.width % self.heads and self.model not in pooled:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        if self.modalities == "image" and self.mlm:
            raise ValueError("mlm: there are no words to mask when modalities is image; set mlm to false")
        if self.modalities == "text" and self.mlm and self.mask_choice == "image":
            raise ValueError(
                "mask_choice: no image to choose words by when modalities is text; set mask_choice to random"
            )
        if self.modalities == "text" and self.views != "first":
            raise ValueError("views: no image to see when modalities is text; leave it at first")
        if self.modalities != "both" and self.modality_dropout:
            raise ValueError("modality_dropout: needs modalities both")
        for name in ("label_rule", "pooled_product"):
            if self.modalities != "both" and getattr(self, name):
                raise ValueError(f"{name}: needs modalities both")
        return self

    @property
    def is_settled(self) -> bool:
        """Whether no setting is left to the cache that is trained on."""
        return "auto" not in (self.label_rule, self.views)

    @property
    def has_objective(self) -> bool:
        """Whether something else than cross-entropy is minimised for the labels."""
        return bool(self.logit_adjustment or self.label_smoothing or self.class_weights != "none")

    @property
    def feedforward_width(self) -> int:
        return self.feedforward or 4 * self.width


def load_config(
    preset: str | None = None,
    file: str | Path | None = None,
    settings: tuple[str, ...] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Config:
    """Defaults, then the preset, then the file, then `key=value` settings, then settings with an option of their own
    (`--key`), each over the one before.

    Raises InputError naming the source, the key and what is allowed.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, found in (
        (f"--preset {preset}", read_yaml(_preset_file(preset)) if preset else {}),
        (str(file), read_yaml(Path(file)) if file else {}),
        ("--set", dict(_setting(text) for text in settings)),
        *((f"--{key}", {key: value}) for key, value in options.items()),
    ):
        values.update(found)
        origin.update(dict.fromkeys(found, source))
    try:
        return Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; known are {', '.join(Config.model_fields)}"
        given = f" (given {repr(values[key])[:100]} in {origin[key]})" if key in values else ""
        raise InputError(f"config{f', {key[:100]}' if key else ''}: {message}{given}") from None


def shared_config(configs: Sequence[Config]) -> Config:
    """What the prediction of an ensemble of models with these configurations goes by: the first one's, but for the
    settings that say what a post must have and how it is read. `modality_dropout` above 0 means that a post may lack a
    modality, and so it must be for all.
    """
    first = configs[0]
    same = {name: {getattr(one, name) for one in configs} for name in ("modalities", "views", "precision")}
    return first.model_copy(
        update={
            "modalities": first.modalities if len(same["modalities"]) == 1 else "both",
            "views": "sample" if "sample" in same["views"] else "first",
            "precision": first.precision if len(same["precision"]) == 1 else "float32",
            "modality_dropout": min(one.modality_dropout for one in configs),
        }
    )


def save_config(path: Path, config: Config) -> None:
    """Write the resolved configuration; `--config` reads it back."""
    write_text(path, yaml.safe_dump(config.model_dump(), sort_keys=False))


def _preset_file(name: str) -> Path:
    if name not in presets():
        raise InputError(f"{option('preset', name)}: no such preset; known are {', '.join(presets())}")
    return presets()[name]


def read_yaml(path: Path) -> dict[str, Any]:
    """The key: value lines of a file, its numbers read as people write them. Raises InputError naming it."""
    return {key: _number(value) for key, value in read_plain_yaml(path).items()}


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text[:100]}: must be key=value")
    try:
        return key.strip(), _number(parse_yaml(value))
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"--set {text[:100]}: {value[:100]!r} is not a YAML value ({reason})") from None


def _number(value: Any) -> Any:
    """YAML 1.1 reads 2e-5 (no dot) as a string; people write it for a number. Also inside lists and mappings."""
    if isinstance(value, list):
        return [_number(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _number(entry) for key, entry in value.items()}
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
