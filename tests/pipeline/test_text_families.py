"""Families of text models with random weights: tokens of each word piece from both sides, up to the last position."""

import numpy as np
import pytest

from pipeline.common.errors import InputError
from pipeline.encoders.load import EncoderChoice, load_text_encoder
from pipeline.encoders.text import encode_texts
from tests.helpers.text_families import SIZES, save

POSITIONS = 23
# Of the 23 positions, those that a text can use: in RoBERTa's way position 0 is nobody's, and 1 is padding's.
USABLE = {
    "Albert": 23,
    "Bert": 23,
    "Camembert": 21,
    "Deberta": 23,
    "DebertaV2": 23,
    "DistilBert": 23,
    "Electra": 23,
    "MPNet": 21,
    "Roberta": 21,
    "XLMRoberta": 21,
}


def load(folder, max_tokens):
    return load_text_encoder(EncoderChoice(text=str(folder), max_tokens=max_tokens, device="cpu"))


@pytest.mark.parametrize("family", USABLE)
def test_a_family_takes_texts_up_to_its_last_usable_position(family, tmp_path):
    save(tmp_path, family, max_position_embeddings=POSITIONS, **SIZES)
    longest = USABLE[family]
    with pytest.raises(InputError, match=rf"^max_tokens={longest + 1}: .* takes 3 to {longest}$"):
        load(tmp_path, longest + 1)
    encoder = load(tmp_path, longest)
    ids, cut = encoder.tokenize(["a b c", "a b a", "a " * POSITIONS])
    assert [row.tolist() for row in ids[:2]] == [[0, 5, 6, 7, 2], [0, 5, 6, 5, 2]]
    assert len(ids[2]) == longest
    assert cut == [False, False, True]
    together = encode_texts(encoder, ids, np.float32)[0]
    assert [tokens.shape for tokens in together] == [(5, 12), (5, 12), (longest, 12)]
    for row, tokens in zip(ids, together, strict=True):
        np.testing.assert_allclose(encode_texts(encoder, [row], np.float32)[0][0], tokens, rtol=0, atol=1e-5)
    changes = np.abs(together[0] - together[1]).max(axis=1)
    assert (changes > 1e-6).all()  # each token hears of the last word: attention looks both ways


@pytest.mark.parametrize(
    ("family", "template", "special", "sizes"),
    [
        ("GPT2", "", (), {"vocab_size": 8, "n_embd": 12, "n_layer": 1, "n_head": 3}),
        ("T5", "$A </s>", (), {"vocab_size": 8, "d_model": 12, "d_kv": 4, "d_ff": 17, "num_layers": 1, "num_heads": 3}),
        ("XLNet", "$A </s> <s>", ("cls", "sep"), {"vocab_size": 8, "d_model": 12, "n_layer": 1, "n_head": 3}),
    ],
)
def test_special_tokens_in_other_places_are_refused(family, template, special, sizes, tmp_path):
    """GPT-2 has none, T5 one at the end, and XLNet both there."""
    save(tmp_path, family, template, special, **sizes)
    with pytest.raises(InputError, match=r"not of the BERT family \(needs a fast tokenizer that puts \[CLS\] first"):
        load(tmp_path, 13)


LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 3, "decoder_attention_heads": 3}


@pytest.mark.parametrize(
    ("family", "message", "sizes"),
    [
        ("Bart", "has a decoder, and gives its states", {"d_model": 12, "encoder_ffn_dim": 17, **LAYERS}),
        ("GPT2", "its tokens see only what stands before them", {"n_embd": 12, "n_layer": 1, "n_head": 3}),
        ("Bert", "its tokens see only what stands before them", {**SIZES, "is_decoder": True}),
        ("Bert", r"can't encode a text \(index out of range", {**SIZES, "vocab_size": 2}),
    ],
)
def test_a_model_that_does_not_look_both_ways_is_refused_whatever_its_tokenizer(family, message, sizes, tmp_path):
    """BART's last hidden states are its decoder's; there are GPT-2s whose tokenizer is BERT's."""
    save(tmp_path, family, **{"vocab_size": 8, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, **sizes})
    with pytest.raises(InputError, match=rf"^text_encoder=.*{message}") as caught:
        load(tmp_path, 13)
    assert "\n" not in str(caught.value)
