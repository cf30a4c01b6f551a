"""Text towers of CLIP and SigLIP as files: random weights, and tokenizers that know letters."""

from pathlib import Path

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, Siglip2Tokenizer

POSITIONS, WIDTH, PROJECTED = 23, 13, 11
_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 17,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": POSITIONS,
}
_VISION = {**_SIZES, "image_size": 8, "patch_size": 4}
_VISION.pop("max_position_embeddings")


def write_tower(folder: Path, kind: str, *, both: bool = False, **config) -> Path:
    """A tower of kind CLIP, Siglip or Siglip2 with its tokenizer; `both`: the files have the image tower, too, as those
    on the hub.
    """
    torch.manual_seed(1)
    tokenizer = clip_tokenizer() if kind == "CLIP" else siglip_tokenizer()
    if kind == "CLIP":
        config = {"eos_token_id": tokenizer.eos_token_id, **config}
    projected = {"projection_dim" if kind == "CLIP" else "projection_size": PROJECTED}
    text = {**_SIZES, "vocab_size": len(tokenizer), **config}
    if both:
        text |= {} if kind == "CLIP" else projected
        whole = getattr(transformers, f"{kind}Config")(
            text_config=text, vision_config=_VISION, **(projected if kind == "CLIP" else {})
        )
        model = getattr(transformers, f"{kind}Model")(whole)
    else:
        tower = "CLIPTextModelWithProjection" if kind == "CLIP" else f"{kind}TextModel"
        model = getattr(transformers, tower)(getattr(transformers, f"{kind}TextConfig")(**text, **projected))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def clip_tokenizer(positions: int = POSITIONS) -> CLIPTokenizer:
    """CLIP's own, of single bytes: lower case, BOS first and EOS last, EOS also for padding."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: number for number, word in enumerate(words)}, [], model_max_length=positions)


def siglip_tokenizer(positions: int = POSITIONS) -> Siglip2Tokenizer:
    """SigLIP 2's own, of letters: lower case, EOS last, a mask token that the tower was not trained with."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁abcdefghijklmnopqrstuvwxyz@:"]
    return Siglip2Tokenizer(
        {word: number for number, word in enumerate(words)},
        [],
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        model_max_length=positions,
        model_input_names=["input_ids"],
    )
