"""A full disk while weights are written: one line that names the file, nothing half-written, and a way to go on."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError

from fusion import tensor_files
from fusion.config import load_config
from fusion.run import Run
from fusion.tensor_files import save_tensors
from fusion.training.train import train
from tests.helpers.commands import ROOT, SMALL, invoke, refused
from tests.helpers.toy import write_cache
from tests.helpers.training import CPU

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize("error", [SafetensorError(FULL), OSError(FULL), OSError(28, "No space left on device")])
def test_the_librarys_own_error_becomes_that_of_the_kernel(tmp_path, monkeypatch, error):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(3)})
    assert caught.value.errno == 28
    assert caught.value.filename == str(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_kind_stays(tmp_path, monkeypatch):
    def broken(tensors, path, metadata):
        raise SafetensorError("a bug")

    monkeypatch.setattr(tensor_files, "save_file", broken)
    with pytest.raises(SafetensorError, match="a bug"):
        save_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(3)})


@pytest.mark.parametrize("at", [1, 2, 3])  # the first epoch's weights, its state, and the second's weights
def test_a_training_goes_on_to_the_same_weights(tmp_path, monkeypatch, at):
    cache = write_cache(tmp_path / "cache", posts=61)
    settings = [part for text in (*SMALL, "mlm=false", "epochs=3") for part in ("--set", text)]
    train(cache, load_config(settings=(*SMALL, "mlm=false", "epochs=3")), Run(tmp_path / "whole"), CPU, quiet=True)
    write, count = tensor_files.save_file, []

    def full(tensors, path, metadata):
        count.append(path)
        if len(count) == at:
            raise SafetensorError(FULL)
        write(tensors, path, metadata)

    start = ("train", cache.folder, "--out", tmp_path / "run", "--device", "cpu", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", full)
        line = refused(*start, *settings)
    assert line.endswith(".safetensors: No space left on device")
    assert str(tmp_path / "run") in line
    invoke(*start, "--resume")
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == resumed.read_bytes()


ON_A_SMALL_DISK = """
set -u
mount -t tmpfs -o size=160k none "$DISK" || exit 77
say() { echo "$1: $?"; }
full() { rm -f "$DISK/fill"; dd if=/dev/zero of="$DISK/fill" bs=1k count=100000 2>/dev/null; truncate -s -"$1" "$DISK/fill"; }
mscf() { "$PYTHON" cli.py "$@" --quiet; }
mscf train "$CACHE" --out "$DISK/run" $SETTINGS --device cpu --tensorboard; say train
mount -o remount,size=16m "$DISK"
mscf train "$CACHE" --out "$DISK/run" --resume --device cpu; say resumed
full 60k; mscf export "$DISK/run" --out "$DISK/export"; say export
full 300k; mscf export "$DISK/run" --out "$DISK/onnx" --onnx; say onnx
rm -r "$DISK/onnx"; full 16k; mscf folds "$CACHE" --out "$DISK/folds" --k 7; say folds
full 130k; mscf sweep "$CACHE" --space "$SPACE" --trials 2 --out "$DISK/sweep" $SETTINGS --device cpu; say sweep
rm "$DISK/fill"
mscf folds "$CACHE" --out "$DISK/folds" --k 7; say folds-again
mscf sweep "$CACHE" --space "$SPACE" --trials 2 --out "$DISK/sweep" $SETTINGS --device cpu; say sweep-again
"""  # noqa: E501 - a script


@pytest.mark.long
def test_a_real_disk_that_is_too_small(tmp_path):
    write_cache(tmp_path / "cache", posts=75)
    (tmp_path / "disk").mkdir()
    (tmp_path / "space.yaml").write_text("lr: {low: 1e-3, high: 1e-1, log: true}\n")
    settings = ("width=64", "heads=2", "layers=1", "epochs=2", "mlm=false")
    variables = {
        "DISK": str(tmp_path / "disk"),
        "CACHE": str(tmp_path / "cache"),
        "SPACE": str(tmp_path / "space.yaml"),
        "SETTINGS": " ".join(f"--set {text}" for text in settings),
        "PYTHON": sys.executable,
    }
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", ON_A_SMALL_DISK],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("this user may mount no file systems")
    assert result.stdout.split("\n")[:-1] == [
        *("train: 1", "resumed: 0", "export: 1", "onnx: 1", "folds: 1", "sweep: 1", "folds-again: 0", "sweep-again: 0")
    ]
    problems = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(problems) == 5
    assert all(line.endswith(": No space left on device") and str(tmp_path / "disk") in line for line in problems)
    assert "Traceback" not in result.stderr
