"""Encoders as files: a timm model and a BERT with random weights, small enough to extract within a test."""

from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class LocalEncoders:
    """Where the files are, and the options that name them."""

    weights: Path
    text: Path

    @property
    def for_extract(self) -> tuple[object, ...]:
        return "--image-encoder", "test_resnet", "--image-weights", self.weights, "--text-encoder", self.text

    @property
    def for_run(self) -> tuple[object, ...]:
        return "--image-weights", self.weights, "--text-encoder", self.text


def write_encoders(folder: Path, words: list[str]) -> LocalEncoders:
    """An image encoder of 0.4 M parameters, and a BERT of one layer that knows `words`."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), folder / "image.safetensors")
    known = {word: number for number, word in enumerate([*_SPECIAL, *words])}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(known), **sizes)).save_pretrained(folder / "text")
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, known[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = {f"{name[1:-1].lower()}_token": name for name in _SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / "text")
    return LocalEncoders(folder / "image.safetensors", folder / "text")
