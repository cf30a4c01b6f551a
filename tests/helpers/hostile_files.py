"""What may be where a file is expected: pipes, devices, links in a loop, holes, folders."""

import os

ENCODERS = ("--encoders", "packaged", "--device", "cpu", "--quiet")


HOLE = 1 << 40
STATE, MODEL = "train_state.safetensors", "model.safetensors"


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def loop(path):
    path.symlink_to(path.name)


def hole(path):
    with path.open("wb") as file:
        file.truncate(HOLE)


def folder(path):
    path.mkdir()


KINDS = {"pipe": pipe, "device": device, "loop": loop, "hole of a terabyte": hole, "folder": folder}


def ran(commands, *arguments, **limits):
    outcome = commands.run(*arguments, **limits)
    assert outcome.code == 0, outcome
    assert "Traceback" not in outcome.out + outcome.err
    return outcome
