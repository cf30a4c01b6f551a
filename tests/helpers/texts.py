"""Texts, and their tokens from an encoder."""

import torch

TEXTS = ["", "hello there", "a longer text, with some punctuation & a word nobody knows: kwyjibo 天气"]


def tokens_of(encoder, texts, pad_to=0):
    """Each text's tokens, encoded in one batch padded to at least `pad_to`."""
    rows, _ = encoder.tokenize(texts)
    longest = max(pad_to, *(len(row) for row in rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.from_numpy(row), True
    return [states[: len(row)] for states, row in zip(encoder.encode(ids, mask), rows, strict=True)]
