"""A text's vector and form, from extraction to answers: the cache, training, predictions, explanations and exports."""

import json
from pathlib import Path

import numpy as np
import pytest

from fusion.config import load_config
from fusion.evaluation.predict import predict_rows
from fusion.explanation.explain import explain_cached, explain_posts
from fusion.explanation.faithfulness import of_run
from fusion.inference.export import export
from fusion.inference.predictor import Predictor, RawPost
from fusion.run import Run
from fusion.training.build import masking_encoder
from fusion.training.train import train
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from tests.helpers.commands import invoke
from tests.helpers.extraction import write_posts
from tests.helpers.local_encoders import write_encoders
from tests.helpers.text_towers import PROJECTED, WIDTH, write_tower
from tests.helpers.training import CPU

SMALL = ("width=14", "heads=2", "layers=1", "epochs=1", "batch_size=8", "mlm=false")
CASES = {  # encoder, options of extract, width of the texts' vectors
    "CLIP": ("CLIP", ("--text-pooled", "model", "--text-normalize", "tweet"), PROJECTED),
    "SigLIP": ("Siglip2", ("--text-pooled", "model"), PROJECTED),
    "SigLIP mean": ("Siglip", (), WIDTH),
    "BERT": ("Bert", ("--text-pooled", "cls", "--text-prefix", "sad: ", "--text-normalize", "tweet"), 16),
}


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory):
    """The folder of a cache of 30 posts, its encoders and the case."""
    folder = tmp_path_factory.mktemp("case")
    kind, options, width = CASES[request.param]
    encoders = write_encoders(folder / "encoders", ["word", "sky", "sad", "sun", "@", "user"])
    text = encoders.text if kind == "Bert" else write_tower(folder / "tower", kind)
    lines = []
    for number, post in enumerate(write_posts(folder / "posts", 30)):
        split, label = ("train", "val", "test")[number // 2 % 3], ("glad", "sad")[number % 2]
        line = {"id": post.id, "text": f"@ann {post.text}" if number % 3 else "", "image": str(post.image)}
        lines.append(json.dumps({**line, "label": label, "split": split}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    image = ("--image-encoder", "test_resnet", "--image-weights", encoders.weights)
    command = ("extract", folder / "manifest.jsonl", *image, "--text-encoder", text, *options, "--device", "cpu")
    said = invoke(*command, "--out", folder / "cache")
    return request.param, folder, command, str(text), width, said


@pytest.fixture(scope="module")
def runs(made):
    """A run by model, trained when it is asked for."""
    _, folder, *_ = made
    found = {}

    def run_of(model):
        if model not in found:
            settings = (*SMALL, f"model={model}", *(("label_smoothing=0.1",) if model != "fusion" else ()))
            train(Cache(folder / "cache"), load_config(settings=settings), folder / model, CPU, quiet=True)
            found[model] = Run(folder / model)
        return found[model]

    return run_of


@pytest.fixture(params=["concat-product", "fusion"])
def run(request, runs):
    return runs(request.param)


@pytest.fixture
def predictor(run, made):
    _, folder, _, text, *_ = made
    weights = folder / "encoders" / "image.safetensors"
    return Predictor.open(run, CPU, image_weights=weights, text_encoder=text)


def raw_posts(folder):
    posts = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [RawPost(post["id"], post["text"], Path(post["image"]).read_bytes()) for post in posts]


def values(answers):
    return np.array([list(one.probabilities.values()) for one in answers])


def test_the_cache_is_whole_and_says_what_it_has(made, tmp_path):
    case, folder, _, text, width, said = made
    cache = Cache(folder / "cache")
    assert cache.ok.all()
    assert cache.gather_text_pooled(np.arange(30)).shape == (30, width)
    weights = ("--image-weights", folder / "encoders" / "image.safetensors", "--text-encoder", text)
    again = ("--verify", "--re-encode", 7, *weights, "--device", "cpu", "--json", tmp_path / "facts.json")
    invoke("inspect", folder / "cache", *again)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["problems"], facts["text_pooled_width"], facts["mask_token"]) == ([], width, case == "BERT")
    assert ("no mask token" in said) == (case != "BERT")
    assert min(cache.lengths) == (1 if "SigLIP" in case else 4 if case == "BERT" else 2)


def test_an_answer_is_that_of_the_cache(predictor, made):
    _, folder, *_ = made
    known = predict_rows(predictor.model, Cache(folder / "cache"), np.arange(30), CPU)
    np.testing.assert_allclose(values(predictor.predict(raw_posts(folder))), known, rtol=0, atol=1e-5)


def test_explanations_show_words_or_say_why_not(predictor, run, made):
    case, folder, *_ = made
    posts = raw_posts(folder)[4:6]
    raw = explain_posts(predictor, [predictor.inputs(post) for post in posts])
    cached = explain_cached(predictor.model, Cache(folder / "cache"), np.array([4, 5]), CPU, predictor.text)
    shown = run.config.model == "fusion" or case == "SigLIP mean"
    for one, other, post in zip(raw, cached, posts, strict=True):
        np.testing.assert_allclose(one.patches, other.patches, rtol=1e-3, atol=1e-4)
        assert bool(one.words) == bool(other.words) == shown
        assert one.note.startswith("words are not shown") == (not shown)
        if shown:
            read = post.text.replace("@ann", "@user") if case in ("CLIP", "BERT") else post.text
            assert [word for word, _ in one.words] == read.split()
        else:
            assert one.text_share is None


def test_faithfulness_masks_what_can_be_masked(predictor, run, made):
    case, *_ = made
    said = []
    drop = of_run(predictor, "val", 3, quiet=True, say=said.append)["drop"]
    assert ("words are not masked: the text encoder has no mask token" in said) == (case != "BERT")
    assert ("words" in drop) == (case == "BERT" and run.config.model == "fusion")
    assert "patches" in drop


def test_an_export_answers_the_same(predictor, run, made, tmp_path):
    _, folder, _, text, *_ = made
    export(run, tmp_path / "out")
    weights = folder / "encoders" / "image.safetensors"
    there = Predictor.open(tmp_path / "out", CPU, image_weights=weights, text_encoder=text)
    posts = raw_posts(folder)[:3]
    assert values(there.predict(posts)).tolist() == values(predictor.predict(posts)).tolist()


def test_masked_words_need_a_mask_token(made, tmp_path):
    case, folder, _, text, *_ = made
    cache, settings = Cache(folder / "cache"), load_config(settings=(*SMALL, "mlm=true"))
    if case == "BERT":
        assert masking_encoder(cache, CPU, settings, text).mask_id == 4
    else:
        with pytest.raises(InputError, match=r"has no mask token, so no words can be masked; set mlm to false$"):
            train(cache, settings, tmp_path / "run", CPU, quiet=True)


def test_another_vector_or_form_is_another_fingerprint(made):
    case, folder, command, *_ = made
    other = ("--text-prefix", "b") if case == "BERT" else ("--text-pooled", "eos")
    answer = invoke(*command, *other, "--out", folder / "cache", "--append", code=1)
    field = "text.prefix" if case == "BERT" else "text.pooled"
    assert f"computed by other encoders; {field}: " in answer
