"""Logit adjustment: the prior counted by hand, the loss by hand, and that prediction goes without it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fusion.config import load_config
from fusion.models.base import Dimensions
from fusion.models.fusion import FusionModel
from fusion.models.logit_adjustment import adjusted_loss, training_log_prior
from pipeline.common.errors import InputError
from tests.helpers.models import BASE, EXACT, LENGTHS, PRIOR, TEXT, batch_of, model_of
from tests.helpers.toy import write_cache
from tests.helpers.training import lines_of, run_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"))


def skewed(cache, path, train=(5, 2, 3)):
    """The cache with so many training posts of each class."""
    rows = [row for label, count in enumerate(train) for row in np.flatnonzero(cache.labels == label)[:count]]
    lines = [f"{cache.ids[row]},{'train' if row in rows else 'val'}\n" for row in range(len(cache))]
    path.write_text("id,split\n" + "".join(lines))
    return cache.with_splits(path)


def test_the_loss_by_hand():
    """Logits 0, prior (1/2, 1/3, 1/6). A post of class 2 at tau 1: ln(1 + 3 + 2) = ln 6, what its rarity says; at tau
    2: ln(1 + 9 + 4) = ln 14; at tau 0: ln 3.
    """
    logits, prior = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([1 / 2, 1 / 3, 1 / 6], dtype=torch.float64)
    for tau, expected in ((0.0, 3), (1.0, 6), (2.0, 14)):
        loss = adjusted_loss(logits, torch.tensor([2]), tau, prior.log())
        assert float(loss) == pytest.approx(math.log(expected))


def test_the_prior_is_counted_over_the_training_posts_alone(cache, tmp_path):
    prior = training_log_prior(skewed(cache, tmp_path / "splits.csv")).exp()
    torch.testing.assert_close(prior, torch.tensor([0.5, 0.2, 0.3]))


def test_what_is_predicted_and_reported_goes_without_it():
    batch = batch_of(LENGTHS)
    plain, tau = (model_of(load_config(settings=(*BASE, f"logit_adjustment={tau}"))) for tau in (0.0, 2.0))
    assert torch.equal(plain(batch), tau(batch))
    without, losses = plain.losses(batch, None), tau.losses(batch, None)
    assert torch.equal(without.mean("sentiment"), without.total)
    assert torch.equal(losses.mean("sentiment"), without.mean("sentiment"))
    raised = tau(batch) + 2.0 * torch.tensor(PRIOR, dtype=torch.float64).log()
    torch.testing.assert_close(losses.total, F.cross_entropy(raised, batch.labels), **EXACT)
    assert "log_prior" not in tau.state_dict()


def test_a_rarer_class_is_predicted_more_often_with_it(cache, tmp_path):
    """Features that say nothing, so that the model learns the prior, and with tau 1 nothing."""
    noise = skewed(write_cache(tmp_path / "cache", strength=0.0), tmp_path / "splits.csv", train=(9, 3, 3))
    settings = ("mlm=false", "epochs=6", "patience=6", "lr=1e-2", "dropout=0")
    biases = []
    for tau in (0, 1):
        run, _ = run_of(tmp_path / str(tau), noise, f"logit_adjustment={tau}", *settings)
        biases.append(run.load_model(torch.device("cpu")).sentiment_head.bias.detach())
    assert biases[0].argmax() == 0
    assert biases[1][0] - biases[1][1:].mean() < biases[0][0] - biases[0][1:].mean()


def test_a_run_with_it_resumes_to_the_same_bits(tmp_path, cache):
    def stop(line):
        if line["epoch"] == 1:
            raise KeyboardInterrupt

    splits = skewed(cache, tmp_path / "splits.csv", train=(9, 4, 7))
    settings = ("logit_adjustment=1", "mlm=false", "epochs=3")
    whole, _ = run_of(tmp_path / "whole", splits, *settings)
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "stopped", splits, *settings, on_epoch=stop)
    resumed, _ = run_of(tmp_path / "stopped", splits, *settings)
    assert lines_of(resumed) == lines_of(whole)
    assert (resumed.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()


def test_a_loss_without_its_prior_is_no_loss():
    model = FusionModel(load_config(settings=(*BASE, "logit_adjustment=1")), Dimensions(13, 7, 31, classes=3)).double()
    with pytest.raises(ValueError, match="the loss needs the objective of the training posts"):
        model.losses(batch_of(LENGTHS), TEXT)


def test_baselines_and_negative_values_are_refused():
    with pytest.raises(InputError, match="logit_adjustment: the baseline clmlf has a loss of its own"):
        load_config(settings=("logit_adjustment=1", "model=clmlf"))
    with pytest.raises(InputError, match=r"logit_adjustment.*greater than or equal to 0"):
        load_config(settings=("logit_adjustment=-0.1",))
