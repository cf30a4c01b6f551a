"""A text's one vector, and what is done to a text before it is read: by BERT's family."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from pipeline.common.errors import InputError
from pipeline.encoders.from_fingerprint import same_text_encoder
from pipeline.encoders.load import EncoderChoice, load_text_encoder
from pipeline.encoders.text import encode_texts
from pipeline.encoders.text_form import TextForm
from pipeline.encoders.text_vector import pooled_tokens
from tests.helpers.local_encoders import write_encoders
from tests.helpers.text_families import SIZES, save

WORDS = ["a", "b", "query", ":", "@", "user", "http"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoders(tmp_path_factory.mktemp("encoders"), WORDS).text


def load(folder, **options):
    return load_text_encoder(EncoderChoice(text=str(folder), max_tokens=13, device="cpu", **options))


def test_vectors_are_the_mean_the_first_the_last_token_and_the_models_own(folder):
    texts = ["a b a", "", "b"]
    model = AutoModel.from_pretrained(folder).eval()
    plain = load(folder)
    ids, _ = plain.tokenize(texts)
    for pooled in ("mean", "cls", "eos", "model"):
        encoder = load(folder, text_pooled=pooled)
        tokens, vectors = encode_texts(encoder, ids, np.dtype(np.float16))
        assert (vectors.dtype, tokens[0].dtype) == (np.float32, np.float16)
        for row, rows, vector in zip(ids, tokens, vectors, strict=True):
            with torch.inference_mode():
                own = model(input_ids=torch.from_numpy(row)[None].long()).pooler_output[0].numpy()
            stored = rows.astype(np.float64)  # the vector is of the tokens as they are stored
            expected = {"mean": stored.mean(axis=0), "cls": stored[0], "eos": stored[-1], "model": own}[pooled]
            np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-6)


def test_the_pooler_reaches_the_fingerprint_only_where_it_reaches_the_features(folder, tmp_path):
    plain, own = load(folder), load(folder, text_pooled="model")
    assert "pooled" not in plain.fingerprint
    assert own.fingerprint["pooled"] == "model"
    assert plain.fingerprint["weights_sha256"] != own.fingerprint["weights_sha256"]
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.pooler.dense.bias += 1
    model.save_pretrained(tmp_path)
    for file in folder.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load(tmp_path).fingerprint == plain.fingerprint
    assert load(tmp_path, text_pooled="model").fingerprint != own.fingerprint
    with pytest.raises(InputError, match="not the one that made the features of a run; weights_sha256"):
        same_text_encoder(own.fingerprint, "cpu", folder=str(tmp_path), owner="a run")


def test_a_model_without_a_trained_pooling_of_its_own_is_refused(tmp_path):
    save(tmp_path / "distil", "DistilBert", **SIZES)
    with pytest.raises(InputError, match=r"^text_pooled=model: .*: has no pooling of its own; take mean, cls or eos$"):
        load(tmp_path / "distil", text_pooled="model")
    save(tmp_path / "bert", "Bert", **SIZES)
    AutoModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    load(tmp_path / "bert", text_pooled="cls")
    with pytest.raises(InputError, match=r"^text_pooled=model: .*: its weights lack those of its own pooling"):
        load(tmp_path / "bert", text_pooled="model")


@pytest.mark.parametrize(
    ("text", "tweet"),
    [
        ("@ann hi @bob, see https://t.co/1", "@user hi @user see http"),
        ("@ and http and x@y", "@ and http and x@y"),
        ("a  httpx\n@c", "a  http"),
        ("", ""),
        ("Ünï @Ä 😀", "Ünï @user 😀"),
    ],
)
def test_tweets_have_the_placeholders_of_cardiffnlp(text, tweet):
    """Words are what stands between blanks: a line break is a part of a word."""
    assert TextForm("tweet").normalized(text) == tweet
    assert TextForm().normalized(text) == text


def test_the_form_of_a_text_is_in_the_fingerprint_and_comes_back_from_it(folder):
    encoder = load(folder, text_normalize="tweet", text_prefix="query: ")
    assert (encoder.fingerprint["normalize"], encoder.fingerprint["prefix"]) == ("tweet", "query: ")
    assert not {"normalize", "prefix"} & load(folder).fingerprint.keys()
    again = same_text_encoder(encoder.fingerprint, "cpu", folder=str(folder), owner="a run")
    text = "a @b http://c"
    (ids,), _ = again.tokenize([text])
    (plain,), _ = load(folder).tokenize(["query: a @user http"])
    assert ids.tolist() == plain.tolist()
    read = again.normalized(text)
    assert read == "a @user http"
    assert [read[start:end] for start, end in again.spans(read)] == ["", "", "", "a", "@", "user", "http", ""]


def test_a_piece_that_begins_in_the_prefix_is_the_words(folder):
    """Some tokenizers count the blank before a word to its first piece."""
    encoder = load(folder, text_prefix="query: ")

    class Encoding:
        offsets = ((0, 0), (0, 5), (5, 6), (6, 8), (0, 0))

    encoder._encodings = lambda texts: [Encoding()]
    assert encoder.spans("a") == [(0, 0), (0, 0), (0, 0), (0, 1), (0, 0)]


def test_pooling_takes_one_token():
    one = np.array([[2.0, -3.0]], np.float16)
    for pooling in ("mean", "cls", "eos"):
        assert pooled_tokens(one, pooling).tolist() == [2, -3]
