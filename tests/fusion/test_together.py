"""Several pooled models trained at once: each ends as it does alone, whatever the others do."""

import numpy as np
import pytest
import torch

from fusion.config import load_config
from fusion.data.pooled_store import PooledStore
from fusion.experiments.trainer import group_sizes
from fusion.models.pooled.dropout import fill_mask
from fusion.names import pooled_models
from fusion.run import Run
from fusion.training import together as module
from fusion.training.record import TrainResult
from fusion.training.together import Member, shared_by, train_together
from fusion.training.train import train
from pipeline.common.errors import Diverged, InputError, Stopped
from pipeline.common.locks import only_writer
from tests.helpers.toy import write_cache

CPU = torch.device("cpu")
BASE = ("width=13", "batch_size=8", "epochs=4", "lr=1e-2", "layers=2", "dropout=0.4", "input_dropout=0.3",
        "schedule=linear")  # fmt: skip
# What may differ between members; the third and the fourth end before the others
EACH = (
    ("seed=1",),
    ("seed=2", "dropout=0.0", "input_dropout=0.0"),
    ("seed=3", "lr=3e-3", "epochs=2"),
    ("seed=4", "label_smoothing=0.2", "patience=1"),
    ("seed=5", "clip_norm=0.1", "weight_decay=0.3", "class_weights=balanced"),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("together") / "cache", posts=151, views=2)


def store_of(cache, views=2):
    return PooledStore(cache, np.arange(len(cache)), CPU, views=views)


def members_of(cache, folder, *settings, each=EACH):
    return [
        Member(cache, load_config(settings=(*BASE, *settings, *own)), Run(folder / f"{number}"))
        for number, own in enumerate(each)
    ]


def difference(run, other):
    ours, theirs = (Run(folder).load_model(CPU).state_dict() for folder in (run, other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize("settings", [(), ("label_rule=true", "views=sample")])
@pytest.mark.parametrize(
    "model", [name for name in pooled_models() if shared_by(load_config(settings=(f"model={name}",)))]
)
def test_each_ends_as_it_does_alone(model, settings, cache, tmp_path):
    members = members_of(cache, tmp_path / "together", f"model={model}", *settings)
    train_together(members, store_of(cache), CPU)
    for number, member in enumerate(members):
        alone = train(cache, member.config, tmp_path / f"{number}", CPU, quiet=True)
        assert isinstance(member.end, TrainResult)
        assert (member.end.best_epoch, member.end.epochs) == (alone.best_epoch, alone.epochs)
        assert member.run.metadata["state"] == Run(tmp_path / f"{number}").metadata["state"]
        assert difference(member.run.folder, tmp_path / f"{number}") < 5e-6
        for ours, theirs in zip(member.run.metrics(), Run(tmp_path / f"{number}").metrics(), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
            assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=1e-5)
    assert [member.end.epochs for member in members[2:4]] != [4, 4]


def test_members_may_have_other_splits_and_labels_of_their_own(cache, tmp_path):
    random, count = np.random.default_rng(7), len(cache)
    splits = random.permutation(np.repeat([0, 1, -1], [count - 40, 23, 17])).astype(np.int8)  # batches of other sizes
    other = cache.with_assignments(random.permutation(cache.labels), splits)
    config = load_config(settings=(*BASE, "model=product"))
    members = [Member(one, config, Run(tmp_path / name)) for name, one in (("first", cache), ("second", other))]
    train_together(members, store_of(cache, views=1), CPU)
    for member in members:
        train(member.cache, config, member.run.folder.with_suffix(".alone"), CPU, quiet=True)
        assert difference(member.run.folder, member.run.folder.with_suffix(".alone")) < 5e-6


def test_one_that_diverges_is_a_failed_run_and_leaves_the_others_alone(cache, tmp_path):
    each = (("seed=1",), ("seed=2", "lr=1e30", "clip_norm=null", "schedule=constant"), ("seed=3",))
    members = members_of(cache, tmp_path / "together", "model=concat", each=each)
    train_together(members, store_of(cache), CPU)
    assert isinstance(members[1].end, Diverged)
    assert "the loss is" in members[1].run.failure
    with pytest.raises(Diverged, match="this run has failed"):
        members[1].run.require_not_failed()
    train(cache, members[2].config, tmp_path / "alone", CPU, quiet=True)
    assert difference(members[2].run.folder, tmp_path / "alone") < 5e-6


def test_one_whose_predictions_are_not_finite_fails_alone(cache, tmp_path, monkeypatch):
    """The weights overflowed in the last step of an epoch, whose loss was still finite."""
    members = members_of(cache, tmp_path / "together", "model=concat", each=(("seed=1",), ("seed=2",)))
    usual = module.validate

    def planted(model, *rest):
        if model.config.seed == 1:
            raise Diverged("post 3: the model's prediction is not finite")
        return usual(model, *rest)

    monkeypatch.setattr(module, "validate", planted)
    train_together(members, store_of(cache), CPU)
    assert "not finite" in members[0].run.failure
    assert isinstance(members[1].end, TrainResult)


def test_a_folder_that_another_training_writes_is_left_alone(cache, tmp_path):
    members = members_of(cache, tmp_path / "together", "model=concat", each=(("seed=1",),))
    with only_writer(members[0].run.folder), pytest.raises(InputError, match="another"):
        train_together(members, store_of(cache), CPU)


def test_what_is_stopped_says_so_and_is_trained_again(cache, tmp_path):
    class Stop:
        checks = 0

        def __bool__(self):
            self.checks += 1
            return self.checks > 9

        def check(self):
            raise Stopped("stopped by SIGTERM; the same command resumes")

    members = members_of(cache, tmp_path / "together", "model=concat", each=(("seed=1",), ("seed=2",)))
    with pytest.raises(Stopped):
        train_together(members, store_of(cache), CPU, Stop())
    assert [member.run.metadata["state"] for member in members] == ["interrupted"] * 2
    train_together(members, store_of(cache), CPU)
    assert all(member.run.finished for member in members)


def test_what_an_observer_raises_ends_its_member_alone(cache, tmp_path):
    class Enough(Exception):
        pass

    def end_at_two(line):
        if line["epoch"] == 2:
            raise Enough

    members = members_of(cache, tmp_path / "together", "model=concat", each=(("seed=1",), ("seed=2",)))
    members[0].on_epoch = end_at_two
    train_together(members, store_of(cache), CPU)
    assert isinstance(members[0].end, Enough)
    assert not members[0].run.finished
    assert isinstance(members[1].end, TrainResult)
    assert members[1].end.epochs == 4


def test_one_that_cannot_be_trained_is_told_so_and_the_others_are(cache, tmp_path):
    members = members_of(
        cache, tmp_path / "together", "model=concat", each=(("seed=1",), ("class_weights={nobody: 2}",))
    )
    train_together(members, store_of(cache), CPU)
    assert isinstance(members[0].end, TrainResult)
    assert "there is no class 'nobody'" in str(members[1].end)


def test_only_what_decides_sizes_keeps_members_apart():
    first = load_config(settings=(*BASE, "model=concat"))
    assert shared_by(first) == shared_by(load_config(settings=(*BASE, "model=concat", "lr=1e-4", "seed=9")))
    for other in ("width=17", "layers=1", "batch_size=16", "views=sample", "model=product"):
        assert shared_by(first) != shared_by(load_config(settings=(*BASE, "model=concat", other)))
    assert shared_by(load_config("packaged")) is None


@pytest.mark.parametrize(
    ("trainings", "jobs", "sizes"),
    [
        (50, 2, [7, 7, 6, 6, 6, 6, 6, 6]),
        (50, 1, [8, 7, 7, 7, 7, 7, 7]),
        (16, 2, [8, 8]),
        (3, 2, [2, 1]),
        (1, 4, [1]),
    ],
)
def test_groups_keep_all_processes_busy(trainings, jobs, sizes):
    assert group_sizes(trainings, jobs) == sizes


def test_a_mask_keeps_the_mean_and_is_that_of_its_generator():
    for probability in (0.1, 0.48, 0.8):
        drawn = fill_mask(torch.empty(997, 101), probability, torch.Generator().manual_seed(3))
        assert drawn.unique().tolist() == [0.0, pytest.approx(1 / (1 - probability), rel=1e-3)]
        assert drawn.mean() == pytest.approx(1.0, abs=0.02)
        torch.manual_seed(3)
        assert torch.equal(drawn, fill_mask(torch.empty(997, 101), probability))
