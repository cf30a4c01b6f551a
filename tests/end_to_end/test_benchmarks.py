"""The benchmarks' scripts still fit the code that they measure."""

import importlib.util
import sys

import pytest

from tests.helpers.commands import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_all_that_it_imports(script, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)  # as Python does for a script that it is given
    spec = importlib.util.spec_from_file_location(f"benchmark_{script.stem}", script)
    monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules[spec.name])
