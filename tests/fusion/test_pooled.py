"""The models on pooled vectors: against NumPy written out post by post, standardised as on the training posts."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fusion.config import load_config
from fusion.data.batches import read_batch
from fusion.data.feature_store import FeatureStore
from fusion.data.pooled_store import PooledStore
from fusion.models.base import Dimensions
from fusion.models.label_rule import PAIRS
from fusion.models.registry import build_model
from fusion.names import pooled_models
from fusion.run import Run
from fusion.training.build import new_model
from fusion.training.train import train
from pipeline.common.errors import InputError
from tests.helpers.models import CHANNELS, LENGTHS, PATCHES, TEXT_WIDTH, batch_of
from tests.helpers.toy import VECTOR, write_cache

MODELS = ("concat", "concat-product", "product")  # `stacked` has a file of its own
DIMENSIONS = Dimensions(CHANNELS, TEXT_WIDTH, vocabulary=0, classes=3, patches=PATCHES)
CPU = torch.device("cpu")
BASE = ("width=13", "dropout=0.0", "batch_size=8", "epochs=2", "lr=1e-2")


def gelu(values):
    return np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in values])


def linear(model, name, values):
    weights = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    return weights[f"{name}.weight"] @ values + weights[f"{name}.bias"]


def log_softmax(values):
    return values - np.log(np.exp(values).sum())


def expected_logits(model, name, tokens, pooled):
    """One post: tokens (n, D) without padding, pooled (C,)."""
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    text = (tokens.mean(axis=0) - state["text_vector.mean"]) / state["text_vector.deviation"]
    image = (pooled - state["image_vector.mean"]) / state["image_vector.deviation"]
    if name == "concat":
        features = np.concatenate([text, image])
    else:
        text, image = gelu(linear(model, "text_block.linear", text)), gelu(linear(model, "image_block.linear", image))
        features = text * image if name == "product" else np.concatenate([text, image, text * image])
    for number in range(len(model.hidden)):
        features = gelu(linear(model, f"hidden.{number}.linear", features))
    if not model.config.label_rule:
        return linear(model, "head", features)
    of_text = log_softmax(linear(model, "head.text_head", features))
    of_image = log_softmax(linear(model, "head.image_head", features))
    return np.array([np.log(sum(np.exp(of_text[t] + of_image[i]) for t, i in pairs)) for pairs in PAIRS])


def random_model(name, *settings):
    model = build_model(load_config(settings=(*BASE, f"model={name}", *settings)), DIMENSIONS).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.copy_(0.4 * torch.randn(value.shape, generator=generator, dtype=torch.float64).abs() + 0.1)
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [("layers=1",), ("layers=3",), ("layers=1", "label_rule=true")])
def test_logits_are_those_of_each_post_written_out(name, settings):
    model, batch = random_model(name, *settings), batch_of(LENGTHS)
    for number, length in enumerate(LENGTHS):
        tokens, pooled = batch.tokens[number, :length].numpy(), batch.pooled[number].numpy()
        np.testing.assert_allclose(
            model(batch)[number].detach().numpy(), expected_logits(model, name, tokens, pooled), rtol=1e-9
        )


def test_these_are_all():
    assert sorted(pooled_models()) == sorted((*MODELS, "stacked"))


@pytest.mark.parametrize("name", MODELS)
def test_a_modality_that_is_left_out_counts_as_the_mean_of_the_training_posts(name):
    model, batch = random_model(name, "layers=2"), batch_of(LENGTHS)
    no = torch.zeros(len(LENGTHS), dtype=torch.bool)
    mean = model.image_vector.mean.expand(len(LENGTHS), -1)
    torch.testing.assert_close(model(replace(batch, has_image=no)), model(replace(batch, pooled=mean)))
    mean = model.text_vector.mean.expand(len(LENGTHS), -1)
    torch.testing.assert_close(model(replace(batch, has_text=no)), model(replace(batch, text_pooled=mean)))


@pytest.mark.parametrize("views", [1, 2])
def test_mean_and_deviation_are_those_of_the_training_posts_and_stay_with_the_run(views, tmp_path):
    cache = write_cache(tmp_path / "cache", posts=75, views=views)
    settings = (*BASE, "model=concat", "layers=1", *(("views=sample",) if views > 1 else ()))
    model = new_model(cache, load_config(settings=settings), None)
    rows = cache.rows("train")
    texts = np.stack([cache.tokens(row).astype(np.float64).mean(axis=0) for row in rows])
    images = np.concatenate([cache.gather_images(rows, views=np.full(len(rows), view))[1] for view in range(views)])
    for vector, there in ((model.text_vector, texts), (model.image_vector, images.astype(np.float64))):
        np.testing.assert_allclose(vector.mean.numpy(), there.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(vector.deviation.numpy(), there.std(axis=0), rtol=1e-4)
    train(cache, load_config(settings=settings), tmp_path / "run", CPU, quiet=True)
    kept = Run(tmp_path / "run").load_model(CPU)
    assert torch.equal(kept.image_vector.mean, model.image_vector.mean)
    assert torch.equal(kept.text_vector.deviation, model.text_vector.deviation)


def test_a_feature_that_is_always_the_same_is_left_at_zero(tmp_path):
    model = random_model("concat", "layers=1")
    model.image_vector.fit(np.full((5, CHANNELS), 7.0, np.float32))
    assert torch.equal(model.image_vector(torch.full((2, CHANNELS), 7.0)), torch.zeros(2, CHANNELS).double())


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_what_both_modalities_tell(name, tmp_path):
    cache = write_cache(tmp_path / "cache", posts=150, strength=3.0)
    settings = (*BASE, f"model={name}", "layers=1", "epochs=12", "label_smoothing=0.1", "class_weights=balanced")
    result = train(cache, load_config(settings=settings), tmp_path / "run", CPU, quiet=True)
    assert result.validation["accuracy"] > 0.8


def test_the_label_rule_has_the_loss_of_both_modalities_labels(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=75)
    settings = (*BASE, "model=concat-product", "layers=1", "label_rule=true", "auxiliary_weight=0.7")
    train(cache, load_config(settings=settings), tmp_path / "run", CPU, quiet=True)
    assert all(line["loss_auxiliary"] > 0 for line in Run(tmp_path / "run").metrics())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model=concat", "cross_attention=false"), "cross_attention: only the fusion model has it, not concat"),
        (
            ("model=dnn-lr", "input_dropout=0.3"),
            "input_dropout: only fusion, concat, .* have it, not dnn-lr",
        ),
        (("model=dnn-lr", "label_rule=true"), "label_rule: only the fusion model has it, not dnn-lr"),
    ],
)
def test_settings_of_other_models_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        load_config(settings=settings)


def test_a_width_need_not_be_a_multiple_of_heads():
    assert load_config(settings=("model=product", "width=13")).width == 13


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("text_pooled", ["", "mean", "eos", "model"])
def test_vectors_held_in_memory_give_the_logits_of_the_posts_themselves(name, text_pooled, tmp_path):
    cache = write_cache(tmp_path / "cache", posts=75, views=2, text_pooled=text_pooled)
    model = new_model(cache, load_config(settings=(*BASE, f"model={name}", "layers=2", "views=sample")), None).eval()
    rows, views = np.array([74, 3, 17, 3, 0]), np.arange(75) % 2
    (held,) = PooledStore(cache, np.arange(75), CPU, views=2).batches([rows], views)
    for place in ("map", "ram"):
        (read,) = FeatureStore(cache, np.arange(75), CPU, place, views=2).batches([rows], views)
        torch.testing.assert_close(model(held), model(read), rtol=1e-5, atol=1e-6)
        for field in ("labels", "modality_labels", "has_text", "has_image", "text_pooled"):
            assert torch.equal(getattr(held, field), getattr(read, field))
    width = {"model": VECTOR}.get(text_pooled, cache.text_width)
    assert held.text_pooled.shape == (5, width)
    alone = {"model": held.text_pooled[1], "eos": torch.from_numpy(cache.tokens(3)[-1].copy())}
    mean = torch.from_numpy(cache.tokens(3).mean(axis=0))
    torch.testing.assert_close(held.text_pooled[1], alone.get(text_pooled, mean))


def test_the_vector_alone_reaches_the_logits(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=20, text_pooled="model")
    model = new_model(cache, load_config(settings=(*BASE, "model=concat", "layers=1")), None).eval()
    assert (model.dimensions.text_pooled, model.dimensions.text_vector_width) == (VECTOR, VECTOR)
    batch = read_batch(cache, [4, 7], CPU)
    other = replace(batch, tokens=torch.zeros_like(batch.tokens), patches=torch.zeros_like(batch.patches))
    assert torch.equal(model(batch), model(other))
    assert not torch.equal(model(batch), model(replace(batch, text_pooled=batch.text_pooled + 1)))


def test_a_run_meets_no_cache_with_vectors_of_another_width(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=20, text_pooled="model")
    with pytest.raises(InputError, match="text_pooled 3, but a run was made for 7"):
        cache.require_sizes({"channels": 11, "text_width": 7, "text_pooled": 7}, "a run")
    for earlier in ({}, {"text_pooled": None}):
        write_cache(tmp_path / "mean", posts=20).require_sizes({"channels": 11, "text_width": 7, **earlier}, "a run")


def test_a_row_or_a_view_that_is_not_held_is_an_error(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=20)
    store = PooledStore(cache, np.array([5, 7]), CPU)
    for rows, views in (([6], None), ([-1], None), ([5], np.ones(20, np.int64))):
        with pytest.raises(IndexError, match=f"row {rows[0]}: it, or its view, is not held"):
            list(store.batches([np.array(rows)], views))


def test_pooled_vectors_of_a_cache_are_those_beside_the_patches(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=300, views=3)
    rows, views = np.array([299, 0, 256, 17]), np.array([2, 0, 1, 1])
    assert np.array_equal(cache.gather_pooled(rows, views=views), cache.gather_images(rows, views=views)[1])
    assert np.array_equal(cache.gather_pooled(rows), cache.gather_images(rows)[1])
    for wrong in (np.array([300]), np.array([-1])):
        with pytest.raises(IndexError):
            cache.gather_pooled(wrong)


def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path):
    cache, config = write_cache(tmp_path / "cache", posts=75), load_config(settings=(*BASE, "model=product"))
    train(cache, config, tmp_path / "whole", CPU, quiet=True)

    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cache, config, tmp_path / "run", CPU, quiet=True, on_epoch=interrupt)
    train(cache, config, tmp_path / "run", CPU, quiet=True)
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == resumed.read_bytes()
