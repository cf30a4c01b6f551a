"""Caches whose images' vectors are no mean of their patches, of a width of their own too: every command, and which
models can read them.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from fusion.config import load_config
from fusion.data.feature_store import FeatureStore
from fusion.data.pooled_store import PooledStore
from fusion.evaluation.evaluate import evaluate
from fusion.evaluation.predict import predict_rows
from fusion.experiments.collect import source_of
from fusion.explanation.attribution import batch_of, weigh
from fusion.explanation.explain import NO_PLACES, cached_features, explain_cached, explain_posts
from fusion.explanation.faithfulness import of_run
from fusion.inference.export import export
from fusion.inference.predictor import Predictor, RawPost
from fusion.names import baselines
from fusion.run import Run
from fusion.training.train import train
from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.licences import restriction
from tests.helpers.commands import invoke
from tests.helpers.extraction import write_posts
from tests.helpers.local_encoders import write_encoders
from tests.helpers.toy import IMAGE_VECTOR, write_cache
from tests.helpers.training import CPU

SMALL = ("width=14", "heads=2", "layers=1", "epochs=1", "batch_size=8", "mlm=false")
TINY = ("width=12", "layers=1", "epochs=1", "batch_size=8")
CLIP = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"  # 256 channels, projected to 512


def values(predictions):
    return np.array([list(one.probabilities.values()) for one in predictions])


def test_the_cache_keeps_vectors_of_their_own_width(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=300, image_pooled="model", views=3)
    assert (cache.patches_shape, cache.image_pooled_width) == ((5, 11), IMAGE_VECTOR)
    rows, views = np.array([299, 0, 256, 17]), np.array([2, 0, 1, 1])
    patches, pooled = cache.gather_images(rows, views=views)
    assert (patches.shape, pooled.shape) == ((4, 5, 11), (4, IMAGE_VECTOR))
    assert np.array_equal(cache.gather_pooled(rows, views=views), pooled)
    assert np.array_equal(pooled, [cache.pooled(row, view) for row, view in zip(rows, views, strict=True)])
    assert cache.damage() == []


@pytest.mark.parametrize("pooled", ["max", "mean"])
def test_a_shard_whose_vectors_are_not_as_the_fingerprint_says_is_refused(pooled, tmp_path):
    """Of the mean the width is that of the patches; of none there are no vectors without patches."""
    write_cache(tmp_path / "cache", posts=20, image_pooled="model")
    path = tmp_path / "cache" / "shard-00000.h5"
    with hdf5.h5py.File(path, "r+") as file:
        marks = json.loads(file.attrs["fingerprint"])
        marks["image"]["pooled"] = pooled
        file.attrs["fingerprint"] = json.dumps(marks)
    (found,) = hdf5.read_shards([path])
    assert isinstance(found, InputError)
    unknown, uneven = "image.pooled is not one that mscf writes", f"[20, {IMAGE_VECTOR}], not [20, 11]"
    assert (unknown if pooled == "max" else uneven) in str(found)


def test_both_stores_serve_them(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=30, image_pooled="model", views=2)
    rows, views = np.array([7, 29, 0]), np.arange(30) % 2
    stores = [FeatureStore(cache, np.arange(30), CPU, place, views=2) for place in ("map", "ram")]
    for store in (*stores, PooledStore(cache, np.arange(30), CPU, views=2)):
        (batch,) = store.batches([rows], views)
        assert np.array_equal(batch.pooled.numpy(), cache.gather_pooled(rows, views=views[rows]))
    assert stores[0].bytes == 30 * 2 * (5 * 11 + IMAGE_VECTOR) * 4 + cache.lengths.sum() * (7 * 4 + 8) + 30 * 7 * 4


@pytest.mark.parametrize("name", ["fusion", *baselines()])
def test_models_that_need_equal_widths_say_so_and_name_those_that_do_not(name, tmp_path):
    cache = write_cache(tmp_path / "cache", image_pooled="model")
    with pytest.raises(InputError) as caught:
        train(cache, load_config(settings=(f"model={name}",)), tmp_path / "run", CPU, quiet=True)
    assert str(caught.value) == (
        f"{tmp_path / 'cache'}: its patches are 11 wide and its pooled vectors 2, and the model {name} needs both "
        "alike (eq 3); use concat, concat-product, product, stacked, or extract with image_pooled=mean or cls"
    )


def test_a_model_of_texts_alone_or_of_equal_widths_is_trained(tmp_path):
    other = write_cache(tmp_path / "other", image_pooled="model")
    train(other, load_config(settings=(*SMALL, "modalities=text")), tmp_path / "text", CPU, quiet=True)
    equal = write_cache(tmp_path / "equal", image_pooled="cls")
    train(equal, load_config(settings=SMALL), tmp_path / "fusion", CPU, quiet=True)


def test_a_run_meets_vectors_of_its_own_width_alone(tmp_path):
    cache = write_cache(tmp_path / "cache", image_pooled="model")
    train(cache, load_config(settings=(*TINY, "model=product")), tmp_path / "run", CPU, quiet=True)
    run = Run(tmp_path / "run")
    assert run.metadata["dimensions"]["image_pooled"] == IMAGE_VECTOR
    assert len(evaluate(run, CPU)["posts"]) == 12
    facts = json.loads((run.folder / "run.json").read_text())
    for width, says in ((3, "image_pooled 2, but"), (None, "image_pooled 2, but")):
        facts["dimensions"]["image_pooled"] = width
        (run.folder / "run.json").write_text(json.dumps(facts))
        with pytest.raises(InputError, match=says):
            Run(run.folder).open_cache()
    facts["dimensions"]["image_pooled"] = 2
    (run.folder / "run.json").write_text(json.dumps(facts))
    config = (run.folder / "config.yaml").read_text().replace("model: product", "model: dnn-lr")
    (run.folder / "config.yaml").write_text(config)
    with pytest.raises(InputError, match=r"config.yaml does not fit run.json \(its patches are 11 wide"):
        Run(run.folder).load_model(CPU)


def test_runs_and_dimensions_of_before_have_vectors_as_wide_as_the_patches(tmp_path):
    cache = write_cache(tmp_path / "cache")
    train(cache, load_config(settings=(*TINY, "model=product")), tmp_path / "run", CPU, quiet=True)
    run = Run(tmp_path / "run")
    before = predict_rows(run.load_model(CPU), cache, np.arange(5), CPU)
    facts = json.loads((run.folder / "run.json").read_text())
    del facts["dimensions"]["image_pooled"]
    (run.folder / "run.json").write_text(json.dumps(facts))
    again = Run(run.folder)
    again.open_cache()
    assert np.array_equal(predict_rows(again.load_model(CPU), cache, np.arange(5), CPU), before)


def test_gradients_by_a_vector_that_is_no_mean_reach_no_patch(tmp_path):
    """The paper's model still has those by the patches themselves; a pooled model has none."""
    cache = write_cache(tmp_path / "cache", image_pooled="cls")
    post = cached_features(cache, 3, CPU)
    assert post.own_image_vector
    for name, shown in (("fusion", 5), ("concat", 0)):
        train(cache, load_config(settings=(*SMALL, f"model={name}")), tmp_path / name, CPU, quiet=True)
        model = Run(tmp_path / name).load_model(CPU)
        weights = weigh(model, post, 1, "gradient")
        assert len(weights.patches) == shown
        if shown:
            leaf = post.patches.clone().requires_grad_()
            logits = model(batch_of(model, replace(post, patches=leaf)))[0]
            odds = logits[1] - torch.stack([logits[0], logits[2]]).logsumexp(0)
            (slope,) = torch.autograd.grad(odds, leaf)
            signed = (slope * leaf).sum(dim=1).detach().clamp(min=0)
            torch.testing.assert_close(weights.patches / weights.patches.sum(), signed / signed.sum())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache of 30 posts by the command, with the image's vector projected by its own head, and a run of it."""
    folder = tmp_path_factory.mktemp("made")
    encoders = write_encoders(folder / "encoders", ["word", "sky", "sad", "sun"])
    torch.manual_seed(0)
    torch.save(timm.create_model(CLIP, pretrained=False).state_dict(), folder / "image.pth")
    lines = []
    for number, post in enumerate(write_posts(folder / "posts", 30)):
        split, label = ("train", "val", "test")[number // 2 % 3], ("glad", "sad")[number % 2]
        line = {"id": post.id, "text": post.text, "image": str(post.image), "label": label, "split": split}
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    image = ("--image-encoder", CLIP, "--image-weights", folder / "image.pth", "--image-pooled", "model")
    text = ("--text-encoder", encoders.text, "--device", "cpu")
    said = invoke("extract", folder / "manifest.jsonl", *image, *text, "--out", folder / "cache")
    settings = [part for one in (*TINY, "model=concat-product") for part in ("--set", one)]
    invoke("train", folder / "cache", *settings, "--out", folder / "run", "--device", "cpu")
    local = ("--image-weights", folder / "image.pth", "--text-encoder", encoders.text)
    return folder, local, said


def test_every_command_works_on_them(made, tmp_path):
    folder, local, said = made
    assert f"encoders: {CLIP} (196 x 256, pooled 512) and bert (local files)" in said
    assert f"licence of {CLIP}: mit" in said
    assert "licence of bert (local files): unknown (read the model's own page)" in said
    again = ("--verify", "--re-encode", 5, *local, "--device", "cpu", "--json", tmp_path / "facts.json")
    invoke("inspect", folder / "cache", *again)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["problems"], facts["patches"], facts["image_pooled_width"]) == ([], [196, 256], 512)
    assert facts["fingerprint"]["image"]["licence"] == "mit"
    invoke("probe", folder / "cache")
    invoke("evaluate", folder / "run", "--device", "cpu")
    invoke("predict", folder / "run", "--image", folder / "posts" / "3.jpg", "--text", "sad", *local, "--device", "cpu")
    shown = invoke("explain", folder / "run", "--ids", "3,4", "--out", tmp_path / "look", *local, "--device", "cpu")
    assert NO_PLACES in shown
    posts = json.loads((tmp_path / "look" / "explanations.json").read_text())["posts"]
    assert all(run["heat"] is None and run["words"] for post in posts for run in post["runs"])
    assert "places are not shown" in (tmp_path / "look" / "index.html").read_text()


def test_a_raw_post_gets_the_answer_of_the_cache_and_an_export_the_same(made, tmp_path):
    folder, local, _ = made
    weights, text = local[1], str(local[3])
    predictor = Predictor.open(Run(folder / "run"), CPU, image_weights=weights, text_encoder=text)
    cache = Cache(folder / "cache")
    posts = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()[:5]]
    raw = [RawPost(one["id"], one["text"], (folder / "posts" / f"{one['id']}.jpg").read_bytes()) for one in posts]
    known = predict_rows(predictor.model, cache, np.arange(5), CPU)
    np.testing.assert_allclose(values(predictor.predict(raw)), known, rtol=0, atol=1e-5)
    explained = explain_posts(predictor, [predictor.inputs(post) for post in raw])
    cached = explain_cached(predictor.model, cache, np.arange(5), CPU, predictor.text)
    for one, other in zip(explained, cached, strict=True):
        assert one.note == other.note == NO_PLACES
        assert one.heat is other.heat is one.text_share is None
        np.testing.assert_allclose(one.pieces, other.pieces, rtol=1e-2, atol=1e-3)
    drop = of_run(predictor, "val", 3, quiet=True)["drop"]
    assert set(drop) == {"words"}
    export(Run(folder / "run"), tmp_path / "out", onnx=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| image | {CLIP} | mit |" in card.replace("\\", "")
    assert "| unknown (read the model's own page) |" in card
    there = Predictor.open(tmp_path / "out", CPU, image_weights=weights, text_encoder=text)
    assert values(there.predict(raw)).tolist() == values(predictor.predict(raw)).tolist()


def test_a_licence_makes_no_difference(tmp_path):
    """A shard and a run that say another licence, or none, are of the same encoders; with another pooling not."""
    write_cache(tmp_path / "cache", posts=40, image_pooled="cls")
    train(Cache(tmp_path / "cache"), load_config(settings=(*TINY, "model=product")), tmp_path / "run", CPU, quiet=True)
    before, posts = Cache(tmp_path / "cache").fingerprint, hdf5.read_posts(tmp_path / "cache")

    def written(shard, index):
        """The cache with these marks of its images in its shard, and those in its index."""
        with hdf5.h5py.File(tmp_path / "cache" / "shard-00000.h5", "r+") as file:
            file.attrs["fingerprint"] = json.dumps({**before, "image": {**before["image"], **shard}})
        hdf5.write_index(tmp_path / "cache", {0: posts}, {**before, "image": {**before["image"], **index}})
        return Cache(tmp_path / "cache")

    assert written({"licence": "cc-by-nc-4.0"}, {}).damage() == []
    assert written({}, {"licence": "mit"}).damage() == []
    assert Run(tmp_path / "run").open_cache().cache.fingerprint["image"]["licence"] == "mit"
    assert source_of(written({}, {"licence": "mit"})) == source_of(written({}, {}))
    assert source_of(written({}, {"dtype": "x"})) != source_of(written({}, {}))
    assert "its posts or encoders are not" in str(written({}, {"pooled": "model"}).damage())
    with pytest.raises(InputError, match=r"image\.pooled: cls, not model"):
        Run(tmp_path / "run").open_cache()


def test_licences_ask_for_what_they_ask():
    assert [restriction(one) for one in ("mit", "apache-2.0", "bsd-3-clause")] == ["", "", ""]
    assert restriction("cc-by-nc-4.0") == restriction("apple-amlr") == "not for commercial use"
    assert restriction("dinov3-license") == "has terms of its own; read them first"
    assert restriction("unknown") == "read the model's own page"
