"""The wheel has all that it needs: installed away from the source tree, its command runs the demonstration."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

from tests.helpers.commands import ROOT, invoke

ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment with the wheel alone of ours; what it depends on is taken from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = folder / "source"  # so that no build file appears in the tree
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "artifacts", "build", "tests", "*.egg-info"))
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("mscf-*.whl")
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment" / "bin" / "python"
    site = folder / "environment" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # .pth files there are not followed
    install = ["install", "--no-deps", "--no-index", "--ignore-installed", wheel]
    subprocess.run([*pip, "--python", python, *install], check=True)
    return python


def test_the_installed_command_runs_the_demonstration(environment, tmp_path):
    run = [environment.with_name("mscf"), "demo", "--posts", "100"]
    done = subprocess.run(run, cwd=tmp_path, env=ALONE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    named = [line.strip() for line in lines[lines.index("files:") + 1 :]]
    assert set(named) >= {
        f"artifacts/demo/{name}"
        for name in ("mvsa", "manifest.jsonl", "cache", "run/report.html", "run-scene/report.html")
    }
    assert all((tmp_path / name).exists() for name in named)
    assert "open the report in a browser: artifacts/demo/run/report.html" in done.stdout
    # a second time replaces what the first one made, and stops at nothing
    invoke("demo", "--out", tmp_path / "artifacts" / "demo", "--posts", "100", "--seed", "1")


def test_the_installed_packages_are_not_those_of_the_source_tree(environment, tmp_path):
    code = "import cli, fusion, pipeline; print(cli.__file__, fusion.__file__, pipeline.__file__)"
    command = [environment, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=ALONE, capture_output=True, text=True, check=True)
    assert done.stdout.count(str(environment.parents[1])) == 3
    typed = environment.parents[1].glob("lib/*/site-packages/*/py.typed")
    assert {path.parent.name for path in typed} == {"fusion", "pipeline"}
