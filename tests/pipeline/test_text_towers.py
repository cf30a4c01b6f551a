"""Text towers of CLIP and SigLIP: tokens and vectors are those of transformers' own forward, whatever the batch."""

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer

from pipeline.common.errors import InputError
from pipeline.encoders.from_fingerprint import same_text_encoder
from pipeline.encoders.load import EncoderChoice, load_text_encoder
from pipeline.encoders.text import encode_texts
from tests.helpers.text_towers import POSITIONS, PROJECTED, WIDTH, write_tower

TEXTS = ["A bad cab", "", "b", "zebra " * POSITIONS]
CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = ("CLIP", "Siglip", "Siglip2")


def load(folder, **options):
    return load_text_encoder(EncoderChoice(text=str(folder), device="cpu", **options))


def of_transformers(folder, kind, texts=TEXTS):
    """Tokens (n_i, D) of each text and the vectors (B, D_p), by transformers alone, each padded in its own way."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tower = "CLIPTextModelWithProjection" if kind == "CLIP" else f"{kind}TextModel"
    model = getattr(transformers, tower).from_pretrained(folder).eval()
    padding = True if kind == "CLIP" else "max_length"
    given = tokenizer(texts, padding=padding, truncation=True, max_length=POSITIONS, return_tensors="pt")
    assert ("attention_mask" in given) == (kind == "CLIP")  # SigLIP sees its padding
    lengths = [len(row) for row in tokenizer(texts, truncation=True, max_length=POSITIONS)["input_ids"]]
    with torch.inference_mode():
        output = model(**given)
    vectors = output.text_embeds if kind == "CLIP" else output.pooler_output
    tokens = [rows[:length].numpy() for rows, length in zip(output.last_hidden_state, lengths, strict=True)]
    return tokens, vectors.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_vectors_are_those_of_transformers(kind, tmp_path):
    write_tower(tmp_path, kind)
    encoder = load(tmp_path, text_pooled="model")
    ids, cut = encoder.tokenize(TEXTS)
    tokens, vectors = encode_texts(encoder, ids, np.dtype(np.float32))
    expected_tokens, expected_vectors = of_transformers(tmp_path, kind)
    assert vectors.shape == (4, PROJECTED)
    np.testing.assert_allclose(vectors, expected_vectors, **CLOSE)
    for found, expected in zip(tokens, expected_tokens, strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)
    assert [len(row) for row in tokens][1:] == [2 if kind == "CLIP" else 1, 3 if kind == "CLIP" else 2, POSITIONS]
    assert cut == [False, False, False, True]
    end = AutoTokenizer.from_pretrained(tmp_path).eos_token_id
    assert [row[-1] for row in ids] == [end] * 4


def test_clips_older_configuration_pools_at_the_highest_id(tmp_path):
    """Such a file says 2 for EOS, and means the highest one, as transformers does."""
    write_tower(tmp_path, "CLIP", eos_token_id=2)
    encoder = load(tmp_path, text_pooled="model")
    _, vectors = encode_texts(encoder, encoder.tokenize(TEXTS)[0], np.dtype(np.float32))
    np.testing.assert_allclose(vectors, of_transformers(tmp_path, "CLIP")[1], **CLOSE)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooled", ["mean", "eos", "model"])
def test_a_texts_features_do_not_depend_on_its_batch(kind, pooled, tmp_path):
    encoder = load(write_tower(tmp_path, kind), text_pooled=pooled)
    ids, _ = encoder.tokenize(TEXTS)
    tokens, vectors = encode_texts(encoder, ids, np.dtype(np.float32))
    for number, one in enumerate(ids):
        (alone,), (vector,) = encode_texts(encoder, [one], np.dtype(np.float32))
        np.testing.assert_allclose(alone, tokens[number], **CLOSE)
        np.testing.assert_allclose(vector, vectors[number], **CLOSE)
        if pooled != "model":
            np.testing.assert_allclose(vector, alone.mean(axis=0) if pooled == "mean" else alone[-1], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_files_with_both_towers_are_read_as_on_the_hub(kind, tmp_path):
    encoder = load(write_tower(tmp_path, kind, both=True), text_pooled="model")
    assert (encoder.width, encoder.pooled_width) == (WIDTH, PROJECTED)
    whole = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path).eval()
    ids, _ = encoder.tokenize(["bad"])
    _, vectors = encode_texts(encoder, ids, np.dtype(np.float32))
    padded = np.zeros((1, POSITIONS if kind != "CLIP" else len(ids[0])), np.int64)
    padded[0, : len(ids[0])] = ids[0]
    with torch.inference_mode():
        found = whole.get_text_features(input_ids=torch.from_numpy(padded))
    expected = found if isinstance(found, torch.Tensor) else found.pooler_output
    np.testing.assert_allclose(vectors, expected.numpy(), **CLOSE)


def test_clips_tokens_see_what_stands_before_them_and_siglips_all(tmp_path):
    for kind, sees_what_follows in (("CLIP", False), ("Siglip", True)):
        encoder = load(write_tower(tmp_path / kind, kind))
        (one, other), _ = encode_texts(encoder, encoder.tokenize(["ab", "ac"])[0], np.dtype(np.float32))
        first = 1 if kind == "CLIP" else 0
        assert (np.abs(one[first] - other[first]).max() > 1e-4) == sees_what_follows


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_has_no_mask_token_and_says_so(kind, tmp_path):
    encoder = load(write_tower(tmp_path, kind))
    assert encoder.mask_id == -1
    assert "no mask token: train with mlm false" in encoder.describe()
    assert encoder.max_tokens == POSITIONS  # it takes no 128
    assert encoder.fingerprint["family"] == ("clip" if kind == "CLIP" else "siglip")
    again = same_text_encoder(encoder.fingerprint, "cpu", folder=str(tmp_path), owner="a run")
    assert again.fingerprint == encoder.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_of_the_letters_and_the_special_tokens_of_none(kind, tmp_path):
    encoder = load(write_tower(tmp_path, kind), text_prefix="c: ")
    text = "A bad"
    (ids,), _ = encoder.tokenize([text])
    spans = encoder.spans(text)
    assert len(spans) == len(ids)
    assert "".join(text[start:end] for start, end in spans).replace(" ", "") == "Abad"
    assert spans[-1] == (0, 0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("CLIP", {"text_pooled": "cls"}, r"text_pooled=cls: the first token of a CLIP text tower sees itself alone"),
        ("Siglip", {"text_pooled": "cls"}, r"text_pooled=cls: the first token of a SigLIP text tower is a word's"),
        ("CLIP", {"text_layers": 2}, r"text_layers=2: a CLIP text tower normalises its last layer alone; take 1"),
        ("Siglip2", {"max_tokens": 24}, r"max_tokens=24: .* takes 3 to 23"),
        ("CLIP", {"text_prefix": "a\n"}, r"text_prefix='a\\n': must be at most 200 characters, all printable"),
        ("CLIP", {"text_prefix": "a" * 201}, r"text_prefix='a+': must be at most 200 characters"),
    ],
)
def test_what_a_tower_can_not_do_is_refused_in_one_line(kind, options, message, tmp_path):
    write_tower(tmp_path, kind)
    with pytest.raises(InputError, match=f"^{message}") as caught:
        load(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_tower_is_refused(tmp_path):
    write_tower(tmp_path / "clip", "CLIP", eos_token_id=7)
    with pytest.raises(InputError, match=r"pools at token 7, and EOS of its tokenizer is 513"):
        load(tmp_path / "clip")
    write_tower(tmp_path / "siglip", "Siglip", vocab_size=600)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "siglip" / name).write_bytes((tmp_path / "clip" / name).read_bytes())
    with pytest.raises(InputError, match="a SigLIP text tower needs a fast tokenizer that puts EOS last"):
        load(tmp_path / "siglip")
