"""The moving average of the weights: against a plain loop, validated and kept, resumed to the same bytes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion import Config, evaluate, train
from fusion.config import load_config
from fusion.models.base import Dimensions
from fusion.models.registry import build_model
from fusion.run import Run
from fusion.tensor_files import read_metadata, tensor_names
from fusion.training.average import WeightAverage
from pipeline.common.errors import InputError
from tests.helpers.hostile_files import MODEL, STATE
from tests.helpers.toy import write_cache
from tests.helpers.training import CPU, Pooled, lines_of, run_of

DECAY = 0.7
KINDS = {
    "the paper's": ("mask_rate=0.5",),
    "pooled": ("model=concat-product", "dropout=0.3"),
    "a baseline": ("model=multisentinet",),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("ema") / "cache")


def stop_after(monkeypatch, saves, work):
    """Do some work, which is interrupted once it has saved so many states."""
    original, done = Run.save_state, []

    def save_then_stop(self, *arguments):
        original(self, *arguments)
        done.append(1)
        if len(done) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            work()


def test_against_a_plain_loop_and_buffers_are_the_models_own():
    torch.manual_seed(0)
    model = build_model(load_config(settings=("model=concat", "width=5")), Dimensions(11, 7, 0, classes=3))
    average = WeightAverage(model, DECAY)
    expected = None
    for step in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model.text_vector.mean.fill_(step)
        average.update(model)
        now = [parameter.detach().clone() for parameter in model.parameters()]
        if expected is not None:
            now = [DECAY * old + (1 - DECAY) * new for old, new in zip(expected, now, strict=True)]
        expected = now
        assert (average.model.text_vector.mean == step).all()
    for parameter, wanted in zip(average.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted)
    assert not torch.equal(next(average.model.parameters()), next(model.parameters()))


def test_the_average_over_a_trainings_steps_is_validated_kept_and_predicts(cache, tmp_path, monkeypatch):
    seen, original = [], WeightAverage.update

    def watched(self, model):
        seen.append({name: value.detach().clone() for name, value in model.named_parameters()})
        original(self, model)

    monkeypatch.setattr(WeightAverage, "update", watched)
    run, _ = run_of(tmp_path, cache, "model=concat", f"ema={DECAY}", "epochs=2", "lr=1e-2")
    best = run.metadata["best_epoch"]
    steps = seen[: best * len(seen) // 2]
    expected = dict(steps[0])
    for weights in steps[1:]:
        expected = {name: DECAY * old + (1 - DECAY) * weights[name] for name, old in expected.items()}
    kept = load_file(run.folder / MODEL)
    for name, wanted in expected.items():
        torch.testing.assert_close(kept[name], wanted)
        assert not torch.equal(kept[name], steps[-1][name])
    scores = evaluate(run, CPU, split="val")
    assert scores["weighted_f1"] == run.metrics()[best - 1]["val_weighted_f1"]
    assert scores["calibration"]["before"]["log_loss"] == pytest.approx(run.metrics()[best - 1]["val_loss"])


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_stopped_run_resumes_to_the_same_bytes(cache, tmp_path, settings, monkeypatch):
    settings = (*settings, f"ema={DECAY}", "epochs=3")
    whole, _ = run_of(tmp_path / "whole", cache, *settings)
    stop_after(monkeypatch, 2, lambda: run_of(tmp_path / "stopped", cache, *settings))
    stopped, _ = run_of(tmp_path / "stopped", cache, *settings)
    assert lines_of(stopped) == lines_of(whole)
    assert (stopped.folder / MODEL).read_bytes() == (whole.folder / MODEL).read_bytes()
    without, _ = run_of(tmp_path / "without", cache, *(one for one in settings if not one.startswith("ema")))
    assert (without.folder / MODEL).read_bytes() != (whole.folder / MODEL).read_bytes()


def test_a_kill_between_state_and_weights_leaves_the_average_to_complete_them(cache, tmp_path, monkeypatch):
    settings = ("model=concat", f"ema={DECAY}", "epochs=1")
    whole, _ = run_of(tmp_path / "whole", cache, *settings)
    stop_after(monkeypatch, 1, lambda: run_of(tmp_path / "stopped", cache, *settings))
    assert not (tmp_path / "stopped" / MODEL).exists()
    stopped, _ = run_of(tmp_path / "stopped", cache, *settings)
    assert (stopped.folder / MODEL).read_bytes() == (whole.folder / MODEL).read_bytes()


@pytest.mark.parametrize(
    ("change", "problem"), [("drop", "lacks 1 tensors"), ("cut", "the model's"), ("add", "too many")]
)
def test_a_state_whose_average_does_not_fit_is_refused(cache, tmp_path, change, problem, monkeypatch):
    settings = ("model=concat", f"ema={DECAY}")
    stop_after(monkeypatch, 1, lambda: run_of(tmp_path, cache, *settings))
    path = tmp_path / STATE
    tensors = load_file(path)
    if change == "drop":
        del tensors["average/head.weight"]
    elif change == "cut":
        tensors["average/head.weight"] = tensors["average/head.weight"][:, :-1].contiguous()
    else:
        tensors["average/more"] = torch.zeros(1 << 10)
    save_file(tensors, path, read_metadata(path))
    with pytest.raises(InputError, match=problem):
        run_of(tmp_path, cache, *settings)


def test_without_it_no_average_is_kept(cache, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1, lambda: run_of(tmp_path, cache, "model=concat"))
    assert not [name for name in tensor_names(tmp_path / STATE) if name.startswith("average/")]


def test_a_module_of_ones_own_has_the_averaged_weights_in_the_end(cache, tmp_path):
    torch.manual_seed(3)
    module = Pooled()
    train(cache, module, tmp_path, CPU, config=Config(epochs=2, ema=DECAY, lr=1e-2), quiet=True)
    kept = load_file(tmp_path / MODEL)
    for name, value in module.state_dict().items():
        assert torch.equal(value, kept[name])
