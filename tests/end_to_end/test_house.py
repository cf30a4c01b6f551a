"""The rules of the house that a machine can check: equations named, imports one way, lazy where promised."""

import re
from pathlib import Path

import pytest

from tests.helpers.commands import imported

ROOT = Path(__file__).parents[2]
CODE = [*sorted((ROOT / "pipeline").rglob("*.py")), *sorted((ROOT / "fusion").rglob("*.py"))]


def equations(text):
    """Numbers after `eq` or `eqs`, with ranges and lists: `eqs 7-11, 14`."""
    found = set()
    for group in re.findall(r"\b[Ee]qs? (\d+(?:(?:-|, | and )\d+)*)", text):
        for part in re.split(r", | and ", group):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize("number", range(1, 26))
def test_each_equation_of_the_paper_is_named_where_it_is_computed(number):
    """In a comment on a line of code, not only in a docstring that promises it."""
    lines = [line for file in CODE for line in file.read_text(encoding="utf-8").splitlines() if "#" in line]
    assert any(number in equations(line.split("#", 1)[1]) for line in lines if line.split("#", 1)[0].strip())


def test_equation_lists_are_read_as_people_write_them():
    assert equations("eqs 7-9, 14 and 22; eq 3") == {7, 8, 9, 14, 22, 3}


def test_the_cache_needs_no_torch():
    assert "torch" not in imported("import pipeline.cache.reader")


def test_the_command_line_is_light():
    assert not {"torch", "h5py", "numpy", "timm", "transformers", "sklearn"} & imported("import cli")


def test_training_without_the_masked_language_loss_loads_no_encoder_library(tmp_path):
    code = (
        "import torch; from pathlib import Path\n"
        "from tests.helpers.toy import write_cache; from tests.helpers.commands import SMALL\n"
        "from fusion.config import load_config; from fusion.run import Run; from fusion.training.train import train\n"
        f"cache = write_cache(Path({str(tmp_path / 'cache')!r}))\n"
        "config = load_config(settings=(*SMALL, 'mlm=false', 'epochs=1'))\n"
        f"train(cache, config, Run(Path({str(tmp_path / 'run')!r})), torch.device('cpu'), quiet=True)"
    )
    assert not {"timm", "transformers"} & imported(code)


PACKAGES = sorted(
    path.parent for path in [*(ROOT / "pipeline").rglob("__init__.py"), *(ROOT / "fusion").rglob("__init__.py")]
)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_package_files_hold_a_docstring_only(package):
    text = (package / "__init__.py").read_text(encoding="utf-8").strip()
    assert text.startswith('"""')
    assert text.endswith('"""')
    assert text.count('"""') == 2


def test_each_folder_of_modules_is_a_package():
    assert {file.parent for file in CODE} == set(PACKAGES)
