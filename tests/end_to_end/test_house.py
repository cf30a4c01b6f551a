"""What the files of the packages and their imports must be like. Who may import whom: setup.cfg, `make lint`."""

import os
import re
import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT, imported

CODE = [*sorted((ROOT / "pipeline").rglob("*.py")), *sorted((ROOT / "fusion").rglob("*.py"))]


def test_the_cache_needs_no_torch():
    assert "torch" not in imported("import pipeline.cache.reader")


def test_the_command_line_is_light():
    assert not {"torch", "h5py", "numpy", "timm", "transformers", "sklearn"} & imported("import cli")


LIBRARY_CALLS = """
import sys, threading
from pathlib import Path
import matplotlib, torch

torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
before = torch.get_num_threads()

from fusion.config import load_config
from fusion.evaluation.evaluate import evaluate
from fusion.report.plots import curves
from fusion.run import Run
from fusion.training.train import train
from pipeline.common.device import resolve_device
from tests.helpers.commands import SMALL
from tests.helpers.toy import ToyText, write_cache

folder, device = Path(sys.argv[1]), resolve_device("cpu")
run = Run(folder / "run")
config = load_config(settings=(*SMALL, "epochs=2"))
train(write_cache(folder / "cache", posts=90), config, run, device, text_encoder=ToyText(7), quiet=True)
evaluate(run, device)
curves(run.metrics(), 1)

seen = []
thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
thread.start(), thread.join()
assert (torch.get_num_threads(), *seen) == (before, before), (before, torch.get_num_threads(), seen)
assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
assert "matplotlib.pyplot" not in sys.modules
assert not {"timm", "transformers"} & set(sys.modules)
"""


def test_library_calls_change_nothing_of_the_process_and_load_no_encoder_library(tmp_path):
    """No thread count, no TF32 flag, no backend of matplotlib."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY_CALLS, tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


PACKAGES = sorted(
    path.parent for path in [*(ROOT / "pipeline").rglob("__init__.py"), *(ROOT / "fusion").rglob("__init__.py")]
)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_package_files_hold_a_docstring_only(package):
    """And `fusion` the names that a program of one's own imports; tests/fusion/test_library.py has those."""
    text = (package / "__init__.py").read_text(encoding="utf-8").strip()
    assert text.startswith('"""')
    assert text.count('"""') == 2
    assert text.endswith('"""') or package == ROOT / "fusion"


def test_each_folder_of_modules_is_a_package():
    assert {file.parent for file in CODE} == set(PACKAGES)


def test_tests_share_code_through_helpers_alone():
    """A test file that imports another one, or conftest, cannot be read, moved or run by itself."""
    pattern = re.compile(r"^\s*(from|import) tests\.(?!helpers\b)", re.MULTILINE)
    found = [str(file) for file in (ROOT / "tests").rglob("*.py") if pattern.search(file.read_text(encoding="utf-8"))]
    assert found == []
