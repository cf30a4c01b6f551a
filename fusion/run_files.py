"""Models of the JSON files of a run folder: run.json, metrics.jsonl, the state's metadata, evaluation-SPLIT.json.

A run folder may come from a stranger: what is used later is typed and bounded here. Files of older versions stay valid;
fields that are not named here are dropped.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from pipeline.common.documents import PLAIN, Count, Difference, Document, Line, Name, Number, Post, Share, first_problem
from pipeline.encoders.text_form import LONGEST_PREFIX
from pipeline.encoders.views import VIEWS
from pipeline.posts.labels import LABEL, MOST_NAMES, label_problem, target_problem
from pipeline.posts.mvsa import LABELS

MOST_RUN = 1 << 20  # bytes of run.json
MOST_METRICS = 64 << 20  # bytes of metrics.jsonl, 100,000 epochs
MOST_EPOCHS = 100_000
MOST_POSTS = 200_000
MOST_MEMBERS = 100  # of an ensemble


def _label(name: str) -> str:
    if problem := label_problem(name):
        raise ValueError(problem)
    return name


def _target(name: str) -> str:
    if problem := target_problem(name):
        raise ValueError(problem)
    return name


def _views(names: list[str]) -> list[str]:
    if not names or tuple(names) != VIEWS[: len(names)]:
        raise ValueError(f"must be the first of {', '.join(VIEWS)}")
    return names


Label = Annotated[str, AfterValidator(_label)]
Split = Literal["train", "val", "test"]
Epoch = Annotated[int, Field(ge=0, le=MOST_EPOCHS)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Loss = Annotated[float, Field(allow_inf_nan=True)]  # metrics.jsonl of a diverged run may hold Infinity
Interval = Annotated[list[Difference], Field(min_length=2, max_length=2)]
PerLabel = Field(min_length=2, max_length=MOST_NAMES)


def _encoder_name(name: str) -> str:
    """A model's name on a hub or in a library, never a folder, an address or a scheme that a loader knows."""
    if not name.isprintable() or name.startswith(("/", ".", "~")) or ".." in name or ":" in name or "\\" in name:
        raise ValueError("is no name of a model")
    return name


EncoderName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_encoder_name)]


class Transform(Document):
    size: Annotated[int, Field(ge=1, le=1 << 14)]
    crop_pct: Annotated[float, Field(gt=0, le=10)] = 1.0
    crop_mode: Line = "center"
    interpolation: Line = ""
    mean: list[Number] = Field(max_length=16, default=[])
    std: list[Number] = Field(max_length=16, default=[])
    decoder: Line = ""


class ImageMarks(Document):
    name: EncoderName
    weights_sha256: Line = ""
    transform: Transform | None = None
    views: Annotated[list[str], AfterValidator(_views)] = Field(default=["center"])
    pooled: Literal["mean", "cls", "model"] = "mean"
    licence: Line = ""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"


def _prefix(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that can't be printed")
    return text


class TextMarks(Document):
    name: EncoderName
    licence: Line = ""
    weights_sha256: Line = ""
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 128
    layers: list[Annotated[int, Field(ge=-1000, le=1000)]] = Field(min_length=1, max_length=1000, default=[-1])
    family: Literal["", "clip", "siglip"] = ""
    pooled: Literal["mean", "cls", "eos", "model"] = "mean"
    normalize: Literal["none", "tweet"] = "none"
    prefix: Annotated[str, Field(max_length=LONGEST_PREFIX), AfterValidator(_prefix)] = ""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"


class Fingerprint(Document):
    """The fields of a fingerprint that code reads; it may hold more, which are only compared and shown."""

    image: ImageMarks
    text: TextMarks
    stored_dtype: Literal["float16", "float32"] = "float16"


def _fingerprint(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint as it is in the file, since every field of it is compared, once its fields are checked."""
    try:
        Fingerprint.model_validate(fingerprint)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    return fingerprint


def different(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("has a label twice")
    return names


LabelNames = Annotated[list[Label], PerLabel, AfterValidator(different)]


class DimensionFacts(Document):
    channels: Annotated[int, Field(ge=0, le=1 << 16)]
    text_width: Annotated[int, Field(ge=0, le=1 << 16)]
    vocabulary: Annotated[int, Field(ge=0, le=1 << 23)]
    classes: Annotated[int, Field(ge=2, le=MOST_NAMES)] = len(LABELS)
    patches: Annotated[int, Field(ge=0, le=1 << 16)] = 49
    text_pooled: Annotated[int, Field(ge=1, le=1 << 16)] | None = None  # runs of older versions: as text_width
    image_pooled: Annotated[int, Field(ge=0, le=1 << 16)] | None = None  # runs of older versions: as channels


class Parameters(Document):
    trainable: Count
    frozen_in_training: Count


class Validation(Document):
    """The scores of an epoch on validation, and its losses."""

    loss: Number | None = None
    loss_mlm: Number | None = None
    accuracy: Share
    weighted_f1: Share
    macro_f1: Share | None = None
    threshold: Share | None = None  # of two classes, in runs that chose one


class Facts(Document):
    """run.json."""

    finished: bool
    exported: bool = False
    cache: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    manifest_sha256: Sha256
    # Where the labels came from: the cache, or a split file, whose labels go before what the cache says today. Older
    # runs do not say; they keep the labels that they were trained with.
    labels_from: Literal["cache", "splits"] = "splits"
    fingerprint: Annotated[dict[str, Any], AfterValidator(_fingerprint), PLAIN]
    target: Annotated[str, AfterValidator(_target)] = LABEL
    labels: LabelNames = Field(default=list(LABELS))  # older versions knew no others
    dimensions: DimensionFacts
    device: Line = ""
    module: Line | None = None  # the class of a module of one's own
    precision: Line = ""
    members: Annotated[int, Field(ge=2, le=MOST_MEMBERS)] | None = None  # of an ensemble: how many runs it is made of
    versions: dict[Name, Line] = Field(max_length=50, default={})
    parameters: Parameters
    best_epoch: Epoch | None = None
    epochs: Epoch | None = None
    validation: Validation | None = None
    temperature: Annotated[float, Field(ge=0.01, le=100)] = (
        1.0  # older runs have none: their probabilities are as given
    )
    train_seconds: Number = 0.0
    wall_seconds_of_last_start: Number = 0.0
    test_reads: Count = 0
    state: Literal["", "finished", "stopped early", "failed", "interrupted"] = ""
    reason: Annotated[str, Field(max_length=2000)] = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in ("validation", *(() if self.members else ("best_epoch", "epochs"))):
            if self.finished and getattr(self, name) is None:
                raise ValueError(f"{name}: is missing, and the run is finished")
        if self.cache is None and not self.exported:
            raise ValueError("cache: is missing")
        if len(self.labels) != self.dimensions.classes:
            raise ValueError(f"labels: are {len(self.labels)}, and dimensions.classes is {self.dimensions.classes}")
        return self


class EpochLine(Document):
    """A line of metrics.jsonl."""

    epoch: Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
    loss: Loss = 0.0
    loss_sentiment: Loss
    loss_mlm: Loss = 0.0
    loss_auxiliary: Loss | None = None
    hidden: Count = 0
    lr: Number = 0.0
    val_loss: Loss
    val_loss_mlm: Loss | None = None
    val_accuracy: Share
    val_weighted_f1: Share
    val_macro_f1: Share | None = None
    val_threshold: Share | None = None
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    speed: dict[Name, Number] = Field(max_length=20, default={})


class TrainingState(Document):
    """The metadata of train_state.safetensors."""

    epoch: Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
    best_epoch: Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
    best_score: Annotated[float, Field(ge=-1, le=1)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.best_epoch > self.epoch:
            raise ValueError(f"best_epoch: {self.best_epoch} is after epoch {self.epoch}")
        return self


class ScoreFacts(Document):
    accuracy: Share
    weighted_f1: Share
    macro_f1: Share
    auroc: Share | None = None  # older versions had none, and so have posts of one class
    average_precision: Share | None = None


class CleanScores(ScoreFacts):
    posts: Count


class Believed(Document):
    """How far probabilities can be believed: expected calibration error, and log loss in nats."""

    ece: Share
    log_loss: Number


class Calibration(Document):
    temperature: Number
    before: Believed
    after: Believed


class ThresholdScores(Document):
    """Scores of the decisions at the run's threshold: the class `label` where its probability is at least that."""

    label: Label
    threshold: Share
    accuracy: Share
    weighted_f1: Share
    macro_f1: Share
    interval: "Intervals"


class Intervals(Document):
    level: Share
    resamples: Count = 0
    accuracy_by: Literal["bootstrap", "Wilson", "Bonett-Price"] = "bootstrap"
    accuracy: Interval
    weighted_f1: Interval
    macro_f1: Interval
    auroc: Interval | None = None
    average_precision: Interval | None = None


class Differences(Document):
    accuracy: Difference
    weighted_f1: Difference
    macro_f1: Difference
    auroc: Difference | None = None
    average_precision: Difference | None = None


class ClassScores(Document):
    precision: Share
    recall: Share
    f1: Share
    support: Count


class Confusion(Document):
    rows: Literal["truth"] = "truth"
    columns: Literal["predicted"] = "predicted"
    counts: Annotated[list[Annotated[list[Count], PerLabel]], PerLabel]


class VersusProbe(Document):
    kind: Literal["text", "image", "both"] = "both"
    probe: ScoreFacts
    difference: Differences
    interval: Intervals
    only_model_right: Count
    only_probe_right: Count


class PostAnswer(Document):
    id: Post
    label: Label
    probabilities: Annotated[dict[Label, Share], PerLabel]


class Provenance(Document):
    """What an evaluation is of. own_posts: all posts are the run's own. left_out: posts that the run was trained or
    selected on under other ids. test_reads: how often the test split has been read by now.
    """

    cache: Annotated[str, Field(min_length=1, max_length=4096)]
    manifest_sha256: Sha256
    splits_sha256: Sha256 | None = None
    weights_sha256: Sha256 | None = None  # older versions do not say
    labels: LabelNames
    device: Line
    precision: Line
    own_posts: bool
    left_out: Count
    test_reads: Count


class Evaluation(ScoreFacts):
    """evaluation-SPLIT.json."""

    split: Split
    of: Provenance | None = None  # evaluations of older versions do not say
    posts_used: Count
    posts_failed: Count
    interval: Intervals
    at_threshold: ThresholdScores | None = None
    calibration: Calibration | None = None  # older versions had none
    members: Annotated[list[ScoreFacts], Field(max_length=MOST_MEMBERS)] | None = None  # of an ensemble
    per_class: Annotated[dict[Label, ClassScores], PerLabel]
    confusion: Confusion
    without_duplicates: CleanScores | None
    controls: Annotated[dict[Literal["image_shuffled", "text_shuffled"], ScoreFacts], Field(max_length=2)]
    versus_probe: VersusProbe | None
    without_probe: Line | None = None  # why there is no comparison with the probe
    posts: Annotated[list[PostAnswer], Field(min_length=1, max_length=MOST_POSTS)]

    @model_validator(mode="after")
    def _of_its_classes(self) -> Self:
        names = list(self.per_class)
        if self.of and self.of.labels != names:
            raise ValueError("per_class: has other classes than of.labels")
        counts = self.confusion.counts
        if len(counts) != len(names) or any(len(row) != len(names) for row in counts):
            raise ValueError("confusion: has not one row and column for each class")
        for post in self.posts:
            if list(post.probabilities) != names or post.label not in post.probabilities:
                raise ValueError(f"posts: {post.id!r:.100} has other classes than per_class")
        return self

    @model_validator(mode="after")
    def _with_a_reason(self) -> Self:
        if self.versus_probe is None and not self.without_probe:
            raise ValueError("versus_probe: is missing, without a reason")
        return self
