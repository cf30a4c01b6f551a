"""What is minimised, by hand: class weights, label smoothing and logit adjustment, alone and together."""

import math

import numpy as np
import pytest
import torch

from fusion.config import Config, load_config
from fusion.models.objective import Objective, objective_of
from pipeline.common.errors import InputError
from tests.helpers.toy import write_cache
from tests.helpers.training import lines_of, run_of, tear_metrics

ZEROS = torch.zeros(2, 4, dtype=torch.float64)
LABELS = torch.tensor([3, 1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Training posts of the three classes in the ratio 6 : 3 : 1."""
    cache = write_cache(tmp_path_factory.mktemp("cache"))
    chosen = [row for label, count in enumerate((12, 6, 2)) for row in np.flatnonzero(cache.labels == label)[:count]]
    path = tmp_path_factory.mktemp("splits") / "splits.csv"
    lines = [f"{id_},{'train' if row in chosen else 'val'}\n" for row, id_ in enumerate(cache.ids)]
    path.write_text("id,split\n" + "".join(lines))
    return cache.with_splits(path)


def config(**settings):
    return Config(**settings)


def test_without_anything_it_is_cross_entropy():
    assert float(Objective(config())(ZEROS, LABELS)) == pytest.approx(math.log(4))


def test_weights_weigh_the_posts_and_the_mean_is_over_posts():
    """A post of weight 3 and one of weight 1/2, each with the loss ln 4: their sum over two posts."""
    weights = torch.tensor([1.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    loss = Objective(config(), weights=weights)(ZEROS, LABELS)
    assert float(loss) == pytest.approx(3.5 / 2 * math.log(4))


def test_smoothing_by_hand():
    """Logits (ln 3, 0): probabilities 3/4 and 1/4. With smoothing 0.2 the target of class 0 is (0.9, 0.1)."""
    logits = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    loss = Objective(config(label_smoothing=0.2))(logits, torch.tensor([0]))
    assert float(loss) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


def test_all_three_together_by_hand():
    """The prior (3/4, 1/4) at tau 1 makes of equal logits the probabilities 3/4 and 1/4; class 1 weighs 2, its smoothed
    target is (0.1, 0.9).
    """
    prior = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
    objective = Objective(config(label_smoothing=0.2, logit_adjustment=1.0), prior, weights)
    loss = objective(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([1]))
    assert float(loss) == pytest.approx(2 * (0.1 * math.log(4 / 3) + 0.9 * math.log(4)))
    with pytest.raises(ValueError, match="needs the classes' log prior"):
        Objective(config(label_smoothing=0.2, logit_adjustment=1.0))(ZEROS, LABELS)


def test_balanced_weights_make_classes_weigh_alike(cache):
    """12, 6 and 2 of 20 posts: 20 / (3 x 12), 20 / (3 x 6), 20 / (3 x 2)."""
    weights = objective_of(cache, config(class_weights="balanced")).weights
    assert weights.tolist() == pytest.approx([20 / 36, 20 / 18, 20 / 6])
    counts = np.bincount(cache.labels[cache.rows("train")])
    assert (counts * weights.numpy()).tolist() == pytest.approx([20 / 3] * 3)
    assert objective_of(cache, config()).weights is None


def test_given_weights_are_by_name_and_others_are_one(cache):
    weights = objective_of(cache, config(class_weights={"negative": 4, "positive": 0.5})).weights
    assert weights.tolist() == [0.5, 1.0, 4.0]
    with pytest.raises(
        InputError, match="class_weights: there is no class 'sad'; the classes are positive, neutral, n"
    ):
        objective_of(cache, config(class_weights={"sad": 2, "negative": 1}))


def test_a_training_by_the_command_line_takes_weights_by_class(cache, tmp_path):
    settings = ("mlm=false", "class_weights={negative: 3}", "label_smoothing=0.1", "epochs=2")
    run, _ = run_of(tmp_path / "run", cache, *settings)
    assert run.config.class_weights == {"negative": 3.0}
    plain, _ = run_of(tmp_path / "plain", cache, "mlm=false", "epochs=2")
    assert lines_of(run)[0]["loss"] != lines_of(plain)[0]["loss"]
    for settings in ("class_weights={negative: -1}", "class_weights=heavy", "label_smoothing=2"):
        with pytest.raises(InputError):
            load_config(settings=(settings,))
    with pytest.raises(InputError, match="class_weights: the baseline cmcn has a loss of its own; leave it out"):
        load_config(settings=("model=cmcn", "class_weights=balanced"))


@pytest.mark.parametrize("settings", [("class_weights=balanced", "label_smoothing=0.1", "logit_adjustment=1.0")])
def test_a_resumed_training_ends_with_the_same_bits(cache, settings, tmp_path, monkeypatch):
    settings = (*settings, "epochs=3")
    whole, _ = run_of(tmp_path / "whole", cache, *settings)

    def stopped():
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path / "stopped", cache, *settings)

    tear_metrics(monkeypatch, 2, stopped)
    resumed, _ = run_of(tmp_path / "stopped", cache, *settings)
    assert lines_of(resumed) == lines_of(whole)
    kept = [(run.folder / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert kept[0] == kept[1]


def test_the_losses_that_are_reported_go_without_all_three(cache, tmp_path):
    """With a learning rate of next to nothing the model does not move: validation says what it says without."""
    still = ("mlm=false", "epochs=1", "lr=1e-12", "warmup=0")
    plain, _ = run_of(tmp_path / "plain", cache, *still)
    run, _ = run_of(tmp_path / "run", cache, *still, "class_weights=balanced", "label_smoothing=0.3")
    assert lines_of(run)[0]["val_loss"] == pytest.approx(lines_of(plain)[0]["val_loss"], rel=1e-6)
    assert lines_of(run)[0]["loss_sentiment"] == pytest.approx(lines_of(plain)[0]["loss_sentiment"], rel=1e-6)
