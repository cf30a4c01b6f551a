"""Which words are hidden (eqs 17-20): counts and positions by hand, and properties over random texts."""

import math

import pytest
import torch
from hypothesis import given, strategies

from fusion.models.masking import image_guidance, maskable_tokens, masked_count, masked_ids, top_k_mask


def mask_of(*lengths: int) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_candidates_are_the_tokens_between_cls_and_sep():
    expected = [[False, True, True, False, False], [False] * 5, [False, True, True, True, False]]
    assert maskable_tokens(mask_of(4, 2, 5)).tolist() == expected


@pytest.mark.parametrize(
    ("pieces", "rate", "expected"),
    [
        (0, 0.25, 0),
        (1, 0.25, 1),
        (3, 0.25, 1),
        (4, 0.25, 1),
        (7, 0.25, 1),
        (8, 0.25, 2),
        (10, 0.3, 3),
        (20, 0.15, 3),
        (5, 1.0, 5),
    ],
)
def test_a_share_of_the_pieces_is_hidden_and_at_least_one(pieces, rate, expected):
    assert masked_count(maskable_tokens(mask_of(pieces + 2)), rate).tolist() == [expected]


def test_the_closest_words_are_hidden_and_ties_go_to_the_lower_index():
    candidates = maskable_tokens(mask_of(8))
    scores = torch.tensor([[9.0, 1.0, 5.0, 2.0, 5.0, 5.0, -1.0, 9.0]])  # 9s stand at [CLS] and [SEP]
    assert top_k_mask(scores, candidates, 0.34).nonzero()[:, 1].tolist() == [2, 4]


def test_guidance_is_the_dot_product_with_the_global_image_row_without_gradient():
    emb_text = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]], requires_grad=True)
    scores = image_guidance(torch.tensor([[10.0, 1.0]]), emb_text)
    assert scores.tolist() == [[12.0, 29.0]]
    assert not scores.requires_grad


def test_guidance_keeps_an_order_that_float32_softmax_would_lose():
    scores = image_guidance(torch.tensor([[1.0]]), torch.tensor([[[300.0], [0.0], [5.0]]]))
    assert scores.softmax(dim=1)[0, 1] == scores.softmax(dim=1)[0, 2] == 0
    assert top_k_mask(scores, torch.tensor([[False, True, True]]), 0.5).tolist() == [[False, False, True]]


def test_hidden_ids_become_the_mask_and_the_others_stay():
    ids = torch.tensor([[2, 11, 13, 3], [2, 17, 3, 0]])
    hidden = torch.tensor([[False, False, True, False], [False, True, False, False]])
    assert masked_ids(ids, hidden, 103).tolist() == [[2, 11, 103, 3], [2, 103, 3, 0]]


@given(
    lengths=strategies.lists(strategies.integers(2, 23), min_size=1, max_size=7),
    rate=strategies.sampled_from([0.15, 0.2, 0.25, 0.3, 0.5, 1.0]),
    seed=strategies.integers(0, 2**16),
)
def test_hidden_words_are_candidates_as_many_as_asked_and_none_better_is_left(lengths, rate, seed):
    candidates = maskable_tokens(mask_of(*lengths))
    scores = torch.randn(candidates.shape, generator=torch.Generator().manual_seed(seed))
    hidden = top_k_mask(scores, candidates, rate)
    assert not (hidden & ~candidates).any()
    for row, length in enumerate(lengths):
        pieces = length - 2
        assert hidden[row].sum() == (max(1, math.floor(round(rate * pieces, 9))) if pieces else 0)
        left = candidates[row] & ~hidden[row]
        if hidden[row].any() and left.any():
            assert scores[row][hidden[row]].min() >= scores[row][left].max()
