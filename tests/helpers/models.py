"""Small models of the paper's kind with the oracle's parameters, and batches for them."""

from dataclasses import fields

import torch

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.explanation.attribution import (
    PostFeatures,
)
from fusion.models.base import Dimensions
from fusion.models.fusion import FusionModel
from fusion.models.objective import Objective
from tests.helpers import oracle
from tests.helpers.toy import VOCABULARY, ToyText, random_batch

CHANNELS, TEXT_WIDTH, PATCHES = 13, 7, 5
BASE = ("width=14", "heads=2", "layers=2", "feedforward=11", "dropout=0.0", "mask_rate=0.3")
LENGTHS = [7, 2, 3, 5]  # one text has no word at all
SHORT, FEW = [6, 2, 3], 3  # lengths and patches for the oracle, whose time grows with the square of a post's rows
EXACT = {"rtol": 1e-9, "atol": 1e-9}
VARIANTS = {
    "the paper": (),
    "without MLM": ("mlm=false",),
    "without cross-modal attention": ("cross_attention=false",),
    "without both": ("mlm=false", "cross_attention=false"),
    "two Transformers": ("share_transformer=false",),
    "text alone": ("modalities=text", "mlm=false"),
    "image alone": ("modalities=image", "mlm=false"),
    "scaled attention": ("attention_scale=true",),
    "segments": ("segment_embeddings=true",),
    "segments without cross-modal attention": ("segment_embeddings=true", "cross_attention=false"),
    "cross-modal attention from the masked text": ("mlm_cross=masked",),
    "tied head": ("tie_mlm_head=true",),
    "tied head of equal width": ("tie_mlm_head=true", "width=7", "heads=7"),
    "eq 21 to the letter": ("mask_projection=false", "width=7", "heads=1"),
    "half the words": ("mask_rate=0.5", "mlm_weight=0.37"),
    "label rule": ("label_rule=true", "auxiliary_weight=0.7"),
    "logit adjustment": ("logit_adjustment=1.3",),
    "both of them": ("label_rule=true", "logit_adjustment=0.8", "share_transformer=false"),
    "label smoothing": ("label_smoothing=0.3",),
    "label smoothing with the label rule": ("label_smoothing=0.2", "label_rule=true"),
    "standardised": ("standardise=true",),
    "standardised text alone": ("standardise=true", "modalities=text", "mlm=false"),
    "standardised, eq 21 to the letter": ("standardise=true", "mask_projection=false", "width=7", "heads=1"),
    "product": ("pooled_product=true",),
    "product with the label rule": ("pooled_product=true", "label_rule=true", "mlm=false"),
    "all regularisers": ("standardise=true", "pooled_product=true", "label_smoothing=0.1", "input_dropout=0.4"),
    "much at once": ("segment_embeddings=true", "attention_scale=true", "mlm_cross=masked", "share_transformer=false"),
}
TEXT = ToyText(TEXT_WIDTH, torch.float64)
PRIOR = (0.6, 0.1, 0.3)  # classes' shares, for logit_adjustment


def model_of(config: Config, seed: int = 0) -> FusionModel:
    """A float64 model with random weights everywhere, norms and biases too."""
    words = TEXT.word_embeddings if config.tie_mlm_head else None
    dimensions = Dimensions(CHANNELS, TEXT_WIDTH, VOCABULARY, classes=3)
    prior = torch.tensor(PRIOR, dtype=torch.float64).log()
    model = FusionModel(config, dimensions, word_embeddings=words).double().eval()
    model.objective = Objective(config, prior) if config.has_objective else None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
        for name, buffer in model.named_buffers():
            if "standardised" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.3)
    return model


def batch_of(lengths: list[int], seed: int = 0, m: int = PATCHES) -> Batch:
    return random_batch(lengths, m=m, channels=CHANNELS, width=TEXT_WIDTH, seed=seed)


def oracle_of(model: FusionModel, batch: Batch, **more):
    """The oracle's parameters and settings, `more` among them, and the batch's posts without their padding."""
    names = [field.name for field in fields(oracle.Settings) if field.name in type(model.config).model_fields]
    options = oracle.Settings(**{name: getattr(model.config, name) for name in names}, prior=PRIOR, **more)
    parameters = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    parameters |= dict(model.named_buffers())
    posts = [
        oracle.Post(batch.patches[i], batch.tokens[i, :n], batch.input_ids[i, :n], int(batch.labels[i]), own)
        for i, (n, own) in enumerate(
            zip(batch.text_mask.sum(dim=1).tolist(), map(tuple, batch.modality_labels.tolist()), strict=True)
        )
    ]
    return parameters, options, posts


def reencode(ids: torch.Tensor) -> torch.Tensor:
    """One text's ids to its tokens, as the oracle asks for them."""
    return TEXT.encode(ids[None], torch.ones(1, len(ids), dtype=torch.bool))[0]


def select(batch: Batch, order: list[int]) -> Batch:
    """The batch's posts in another order, or some of them."""
    longest = int(batch.text_mask[order].sum(dim=1).max())
    chosen = {field.name: getattr(batch, field.name)[order] for field in fields(Batch)}
    return Batch(**{**chosen, **{name: chosen[name][:, :longest] for name in ("tokens", "input_ids", "text_mask")}})


def features_of(batch, post):
    """One post of a batch, without its padding."""
    length = int(batch.text_mask[post].sum())
    return PostFeatures(batch.patches[post], batch.pooled[post], batch.tokens[post, :length])
