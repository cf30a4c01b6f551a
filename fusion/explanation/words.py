"""Turns weights of word pieces into weights of whole words."""

import re
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

# What stands between spaces is a word, with its punctuation; a Chinese character is one of its own, as BERT has it.
_IDEOGRAPH = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\s{_IDEOGRAPH}]+")

Spans = Sequence[tuple[int, int]]


def join_words(text: str, spans: Spans, weights: np.ndarray) -> tuple[list[tuple[str, float]], int]:
    """Each word of the text with the mean of its pieces' weights, and how many words at the end were cut off unread.

    Mean, not sum: a URL of twenty word pieces must not rank high merely because it is long.

    Args:
        spans: which characters [start, end) each piece stands for; (0, 0) for [CLS] and [SEP], which are no words.
        weights: (n,), one for each span.
    """
    words = list(_WORD.finditer(text))
    totals, pieces = np.zeros(len(words)), np.zeros(len(words))
    starts = [word.start() for word in words]
    for (start, end), weight in zip(spans, weights, strict=True):
        if end > start and words:
            # by its last character: some tokenizers count the space before a word to its first piece
            word = max(0, bisect_right(starts, end - 1) - 1)
            totals[word] += weight
            pieces[word] += 1
    read_to = max((end for _, end in spans), default=0)
    unread = sum(word.start() >= read_to for word in words)
    means = totals / np.maximum(pieces, 1)
    return [(word.group(), float(mean)) for word, mean in zip(words, means, strict=True)], unread


def word_pieces(spans: Spans) -> np.ndarray:
    """(n,) bool: which ids stand for characters of the text, so that they can be masked."""
    return np.array([end > start for start, end in spans], bool)
