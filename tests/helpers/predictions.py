"""Raw posts, and predictions to compare."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from fusion.config import Config
from fusion.inference.predictor import Prediction, RawPost
from fusion.run_folder import RunFolder
from pipeline.posts.mvsa import LABELS
from tests.helpers.transforms import SHRINK

# The cache and a raw post differ by the batch that they were encoded in, which moves a float16 feature by a step now
# and then. 2e-5 was seen.
TOLERANCE = 1e-3


def raw(post):
    return RawPost(post.id, post.text, post.image.read_bytes())


def values(answers):
    assert [answer.reason for answer in answers] == [""] * len(answers)
    return np.array([[answer.probabilities[label] for label in LABELS] for answer in answers])


class Toy:
    """Answers with the picture's mean grey, so that a shifted line shows; slow, so that it can be killed at work."""

    config = Config()
    device = torch.device("cpu")
    image = SimpleNamespace(transform=SHRINK, pixels_shape=(3, 2, 2))
    runtimes = {"image": "torch", "text": "torch"}  # noqa: RUF012

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.run = RunFolder(folder)
        (folder / "model.safetensors").write_bytes(b"toy")
        self._seconds = seconds

    def settle_runtime(self, posts, began):
        pass

    def predict_inputs(self, inputs):
        time.sleep(self._seconds)
        return [
            Prediction(one.id, {}, reason=one.reason)
            if one.reason
            else Prediction(one.id, {"positive": float(one.pixels.mean())}, one.flags)
            for one in inputs
        ]
