"""An exported folder predicts as its run does, holds what it should and no more, and its ONNX file says the same."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from fusion.config import load_config
from fusion.data.batches import read_batch
from fusion.inference import onnx
from fusion.inference.export import export
from fusion.inference.onnx import write_onnx
from fusion.inference.predictor import Predictor
from fusion.models.base import Dimensions
from fusion.models.fusion import FusionModel
from fusion.models.registry import build_model
from fusion.run import Run
from fusion.training.train import train
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import invoke, refused
from tests.helpers.predictions import raw, values
from tests.helpers.toy import FINGERPRINT, ToyText, random_batch, write_cache
from tests.helpers.training import CPU

CHANNELS, WIDTH = 11, 7
SMALL = ("width=6", "heads=2", "layers=1", "batch_size=13", "epochs=1")


@pytest.fixture(scope="module")
def masking_run(tmp_path_factory):
    """A toy run that was trained with the masked-language loss, so that it has a head to leave behind."""
    folder = tmp_path_factory.mktemp("export")
    marks = {**FINGERPRINT["image"], "weights_sha256": "0" * 64}
    text = {**FINGERPRINT["text"], "weights_sha256": "1" * 64}
    cache = write_cache(folder / "cache", fingerprint={**FINGERPRINT, "image": marks, "text": text})
    run = Run(folder / "run")
    train(cache, load_config(settings=SMALL), run, CPU, text_encoder=ToyText(WIDTH), quiet=True)
    return run


def test_an_export_predicts_as_its_run(tiny_run, predictor, image_encoder, text_encoder, drawn_posts, tmp_path):
    invoke("export", tiny_run.folder, "--out", tmp_path / "out", "--json", tmp_path / "export.json")
    exported = Run(tmp_path / "out")
    there = Predictor(exported, exported.load_model(CPU), image_encoder, text_encoder, CPU)
    posts = [raw(post) for post in drawn_posts[:3]]
    assert values(there.predict(posts)).tolist() == values(predictor.predict(posts)).tolist()
    post = drawn_posts[0]
    output = invoke("predict", tmp_path / "out", "--image", post.image, "--text", post.text)
    assert f"{LABELS[0]:10}{predictor.predict(posts[:1])[0].probabilities[LABELS[0]]:>7.1%}" in output
    written = json.loads((tmp_path / "export.json").read_text())
    assert set(written["bytes"]) == {path.name for path in (tmp_path / "out").iterdir()}


def test_it_holds_what_prediction_needs_and_nothing_of_this_machine(masking_run, tmp_path):
    files = export(masking_run, tmp_path / "out")
    assert set(files) == {"run.json", "config.yaml", "model.safetensors", "README.md"}
    exported = Run(tmp_path / "out")
    before, now = masking_run.load_model(CPU), exported.load_model(CPU)
    assert {name for name in before.state_dict() if name not in now.state_dict()} >= {"mlm_head.weight"}
    batch = random_batch([5, 2, 9], m=3, channels=CHANNELS, width=WIDTH, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(before(batch), now(batch))
    text = "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors")
    assert str(masking_run.folder.parent) not in text
    assert exported.metadata["labels"] == list(LABELS)
    assert exported.metadata["fingerprint"] == masking_run.metadata["fingerprint"]


def test_a_baseline_is_exported_as_it_is(masking_run, tmp_path):
    run = Run(tmp_path / "run")
    cache = Cache(Path(masking_run.metadata["cache"]))
    train(cache, load_config(settings=(*SMALL, "model=multisentinet")), run, CPU, quiet=True)
    export(run, tmp_path / "out")
    batch = read_batch(cache, [4, 1, 7], CPU)
    assert torch.equal(Run(tmp_path / "out").load_model(CPU)(batch), run.load_model(CPU)(batch))


def test_the_card_counts_what_was_trained_on_and_names_what_is_there(masking_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(masking_run.folder, run)
    lines = (run / "splits.csv").read_text().splitlines()
    number = next(number for number, line in enumerate(lines) if ",positive,train," in line)
    lines[number] += "yes"  # it had failed in extraction
    (run / "splits.csv").write_text("\n".join(lines) + "\n")
    export(Run(run), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| positive | 11 | 4 | 4 |" in card
    assert "The masked-language head" in card
    cache = Cache(Path(masking_run.metadata["cache"]))
    train(cache, load_config(settings=(*SMALL, "model=dnn-lr")), Run(tmp_path / "other"), CPU, quiet=True)
    export(Run(tmp_path / "other"), tmp_path / "out2")
    assert "masked-language head" not in (tmp_path / "out2" / "README.md").read_text()


def test_the_card_tells_the_data_the_scores_and_the_settings(masking_run, tmp_path):
    export(masking_run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| positive | 12 | 4 | 4 |" in card  # of 60 posts, three fifths, in equal parts
    assert "was not evaluated" in card
    assert f"weighted F1\n{masking_run.metadata['validation']['weighted_f1']:.1%}" in card
    assert "mlm: true" in card  # the training's own settings, not the export's
    for heading in ("Use", "Encoders", "Data", "Scores", "Limits", "Licences", "Files"):
        assert f"\n## {heading}\n" in card


def test_runs_are_never_overwritten_by_exports(masking_run, tiny_run, tmp_path):
    before = (tiny_run.folder / "run.json").read_bytes()
    assert "already exists" in refused("export", masking_run.folder, "--out", tiny_run.folder)
    message = refused("export", masking_run.folder, "--out", tiny_run.folder, "--overwrite")
    assert "a run lies there" in message
    assert (tiny_run.folder / "run.json").read_bytes() == before
    out = tmp_path / "out"
    export(masking_run, out)
    (out / "notes.txt").write_text("mine")
    invoke("export", masking_run.folder, "--out", out, "--overwrite", "--quiet")
    assert (out / "notes.txt").read_text() == "mine"
    assert "is an export already" in refused("export", out, "--out", tmp_path / "again")
    assert "an export knows no posts" in refused("evaluate", out)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("segment_embeddings=true", "layers=2"),
        pytest.param(("modalities=text",), marks=pytest.mark.long),
        pytest.param(("label_rule=true",), marks=pytest.mark.long),
    ],
)
def test_onnx_gives_the_same_logits_at_sizes_of_its_own(settings, tmp_path):
    torch.manual_seed(0)
    model = FusionModel(
        load_config(settings=(*SMALL, "mlm=false", *settings)), Dimensions(CHANNELS, WIDTH, 0, classes=3)
    ).eval()
    assert write_onnx(model, tmp_path / "model.onnx", ["sad", "<glad>", "ça"]) < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == ["sad", "<glad>", "ça"]
    names = {one.name for one in session.get_inputs()}
    assert "tokens" in names
    batch = random_batch([4, 13, 2, 7, 1], m=17, channels=CHANNELS, width=WIDTH, dtype=torch.float32)
    fed = {name: getattr(batch, name).numpy() for name in onnx.INPUTS if name in names}
    (found,) = session.run(["logits"], fed)
    with torch.no_grad():
        expected = model(batch).numpy()
    assert found.shape == (5, 3)
    assert np.abs(found - expected).max() < 1e-4
    # what stands at padded places is as little to ONNX as to the model
    padded = batch.tokens + 100 * (~batch.text_mask)[:, :, None]
    (again,) = session.run(["logits"], {**fed, "tokens": padded.numpy()})
    assert np.abs(again - expected).max() < 1e-4
    assert np.ptp(expected, axis=0).min() > 1e-2


def test_onnx_reads_a_texts_own_vector_where_that_is_not_the_mean_of_its_words(tmp_path):
    torch.manual_seed(0)
    config = load_config(settings=("model=concat", "width=13", "layers=1"))
    model = build_model(config, Dimensions(CHANNELS, WIDTH, 0, classes=3, text_pooled=3)).eval()
    assert write_onnx(model, tmp_path / "model.onnx", ["a", "b", "c"], own_vector=True) < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    batch = random_batch([4, 13, 2], m=17, channels=CHANNELS, width=WIDTH, dtype=torch.float32)
    batch = replace(batch, text_pooled=torch.randn(3, 3))
    names = {one.name for one in session.get_inputs()}
    assert "text_pooled" in names
    (found,) = session.run(["logits"], {name: getattr(batch, name).numpy() for name in onnx.INPUTS if name in names})
    with torch.no_grad():
        assert np.abs(found - model(batch).numpy()).max() < 1e-4


def test_an_onnx_file_that_is_not_exact_is_refused(masking_run, tmp_path, monkeypatch):
    exact = FusionModel.forward

    def forward(model, batch):
        tokens = batch.tokens if torch.compiler.is_exporting() else batch.tokens + 0.01
        return exact(model, replace(batch, tokens=tokens))

    monkeypatch.setattr(FusionModel, "forward", forward)
    with pytest.raises(InputError, match=r"model\.onnx: not written; onnxruntime's logits differ by"):
        export(masking_run, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert not Run(tmp_path / "out").started  # an export without its last file is none


def test_what_onnx_needs_is_named(masking_run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    message = refused("export", masking_run.folder, "--out", tmp_path / "out", "--onnx")
    assert "--onnx needs onnxscript: pip install onnxscript" in message
