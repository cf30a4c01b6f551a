"""A text's one vector: pooled from its tokens, or what the model's own pooling gives. Needs no torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

MEAN, CLS, EOS, MODEL = "mean", "cls", "eos", "model"
TEXT_POOLINGS = (MEAN, CLS, EOS, MODEL)


def text_pooling(fingerprint: Mapping[str, Any]) -> str:
    """How a cache of this fingerprint pools its texts; caches that do not say so have the mean."""
    return str(fingerprint["text"].get("pooled", MEAN))


def pooled_tokens(tokens: np.ndarray, pooling: str) -> np.ndarray:
    """The vector (D,), float32, of one text's real tokens (n, D), n at least 1: their mean with [CLS] and [SEP] among
    them, the first token (`cls`), or the last one (`eos`).
    """
    if pooling == MEAN:
        return np.asarray(tokens.mean(axis=0, dtype=np.float32))
    return tokens[0 if pooling == CLS else -1].astype(np.float32)
