"""What regularises the paper's model beyond it: dropout of the encoders' features, their standardisation, and the
product of the pooled vectors. `test_model.py` and `test_fast.py` hold the last two to the oracle in every variant.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fusion.config import load_config
from fusion.evaluation.evaluate import evaluate
from fusion.evaluation.predict import log_probabilities
from fusion.explanation.attribution import (
    METHODS,
    attention_rollout,
    decisive_rows,
    head_weights,
    roll_out,
    support,
    trace,
)
from fusion.explanation.explain import explain_cached
from fusion.inference.export import export
from fusion.inference.predictor import Predictor
from fusion.models import fast_losses as fast
from fusion.models.standardised import Standardised
from fusion.run import Run
from fusion.training.build import new_model
from fusion.training.epoch import drop_modalities
from fusion.training.train import train
from pipeline.common.errors import InputError
from tests.helpers.agreement import assert_agrees
from tests.helpers.fast import assert_equals_the_clear_path, encode
from tests.helpers.models import (
    BASE,
    CHANNELS,
    EXACT,
    FEW,
    LENGTHS,
    SHORT,
    TEXT,
    TEXT_WIDTH,
    batch_of,
    features_of,
    model_of,
)
from tests.helpers.predictions import TOLERANCE, raw, values
from tests.helpers.toy import ToyText, write_cache
from tests.helpers.training import CPU, TINY, trained

ALL = ("standardise=true", "pooled_product=true", "input_dropout=0.4", "label_smoothing=0.1")
KEPT = {width: [0.0 if k % 3 == 1 else 5 / 3 for k in range(width)] for width in (TEXT_WIDTH, CHANNELS)}


class FixedDropout(nn.Module):
    """Takes the same features from every vector, so that the oracle can take them too."""

    def forward(self, features):
        return features * torch.tensor(KEPT[features.shape[-1]], dtype=features.dtype)


def with_fixed_dropout(*settings):
    model = model_of(load_config(settings=(*BASE, "layers=1", "input_dropout=0.4", *settings)))
    model.input_dropout = FixedDropout()
    return model


DROPPED = {
    "alone": (),
    "eq 21 to the letter": ("mask_projection=false", "width=7", "heads=1"),
    "masked cross-modal attention": ("mlm_cross=masked",),
    "with all": ALL,
    "image alone": ("modalities=image", "mlm=false"),
}


@pytest.mark.parametrize("settings", DROPPED.values(), ids=DROPPED)
def test_features_are_dropped_before_eqs_4_and_6_in_both_passes(settings):
    """Against the oracle: logits, words to mask, losses and gradients."""
    kept = {"text_kept": tuple(KEPT[TEXT_WIDTH]), "image_kept": tuple(KEPT[CHANNELS])}
    assert_agrees(with_fixed_dropout(*settings), batch_of(SHORT, m=FEW), **kept)


@pytest.mark.parametrize("settings", DROPPED.values(), ids=DROPPED)
def test_the_fast_path_drops_the_same(settings):
    assert_equals_the_clear_path(with_fixed_dropout(*settings), batch_of([7, 2, 5]))


def test_dropout_draws_each_feature_of_each_vector_in_training_alone():
    model, batch = model_of(load_config(settings=(*BASE, *ALL))), batch_of([9] * 29)
    seen = []
    model.input_dropout.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    model.losses(batch, TEXT)
    shapes = [(29, 9, TEXT_WIDTH), (29, 6, CHANNELS), (29, TEXT_WIDTH), (29, CHANNELS), (29, 9, TEXT_WIDTH)]
    assert [tuple(given.shape) for given, _ in seen] == shapes  # eqs 6 and 4, both vectors of the product, eq 21
    assert all(torch.equal(given, out) for given, out in seen)
    seen.clear()
    torch.manual_seed(5)
    fast.losses(model.train(), batch, encode)
    assert sorted(tuple(given.shape) for given, _ in seen) == sorted(shapes)
    for given, out in seen:
        gone = out == 0
        torch.testing.assert_close(out[~gone], (given / 0.6)[~gone])
        assert abs(float(gone.double().mean()) - 0.4) < 4 * (0.24 / gone.numel()) ** 0.5  # four standard errors
        vectors = gone.flatten(0, -2)
        assert len(vectors.unique(dim=0)) > min(len(vectors), 2 ** vectors.shape[1]) / 2


@pytest.mark.parametrize("name", ["standardise", "pooled_product", "input_dropout"])
def test_switched_off_it_has_no_weight_and_draws_no_random_number(name):
    plain = load_config(settings=(*BASE, "dropout=0.3"))
    assert not getattr(plain, name)
    model, batch = model_of(plain).train(), batch_of(LENGTHS)
    assert not [key for key in model.state_dict() if "product" in key or "standardised" in key]
    torch.manual_seed(3)
    losses = fast.losses(model, batch, encode).total
    model.input_dropout = nn.Identity()
    torch.manual_seed(3)
    assert torch.equal(fast.losses(model, batch, encode).total, losses)


@pytest.mark.parametrize("views", [1, 2])
def test_mean_and_deviation_are_those_of_tokens_and_image_rows_of_the_training_posts(views, tmp_path):
    cache = write_cache(tmp_path / "cache", posts=350, views=views)  # more than are in memory at a time
    settings = (*TINY, "standardise=true", *(("views=sample",) if views > 1 else ()))
    model, rows = new_model(cache, load_config(settings=settings), None), cache.rows("train")
    tokens = np.concatenate([cache.tokens(row) for row in rows]).astype(np.float64)
    images = []
    for view in range(views):
        patches, pooled = cache.gather_images(rows, views=np.full(len(rows), view))
        images += [pooled, patches.reshape(-1, patches.shape[2])]
    both = ((model.text_standardised, tokens), (model.image_standardised, np.concatenate(images).astype(np.float64)))
    for standardised, there in both:
        np.testing.assert_allclose(standardised.mean.numpy(), there.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(standardised.deviation.numpy(), there.std(axis=0), rtol=1e-6)
    train(cache, load_config(settings=settings), tmp_path / "run", CPU, quiet=True)
    kept = Run(tmp_path / "run").load_model(CPU)
    assert torch.equal(kept.image_standardised.mean, model.image_standardised.mean)
    assert torch.equal(kept.text_standardised.deviation, model.text_standardised.deviation)


def test_the_parts_in_which_vectors_come_do_not_matter():
    vectors = np.random.default_rng(0).normal(1000.0, 0.01, (31, 5))  # a mean that squares would drown in
    vectors[:, 2] = 7.0
    for cuts in ([], [1], [13, 14, 30]):
        standardised = Standardised(5).double()
        standardised.fit_parts(np.split(vectors, cuts))
        np.testing.assert_allclose(standardised.mean.numpy(), vectors.mean(axis=0), rtol=1e-12)
        deviation = vectors.std(axis=0)
        deviation[2] = 1.0
        np.testing.assert_allclose(standardised.deviation.numpy(), deviation, rtol=1e-9)


def test_a_post_that_lacks_a_modality_has_no_product():
    model = model_of(load_config(settings=(*BASE, "pooled_product=true", "mlm=false")))
    batch = drop_modalities(batch_of([7, 5, 2, 6, 9]), torch.tensor([0.9, 0.1, 0.3, 0.5, 0.7]), 0.8)
    whole = batch.has_text & batch.has_image
    assert 0 < whole.sum() < 5
    product = model.product(batch)
    assert torch.equal((product != 0).any(dim=1), whole)
    assert_equals_the_clear_path(model, batch)
    kept = torch.cat([torch.ones(14), torch.zeros(14)]).double()
    with torch.no_grad():
        model.sentiment_head.weight.mul_(kept)  # a head that ignores the product
        without = model_of(load_config(settings=(*BASE, "mlm=false")))
        without.load_state_dict(
            {
                **{name: value for name, value in model.state_dict().items() if "product" not in name},
                "sentiment_head.weight": model.sentiment_head.weight[:, :14],
            }
        )
        torch.testing.assert_close(model(batch), without(batch), **EXACT)


@pytest.mark.parametrize("rule", ["label_rule=false", "label_rule=true"])
def test_rollout_gives_the_products_share_to_both_modalities_alike(rule):
    """Against loops: the words' half to each alike, the image's through the pooled row to each patch alike."""
    model = model_of(load_config(settings=(*BASE, "pooled_product=true", "standardise=true", "mlm=false", rule)))
    post = features_of(batch_of(LENGTHS), 0)
    n, m = len(post.tokens), len(post.patches)
    with torch.no_grad():
        seen = trace(model, post)
        head = head_weights(model, seen.features)
        said = support(head, seen.features, 1).tolist()
        start = decisive_rows(seen.rows, head[:, :14], 1)
    share = sum(said[14:]) / sum(said)
    assert 0.02 < share < 0.98
    rows = [(1 - share) * value for value in roll_out(start, seen.attention).tolist()]
    words = [rows[i] + share / 2 / n for i in range(n)]
    image = [rows[2 * n + 1 + m + j] for j in range(1 + m)]
    image[0] += share / 2
    for i in range(n):
        for j in range(1 + m):
            words[i] += rows[2 * n + j] * float(seen.image_to_text[j, i])
            image[j] += rows[n + i] * float(seen.text_to_image[i, j])
    patches = [image[1 + j] + image[0] / m for j in range(m)]
    found = attention_rollout(model, post, 1)
    np.testing.assert_allclose(found.pieces.numpy(), words, rtol=1e-6)
    np.testing.assert_allclose(found.patches.numpy(), patches, rtol=1e-6)
    lacking = replace(post, patches=None, pooled=None)
    assert float(attention_rollout(model, lacking, 1).pieces.sum()) == pytest.approx(1)


def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=75, views=2)
    settings = (*TINY, *ALL, "mlm=true", "epochs=3", "views=sample", "modality_dropout=0.3", "label_rule=true")
    config = load_config(settings=settings)

    def interrupt(line):
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    def trained(name, **options):
        train(cache, config, tmp_path / name, CPU, text_encoder=ToyText(7), quiet=True, **options)

    trained("whole")
    with pytest.raises(KeyboardInterrupt):
        trained("run", on_epoch=interrupt)
    trained("run")
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("pooled_product=true", "modalities=text", "mlm=false"), "pooled_product: needs modalities both"),
        (("pooled_product=true", "model=concat"), "pooled_product: only the fusion model has it, not concat"),
        (("standardise=true", "model=clmlf"), "standardise: only the fusion model has it, not clmlf"),
        (("standardise=true", "model=product"), "standardise: only the fusion model has it, not product"),
        (("input_dropout=0.2", "model=clmlf"), "input_dropout: only fusion, concat, .*have it, not clmlf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        load_config(settings=settings)


@pytest.fixture(scope="module")
def regularised(drawn_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("regularised")
    return trained(drawn_cache, folder / "run", *ALL, "modality_dropout=0.3", "epochs=2")


def test_a_run_with_all_of_them_is_evaluated_explained_and_predicts(
    regularised, drawn_cache, drawn_posts, image_encoder, text_encoder, tmp_path
):
    export(regularised, tmp_path / "out")
    model, exported = regularised.load_model(CPU), Run(tmp_path / "out")
    result = evaluate(regularised, CPU)
    assert result["posts_used"] == len(drawn_cache.rows("test"))
    for method in METHODS:
        for explanation in explain_cached(model, drawn_cache, drawn_cache.rows("test")[:2], CPU, text_encoder, method):
            assert float(explanation.pieces.sum() + explanation.patches.sum()) == pytest.approx(1, abs=1e-4)
    here, there = (
        Predictor(run, run.load_model(CPU), image_encoder, text_encoder, CPU) for run in (regularised, exported)
    )
    whole = [raw(post) for post in drawn_posts[:3]]
    posts = [*whole, *(replace(post, image=None) for post in whole), *(replace(post, text=None) for post in whole)]
    answers = values(here.predict(posts))
    assert values(there.predict(posts)).tolist() == answers.tolist()
    np.testing.assert_allclose(answers.sum(axis=1), 1)
    row = drawn_cache.ids.index(drawn_posts[0].id)
    cached = np.exp(log_probabilities(model, drawn_cache, np.array([row]), CPU))
    np.testing.assert_allclose(answers[:1], cached, atol=TOLERANCE)


@pytest.mark.long
def test_its_onnx_file_says_the_same(regularised, tmp_path):
    export(regularised, tmp_path / "out", onnx=True)  # refuses a file whose logits differ
    assert (tmp_path / "out" / "model.onnx").is_file()
