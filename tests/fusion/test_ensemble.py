"""An ensemble predicts the mean of its members; one that is trained is its members' own trainings, killed or not."""

import json

import numpy as np
import pytest
import torch

from fusion import evaluate, format_scores, predict_rows, train_ensemble
from fusion.config import load_config, shared_config
from fusion.evaluation.predict import member_logs
from fusion.explanation.attribution import batch_of as one_post
from fusion.explanation.attribution import signed_contributions
from fusion.explanation.explain import cached_features
from fusion.models.base import Dimensions
from fusion.models.ensemble import Ensemble
from fusion.models.registry import build_model
from fusion.run import Run
from fusion.run_folder import RunFolder
from pipeline.common.errors import Diverged, InputError
from tests.helpers.commands import SMALL, invoke, refused
from tests.helpers.hostile_files import MODEL
from tests.helpers.toy import ToyText, write_cache
from tests.helpers.training import CPU, lines_of, run_of

WIDTH, CHANNELS, PATCHES = 7, 11, 5
SETTINGS = ("model=concat-product", "dropout=0.3", "seed=5", "epochs=2", "lr=1e-2")
TRAINING = [part for text in (*SMALL, *SETTINGS) for part in ("--set", text)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("ensemble") / "cache", posts=271)


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """Three members, trained without an interruption."""
    run = Run(tmp_path_factory.mktemp("ensemble") / "whole")
    ensemble_of(cache, run)
    return run


def ensemble_of(cache, run, *settings, members=3, **options):
    config = load_config(settings=(*SMALL, *SETTINGS, *settings))
    encoder = ToyText(WIDTH) if config.mlm else None
    return train_ensemble(cache, config, run, members, CPU, text_encoder=encoder, quiet=True, **options)


def bytes_of(run):
    """Every file of a run, JSON without times."""

    def untimed(entry):
        return {
            key: value for key, value in entry.items() if "seconds" not in key and key not in ("speed", "test_reads")
        }

    found = {}
    for path in sorted(run.folder.rglob("*")):
        if path.is_file():
            lines = path.read_bytes().splitlines(keepends=True)
            if path.suffix == ".json":
                lines = [json.loads(path.read_text(), object_hook=untimed)]
            elif path.suffix == ".jsonl":
                lines = [json.loads(line, object_hook=untimed) for line in lines]
            found[path.relative_to(run.folder).as_posix()] = lines
    return found


def test_the_mean_of_probabilities_by_hand():
    """0.8 and 0.4 for a class are 0.6, whatever is added to the logits of one."""

    class Says(torch.nn.Module):
        def __init__(self, probabilities, more):
            super().__init__()
            self.config, self.logits = load_config(), torch.tensor([probabilities]).log() + more
            self.fixed_grid = self.pooled_alone = False

        def forward(self, batch):
            return self.logits

    members = [Says([0.8, 0.1, 0.1], 3.0), Says([0.4, 0.5, 0.1], -70.0)]
    logits = Ensemble(members, Dimensions(CHANNELS, WIDTH, 0, classes=3))(None)
    torch.testing.assert_close(logits.exp(), torch.tensor([[0.6, 0.3, 0.1]]))


def test_members_of_other_kinds_and_views_predict_each_as_by_itself(tmp_path):
    cache = write_cache(tmp_path / "cache", views=2)
    kinds = (("model=concat", "views=sample"), ("mlm=false", "heads=2"), ("model=dnn-lr", "views=sample"))
    members = []
    for seed, kind in enumerate(kinds):
        torch.manual_seed(seed)
        config = load_config(settings=("width=8", "layers=1", "heads=2", *kind))
        members.append(build_model(config, Dimensions(CHANNELS, WIDTH, 0, classes=3, patches=PATCHES)).eval())
    ensemble = Ensemble(members, members[0].dimensions)
    rows = cache.rows("test")
    each = [predict_rows(member, cache, rows, CPU) for member in members]
    np.testing.assert_allclose(predict_rows(ensemble, cache, rows, CPU), np.mean(each, axis=0), rtol=1e-6)
    np.testing.assert_allclose(np.exp(member_logs(ensemble, cache, rows, CPU)), each, rtol=1e-6)
    assert ensemble.config.views == "sample"
    assert not ensemble.pooled_alone
    shuffled = rows[np.roll(np.arange(len(rows)), 1)]
    controls = [predict_rows(member, cache, rows, CPU, image_rows=shuffled) for member in members]
    found = predict_rows(ensemble, cache, rows, CPU, image_rows=shuffled)
    np.testing.assert_allclose(found, np.mean(controls, axis=0), rtol=1e-6)


def test_what_a_post_must_have_is_what_every_member_needs():
    def shared(*settings):
        return shared_config([load_config(settings=("mlm=false", *one)) for one in settings])

    assert shared(("modalities=text",), ("modalities=text",)).modalities == "text"
    assert shared(("modalities=text",), ("modality_dropout=0.2",)).modalities == "both"
    assert shared(("modalities=text",), ("modality_dropout=0.2",)).modality_dropout == 0
    assert shared(("modality_dropout=0.3",), ("modality_dropout=0.2",)).modality_dropout == 0.2
    assert shared(("views=sample",), ("precision=bfloat16",)).model_dump(include={"views", "precision"}) == {
        "views": "sample",
        "precision": "float32",
    }


def test_gradient_times_input_is_that_of_the_mean_probability(whole, cache):
    model, post = whole.load_model(CPU), cached_features(cache, 4, CPU)
    model.temperature = 1.0
    tokens = post.tokens.clone().requires_grad_()
    batch = one_post(model, type(post)(post.patches, post.pooled, tokens, post.input_ids))
    mean = torch.stack([member(batch).softmax(dim=1) for member in model.members]).mean(dim=0)[0, 2]
    (gradient,) = torch.autograd.grad((mean / (1 - mean)).log(), [tokens])
    pieces, _ = signed_contributions(model, post, 2)
    torch.testing.assert_close(pieces, (gradient * tokens).sum(dim=1).detach(), rtol=1e-3, atol=1e-6)


def test_members_are_the_trainings_of_their_seeds(whole, cache, tmp_path):
    assert [member.config.seed for member in whole.members] == [5, 6, 7]
    for seed, member in zip((5, 6, 7), whole.members, strict=True):
        alone, _ = run_of(tmp_path / str(seed), cache, *SETTINGS, f"seed={seed}")
        assert lines_of(alone) == lines_of(member)
        assert (alone.folder / MODEL).read_bytes() == (member.folder / MODEL).read_bytes()
        assert alone.metadata["temperature"] == member.metadata["temperature"]


def test_it_is_evaluated_beside_its_members(whole, cache):
    result = evaluate(whole, CPU)
    rows = cache.rows("test")
    each = []
    for member in whole.members:
        model = member.load_model(CPU)
        model.temperature = 1.0
        each.append(predict_rows(model, cache, rows, CPU))
    mean = np.mean(each, axis=0)
    powers = mean ** (1 / whole.metadata["temperature"])
    stored = np.array([list(post["probabilities"].values()) for post in result["posts"]])
    np.testing.assert_allclose(stored, powers / powers.sum(axis=1, keepdims=True), rtol=1e-6)
    assert whole.metadata["temperature"] not in (1, *(member.metadata["temperature"] for member in whole.members))
    right = [float((one.argmax(axis=1) == cache.labels[rows]).mean()) for one in each]
    assert [one["accuracy"] for one in result["members"]] == pytest.approx(right)
    shown = {line[:20].strip(): line[20:].split()[0] for line in format_scores(result).splitlines() if line[:1] == "m"}
    assert float(shown["members, mean"]) == pytest.approx(100 * np.mean(right), abs=0.006)
    assert float(shown["members, deviation"]) == pytest.approx(100 * np.std(right, ddof=1), abs=0.006)
    assert set(result["controls"]) == {"image_shuffled", "text_shuffled"}
    on_validation = evaluate(whole, CPU, split="val")
    validation = whole.metadata["validation"]
    assert {name: on_validation[name] for name in ("accuracy", "weighted_f1", "macro_f1")} == {
        name: validation[name] for name in ("accuracy", "weighted_f1", "macro_f1")
    }
    assert on_validation["calibration"]["before"]["log_loss"] == pytest.approx(validation["loss"])


STEPS = (
    ("save_state", 1),
    ("save_model", 1),
    ("save_state", 2),  # the last epoch of the first member
    ("finish", 1),
    ("save_state", 3),
    ("finish", 3),
    ("finish", 4),  # of the ensemble
)


@pytest.mark.parametrize("settings", [(), ("model=fusion", "ema=0.5", "mask_rate=0.5")], ids=["pooled", "the paper's"])
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(cache, tmp_path, settings, monkeypatch):
    """One ensemble, killed at one step after the other, before and after each."""
    ensemble_of(cache, Run(tmp_path / "whole"), *settings)
    calls = dict.fromkeys(("save_state", "save_model", "finish"), 0)
    left = [(step, done) for step in STEPS for done in (False, True)]

    def killing(name):
        original = getattr(Run, name)

        def call(self, *arguments):
            here = name, calls[name] + 1
            if left and left[0] == (here, False):
                left.pop(0)
                raise KeyboardInterrupt
            original(self, *arguments)
            calls[name] += 1
            if left and left[0] == (here, True):
                left.pop(0)
                raise KeyboardInterrupt

        return call

    with monkeypatch.context() as patch:
        for name in calls:
            patch.setattr(Run, name, killing(name))
        for _ in range(len(left)):
            with pytest.raises(KeyboardInterrupt):
                ensemble_of(cache, Run(tmp_path / "killed"), *settings)
    if not Run(tmp_path / "killed").finished:
        ensemble_of(cache, Run(tmp_path / "killed"), *settings)
    assert left == []
    assert bytes_of(Run(tmp_path / "killed")) == bytes_of(Run(tmp_path / "whole"))


def test_the_command_is_resumed_with_its_own_settings(cache, whole, tmp_path, monkeypatch):
    out, command = tmp_path / "run", ("train", cache.folder, "--device", "cpu", "--quiet")
    saves, original = [], Run.save_state

    def save_then_stop(self, *arguments):
        original(self, *arguments)
        saves.append(1)
        if len(saves) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", save_then_stop)
        invoke(*command, "--members", 3, "--out", out, *TRAINING, code=1)
    facts = json.loads((out / "run.json").read_text())
    assert (facts["finished"], facts["members"], facts["state"]) == (False, 3, "interrupted")
    assert "an unfinished run of 3 members, not of 4 members" in refused(
        *command, "--members", 4, "--out", out, "--resume"
    )
    assert "an unfinished run of 3 members, not of one model" in refused(*command, "--out", out, *TRAINING)
    assert "seed 5, not 6" in refused(*command, "--members", 3, "--out", out, *TRAINING, "--seed", 6)
    assert "training is not finished" in refused("evaluate", out)
    assert "member 2 of 3, seed 6" in invoke(*command[:-1], "--out", out, "--resume")
    assert bytes_of(Run(out)) == bytes_of(whole)
    assert "already" in refused(*command, "--members", 3, "--out", out, *TRAINING)


def test_a_single_run_does_not_go_on_as_an_ensemble(cache, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, cache, *SETTINGS, on_epoch=lambda line: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(InputError, match="an unfinished run of one model, not of 3 members"):
        ensemble_of(cache, tmp_path)


def test_a_member_that_diverges_fails_the_ensemble(cache, tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(Diverged, match="member 1 of 2: training stopped in epoch"):
        ensemble_of(cache, run, "lr=1e30", "clip_norm=null", "model=fusion", "mlm=false", members=2)
    assert "member 1 of 2: " in run.failure
    with pytest.raises(Diverged, match="this run has failed"):
        ensemble_of(cache, run, "lr=1e30", "clip_norm=null", "model=fusion", "mlm=false", members=2)


@pytest.mark.parametrize(
    ("members", "settings", "problem"),
    [
        (1, (), "members=1: must be from 2 to 100"),
        (101, (), "members=101: must be from 2 to 100"),
        (3, (f"seed={2**32 - 2}",), "too high for 3 members"),
        (2, ("class_weights={sad: 2}",), "there is no class 'sad'"),
        (2, ("width=16384", "layers=256", "model=fusion", "mlm=false"), "GiB of memory"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_removed(members, settings, problem, cache, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=problem):
        ensemble_of(cache, tmp_path, *settings, members=members, overwrite=True)
    assert (tmp_path / "run.json").read_text() == "{}"


def test_overwriting_removes_the_members_and_nothing_else(cache, whole, tmp_path):
    """By a run of one model; a person's file in a member's folder stays, and what a link points at."""
    run, other = Run(tmp_path / "run"), tmp_path / "other"
    ensemble_of(cache, run, "epochs=1", members=2)
    other.mkdir()
    (other / "run.json").write_text("mine")
    (run.member(1).folder / "notes.txt").write_text("mine")
    (run.folder / "members" / "0002").symlink_to(other)
    run_of(run.folder, cache, *SETTINGS, "epochs=1", overwrite=True)
    assert (other / "run.json").read_text() == "mine"
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if "members" in path.parts}
    assert names == {"members", "members/0001", "members/0001/notes.txt"}
    assert RunFolder(run.folder).members == []
    assert len(whole.members) == 3
