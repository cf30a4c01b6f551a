"""Text models of BERT's families and others as files: random weights, and a tokenizer of three words."""

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6, "c": 7}
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 17,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def save(folder, family, template="<s> $A </s>", special=("cls", "sep"), **sizes):
    """A model with random weights and a tokenizer of three words; `special` are the roles of <s> and </s>."""
    torch_model = getattr(transformers, f"{family}Model")
    torch_model(getattr(transformers, f"{family}Config")(**sizes)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        words.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 2)])
    roles = {f"{role}_token": token for role, token in zip(special, ("<s>", "</s>"), strict=False)}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", mask_token="<mask>", **roles
    ).save_pretrained(folder)
