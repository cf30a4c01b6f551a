"""Families of text models: BERT's, and the text towers of CLIP and SigLIP, which are told by their configuration.

A tower has no mask token, so its words can't be masked. CLIP's tokens see what stands before them; its own pooling is
the state of EOS, projected. SigLIP has no token in front, reads every text padded to all its positions and looks at the
padding as it was trained to; its own pooling is the last position's state, padding or not, through its head.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import InputError, option
from pipeline.encoders.fingerprint import CLIP, SIGLIP
from pipeline.encoders.text_vector import CLS, MODEL

BERT = ""  # as a family; its fingerprints name none
_TOWERS = {
    "clip": (CLIP, "CLIPTextModelWithProjection"),
    "clip_text_model": (CLIP, "CLIPTextModelWithProjection"),
    "siglip": (SIGLIP, "SiglipTextModel"),
    "siglip_text_model": (SIGLIP, "SiglipTextModel"),
    "siglip2": (SIGLIP, "Siglip2TextModel"),
    "siglip2_text_model": (SIGLIP, "Siglip2TextModel"),
}
_TITLES = {CLIP: "CLIP", SIGLIP: "SigLIP"}


def family_of(config: Any) -> str:
    """The family of a model by its configuration."""
    return _TOWERS[config.model_type][0] if config.model_type in _TOWERS else BERT


def load_tower(source: Any, config: Any, **options: Any) -> Any:
    """What `from_pretrained` of the tower's class gives, also where the files hold both towers."""
    import transformers

    text = getattr(config, "text_config", config)
    if text is not config and hasattr(config, "projection_dim"):
        text.projection_dim = config.projection_dim  # CLIP's says so of both towers together
    return getattr(transformers, _TOWERS[config.model_type][1]).from_pretrained(source, config=text, **options)


def require_special_tokens(family: str, tokenizer: Any, model: Any, name: str) -> list[int]:
    """The ids that a text without words has. Raises InputError if they are not those of the family."""
    pair = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    needs = "not of the BERT family (needs a fast tokenizer that puts [CLS] first and [SEP] last)"
    if family == CLIP:
        pair = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        needs = "a CLIP text tower needs a fast tokenizer that puts BOS first and EOS last"
    elif family == SIGLIP:
        pair = [tokenizer.eos_token_id]
        needs = "a SigLIP text tower needs a fast tokenizer that puts EOS last and nothing first, as SigLIP 2 has"
    if not tokenizer.is_fast or None in pair or tokenizer("")["input_ids"] != pair:
        raise InputError(f"{option('text_encoder', name)}: {needs}")
    if family == SIGLIP and tokenizer.pad_token_id is None:
        raise InputError(f"{option('text_encoder', name)}: a SigLIP text tower needs a tokenizer with a padding token")
    if family == CLIP and tokenizer.eos_token_id != _pooled_id(tokenizer, model):
        raise InputError(
            f"{option('text_encoder', name)}: the tower pools at token {_pooled_id(tokenizer, model)}, and EOS of its "
            f"tokenizer is {tokenizer.eos_token_id}; take the tokenizer that belongs to it"
        )
    return pair


def _pooled_id(tokenizer: Any, model: Any) -> int:
    """The token whose state CLIP pools: configurations that say 2, older ones, mean the highest id of a text."""
    eos: int = model.config.eos_token_id
    return max(tokenizer.get_vocab().values()) if eos == 2 else eos


def require_encodes(family: str, model: Any, special: list[int], name: str) -> None:
    """Raises InputError for a model that cannot encode a text, or, in the BERT family, whose states are a decoder's, or
    whose tokens see only what stands before them: a GPT-2 may have BERT's tokenizer all the same.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(
            f"{option('text_encoder', name)}: not of the BERT family (has a decoder, and gives its states); "
            "take another model"
        )
    first, last = special[0], special[-1]
    try:
        with torch.inference_mode():
            one, other = (
                model(input_ids=torch.tensor([[first, last, end]])).last_hidden_state[0, 0] for end in (first, last)
            )
    except Exception as error:  # ids without embeddings, inputs that are no ids: each model has its own way to fail
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{option('text_encoder', name)}: can't encode a text ({what})") from None
    if family == BERT and torch.equal(one, other):
        raise InputError(
            f"{option('text_encoder', name)}: not of the BERT family (its tokens see only what stands before them); "
            "take another model"
        )


def require_pooling(family: str, model: Any, special: list[int], pooled: str, missing: list[str], name: str) -> int:
    """The width of the text's vector by this pooling. `missing`: tensors that the files lack. Raises InputError if the
    model has no such pooling.
    """
    if pooled == CLS and family != BERT:
        why = "sees itself alone" if family == CLIP else "is a word's"
        raise InputError(
            f"{option('text_pooled', CLS)}: the first token of a {_TITLES[family]} text tower {why}; take eos or model"
        )
    if pooled != MODEL:
        return int(model.config.hidden_size)
    with torch.inference_mode():
        vector = own_vector(family, model(input_ids=torch.tensor([special])))
    if vector is None or any(key.startswith("pooler.") for key in missing):
        what = "has no pooling of its own" if vector is None else "its weights lack those of its own pooling"
        raise InputError(f"{option('text_pooled', MODEL)}: {name}: {what}; take mean, cls or eos")
    return vector.shape[1]


def require_last_layer(family: str, layers: int, count: int, name: str) -> None:
    """Raises InputError unless the model has so many layers to take the mean of."""
    if family != BERT and layers > 1:
        raise InputError(
            f"{option('text_layers', layers)}: a {_TITLES[family]} text tower normalises its last layer alone; take 1"
        )
    if not 1 <= layers <= count:
        raise InputError(f"{option('text_layers', layers)}: {name} has 1 to {count}")


def own_vector(family: str, output: Any) -> Tensor | None:
    """What the model's own pooling gives for a batch, not normalised: (B, D_p); None if it has none."""
    return getattr(output, "text_embeds" if family == CLIP else "pooler_output", None)
