"""What every model shares: the sizes that the encoders fix, and the losses that training minimises."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.data.feature_store import Features
from pipeline.cache.reader import Cache


@dataclass(frozen=True)
class Dimensions:
    """What the encoders fix: image channels C, text width D, vocabulary V, number of patches m, and of classes, and the
    widths D_p of the texts' vectors and P of the images': None for D and for C, as in runs of earlier versions.
    """

    channels: int
    text_width: int
    vocabulary: int
    classes: int
    patches: int = 49
    text_pooled: int | None = None
    image_pooled: int | None = None

    @property
    def text_vector_width(self) -> int:
        """D_p."""
        return self.text_width if self.text_pooled is None else self.text_pooled

    @property
    def image_vector_width(self) -> int:
        """P."""
        return self.channels if self.image_pooled is None else self.image_pooled

    @property
    def of_features(self) -> tuple[int, ...]:
        """The sizes of a post's features, whether or not the run says those of its vectors, and how many classes."""
        return (
            self.channels,
            self.text_width,
            self.text_vector_width,
            self.image_vector_width,
            self.patches,
            self.classes,
        )


@dataclass(frozen=True)
class Term:
    """One loss of a batch: its mean over `count` things, and its weight in what is minimised; 0 if only reported."""

    name: str
    mean: Tensor
    count: int
    weight: float = 1.0


@dataclass(frozen=True)
class Losses:
    """The losses of a batch, or of a part of one.

    `sentiment` is the mean over posts (eq 16), `mlm` over masked words (eq 25), `auxiliary` over the known labels of
    texts and images (label rule); other terms are means over posts.
    """

    terms: tuple[Term, ...]

    @property
    def total(self) -> Tensor:
        """What training minimises (eq 13)."""
        return self.scaled_total({term.name: term.count for term in self.terms}, 0)

    def scaled_total(self, counts: Mapping[str, int], posts: int) -> Tensor:
        """What this part adds to the total of a whole batch of so many posts, whose other terms have these counts."""
        parts = []
        for term in self.terms:
            if term.weight:
                whole = counts.get(term.name, posts)
                parts.append(term.weight * (term.count / whole if whole else 1.0) * term.mean)
        return sum(parts[1:], start=parts[0])

    def mean(self, name: str) -> Tensor:
        """A term's mean; 0 if there is no such term."""
        return next((term.mean for term in self.terms if term.name == name), self.terms[0].mean.new_zeros(()))

    def count(self, name: str) -> int:
        """How many things a term is the mean over; 0 if there is no such term."""
        return next((term.count for term in self.terms if term.name == name), 0)


class FrozenText(Protocol):
    """What re-encoding needs of the frozen text encoder (pipeline.encoders.load.TextEncoder is one)."""

    mask_id: int

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Ids (B, n) under mask (B, n) to last_hidden_state (B, n, D)."""


class Model(nn.Module):
    """A model: cached features of a batch of posts to logits.

    A file of this folder, or of baselines/, that defines a subclass is a model of the file's name. The subclass takes
    `config` and `dimensions`, defines `forward`, and `losses` where it minimises more than cross-entropy.
    """

    title: ClassVar[str]  # for tables; of a baseline, also which part of its source is left out
    fixed_grid: bool = False  # whether the number of patches is built into the weights

    pooled_alone: bool = False  # whether it reads pooled vectors alone
    posts_at_once: ClassVar[int] = 64  # in prediction
    fitted_alone: ClassVar[bool] = False  # whether `fit` finds all weights, so that no step is left to take

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__()
        self.config = config
        self.dimensions = dimensions
        self.temperature = 1.0  # of a run's probabilities: fusion.evaluation.calibration; learning knows nothing of it
        self.objective: Callable[[Tensor, Tensor], Tensor] | None = None  # in place of cross-entropy, in training

    @property
    def most_epochs(self) -> int:
        """How many epochs its training has at most."""
        return 1 if self.fitted_alone else self.config.epochs

    @property
    def kept(self) -> nn.Module:
        """The module whose weights are kept."""
        return self

    def fit(self, cache: Cache, features: Features | None = None) -> None:
        """Take what the model needs of the training posts before it learns; most need nothing. features: a store that
        holds them.
        """

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, classes)."""
        raise NotImplementedError

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """What training minimises: cross-entropy, or the configured objective. `text_encoder` is for models with masked
        words.
        """
        return self.label_losses(batch, self(batch))

    def label_losses(self, batch: Batch, logits: Tensor) -> Losses:
        """The cross-entropy to report (eq 16), and what is minimised in its place where that is configured."""
        if self.objective is None and self.config.has_objective:
            raise ValueError("config: the loss needs the objective of the training posts")
        objective = None if self.objective is None else self.objective(logits, batch.labels)
        return losses_of(batch, F.cross_entropy(logits, batch.labels), objective)


def losses_of(batch: Batch, sentiment: Tensor, objective: Tensor | None = None) -> Losses:
    """The sentiment loss to report, and the objective to minimise where that is another; no words are masked."""
    if objective is None:
        return Losses((Term("sentiment", sentiment, len(batch)),))
    return Losses((Term("sentiment", sentiment, len(batch), 0.0), Term("objective", objective, len(batch))))
