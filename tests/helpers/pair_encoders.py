"""The encoders of a named pair at their full size, with random weights, as the files that a person would have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    SiglipTextConfig,
    SiglipTextModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from pipeline.encoders.pairs import PAIRS
from tests.helpers.text_towers import clip_tokenizer, siglip_tokenizer

WORDS = ["word", "sky", "sad", "sun", "@", "user"]
# Of the real models: layers, width, heads, inner width, positions, and for CLIP the projection and the activation.
_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_CLIP = {
    "clip-b32": {**_BASE, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    "clip-l14": _BASE,
}


@dataclass(frozen=True)
class PairFiles:
    """Where a pair's files are, and the options that name them."""

    weights: Path
    text: Path

    @property
    def options(self) -> tuple[object, ...]:
        return "--image-weights", self.weights, "--text-encoder", self.text


def write_pair(folder: Path, name: str) -> PairFiles:
    """Both encoders of a pair, with random weights that tell inputs apart."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    image: Any = timm.create_model(PAIRS[name].image, pretrained=False)
    with torch.no_grad():
        for key, parameter in image.named_parameters():
            if key.endswith("gamma"):  # layer scales begin at 1e-5, so that blocks add next to nothing
                parameter.fill_(1.0)
    save_file({key: tensor.clone() for key, tensor in image.state_dict().items()}, folder / "image.safetensors")
    tokenizer, model = text_model(name)
    tokenizer.save_pretrained(folder / "text")
    model.save_pretrained(folder / "text")
    return PairFiles(folder / "image.safetensors", folder / "text")


def text_model(name: str) -> tuple[Any, Any]:
    """The tokenizer, with a small vocabulary of the model's own kind, and the model of that vocabulary."""
    if name.startswith("clip"):
        tokenizer = clip_tokenizer(77)
        sizes = {**_CLIP[name], "max_position_embeddings": 77, "projection_dim": PAIRS[name].text_pooled_width}
        ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        return tokenizer, CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **ids, hidden_act="quick_gelu"))
    if name.startswith("siglip2"):
        tokenizer = siglip_tokenizer(64)
        sizes = {**_BASE, "max_position_embeddings": 64, "projection_size": 768}
        return tokenizer, SiglipTextModel(SiglipTextConfig(**sizes, vocab_size=len(tokenizer)))
    if name == "paper-tweet":
        tokenizer = _roberta_tokenizer()
        sizes = {**_BASE, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
        return tokenizer, RobertaModel(RobertaConfig(**sizes, vocab_size=len(tokenizer)))
    if name == "multilingual":
        tokenizer = _xlm_roberta_tokenizer()
        sizes = {**_BASE, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
        return tokenizer, XLMRobertaModel(XLMRobertaConfig(**sizes, vocab_size=len(tokenizer)))
    tokenizer = _bert_tokenizer()
    return tokenizer, BertModel(BertConfig(**_BASE, vocab_size=len(tokenizer)))


def _bert_tokenizer() -> Any:
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = {word: number for number, word in enumerate([*special, *WORDS, "##s", *"abcdefgh", ":"])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, words[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)


def _roberta_tokenizer() -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters, "sa", "sad", "<mask>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return RobertaTokenizer(vocabulary, [("s", "a"), ("sa", "d")])


def _xlm_roberta_tokenizer() -> Any:
    pieces = ["▁", *(f"▁{word}" for word in WORDS), *"abcdefghijklmnopqrstuvwxyz:@", "▁query"]
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary = [*special, *((piece, -float(len(piece) < 3) - 1) for piece in pieces), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocabulary)
