"""Encoders whose features are their input, so that a shifted row shows."""

import numpy as np
import torch

from tests.helpers.transforms import SHRINK


class TinyImage:
    """Features that are the pixels, so that a shifted row shows."""

    device = torch.device("cpu")
    pixels_shape = (3, 2, 2)
    patches_shape = (4, 3)
    pooled, pooled_width = "mean", 3
    transform = SHRINK
    fingerprint = {"name": "tiny"}  # noqa: RUF012
    runtime = "torch"

    def use(self, graph):
        assert graph is None

    def encode(self, pixels):
        patches = pixels.reshape(len(pixels), 3, 4).transpose(0, 2, 1).astype(np.float32)
        return patches, patches.mean(axis=1)


class TinyText:
    """Tokens that are the text's first bytes."""

    width = pooled_width = 1
    pooled = "mean"
    fingerprint = {"name": "tiny"}  # noqa: RUF012
    runtime = "torch"

    def use(self, graph):
        assert graph is None

    def tokenize(self, texts):
        rows = [np.frombuffer(text.encode()[:9], np.uint8).astype(np.int32) for text in texts]
        return [np.concatenate([[2], row, [3]]).astype(np.int32) for row in rows], [len(t) > 9 for t in texts]

    def encode(self, ids, mask):
        return ids[:, :, None].float()
