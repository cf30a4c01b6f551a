"""A finished run and a stopped one, to damage."""

import pytest

from fusion.config import load_config
from fusion.evaluation.evaluate import evaluate
from fusion.run import Run
from fusion.training.train import train
from pipeline.common.files import write_json
from tests.helpers.commands import SMALL
from tests.helpers.toy import write_cache
from tests.helpers.training import CPU

STATE, MODEL = "train_state.safetensors", "model.safetensors"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A cache, a finished and evaluated run of it, and one that was stopped after an epoch."""
    folder = tmp_path_factory.mktemp("originals")
    cache = write_cache(folder / "cache", posts=61)
    config = load_config(settings=(*SMALL, "mlm=false", "epochs=2"))
    run = Run(folder / "run")
    train(cache, config, run, CPU, quiet=True)
    write_json(run.folder / "evaluation-test.json", evaluate(run, CPU))

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cache, config, Run(folder / "stopped"), CPU, quiet=True, on_epoch=stop)
    return folder
