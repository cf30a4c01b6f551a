"""Builds what is trained: the model with the weights that the seed draws, and the text encoder of masked words."""

import torch

from fusion.config import Config
from fusion.data.feature_store import Features
from fusion.data.requirements import require_features, require_mask_token
from fusion.models.base import Dimensions, Model
from fusion.models.precision import resolved
from fusion.models.registry import build_model
from fusion.models.transformer import Transformer
from fusion.tensor_files import require_memory
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, option
from pipeline.encoders.from_fingerprint import same_text_encoder
from pipeline.encoders.load import TextEncoder

_BYTES_A_PARAMETER = 16  # float32: the weight, its gradient, and the two means of AdamW
_BYTES_OF_AVERAGE = 4


def masking_encoder(cache: Cache, device: torch.device, config: Config, folder: str | None = None) -> TextEncoder:
    """The text encoder that made the cache, to encode masked texts again in the run's precision.

    folder: where its files are now, if not where the cache's fingerprint says. Raises InputError if it is unavailable
    or another one, naming the field.
    """
    require_features(cache, config)
    fingerprint = cache.fingerprint["text"]
    require_mask_token(cache)
    encoder = same_text_encoder(fingerprint, str(device), folder=folder, owner=cache.folder)
    if encoder.mask_id < 0:
        raise InputError(
            f"{option('text_encoder', folder or fingerprint['name'])}: its tokenizer has no mask token; "
            f"set mlm to false"
        )
    cache.require_word_pieces(encoder.vocabulary, encoder.width)
    return encoder.in_precision(resolved(config, device))


def new_model(
    cache: Cache,
    config: Config,
    text_encoder: TextEncoder | None,
    *,
    features: Features | None = None,
    checkpointing: bool = False,
) -> Model:
    """The model with the weights that the seed draws. features: a store of the training posts, if there is one.

    Raises InputError if the model does not fit into memory.
    """
    dimensions = dimensions_of(cache, text_encoder)
    require_fits(config, dimensions)
    torch.manual_seed(config.seed)
    try:
        words = text_encoder.word_embeddings if text_encoder and config.tie_mlm_head else None
        model = build_model(config, dimensions, word_embeddings=words)
    except ValueError as error:
        raise InputError(f"config, {error}") from None
    if not model.fitted_alone:  # that is its one epoch
        model.fit(cache, features)
    for module in model.modules():
        if isinstance(module, Transformer):
            module.checkpointing = checkpointing
    return model


def dimensions_of(cache: Cache, text_encoder: TextEncoder | None = None) -> Dimensions:
    """The sizes that a cache, and the encoder of masked words, give to a model."""
    m, channels = cache.patches_shape
    vocabulary = text_encoder.vocabulary if text_encoder else 0
    vectors = {"text_pooled": cache.text_pooled_width, "image_pooled": cache.image_pooled_width}
    return Dimensions(channels, cache.text_width, vocabulary, classes=len(cache.label_names), patches=m, **vectors)


def require_fits(config: Config, dimensions: Dimensions) -> int:
    """How many numbers a model learns. Raises InputError if its training does not fit into memory, or if configuration
    and dimensions do not fit each other.
    """
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            size = parameters_of(build_model(config, dimensions))
    except ValueError as error:
        raise InputError(f"config, {error}") from None
    each = _BYTES_A_PARAMETER + (_BYTES_OF_AVERAGE if config.ema else 0)
    require_memory(each * size, f"config, training {size:,} parameters")
    return size


def trainable_of(model: torch.nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def parameters_of(model: torch.nn.Module) -> int:
    """How many numbers a model learns or holds."""
    return sum(parameter.numel() for parameter in model.parameters())
