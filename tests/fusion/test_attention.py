"""Cross-modal attention (eqs 7-11) against values worked out by hand."""

import math

import pytest
import torch

from fusion.models.attention import cross_attention

# Two words and two image rows of width 2, with logarithms so that the softmax gives simple fractions:
# scores (eq 7) = [[ln 3, 0], [0, ln 2]]
TEXT = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
IMAGE = torch.tensor([[[math.log(3), 0.0], [0.0, math.log(2)]]], dtype=torch.float64)


def test_words_see_the_image_and_image_rows_see_the_words_as_worked_out_by_hand():
    text_seen, image_seen = cross_attention(TEXT, IMAGE, torch.ones(1, 2, dtype=torch.bool))
    # word 0: softmax(ln 3, 0) = (3/4, 1/4) over image rows; word 1: softmax(0, ln 2) = (1/3, 2/3)
    expected_text = [[3 / 4 * math.log(3), 1 / 4 * math.log(2)], [1 / 3 * math.log(3), 2 / 3 * math.log(2)]]
    # image row 0: softmax(ln 3, 0) = (3/4, 1/4) over words; image row 1: softmax(0, ln 2) = (1/3, 2/3)
    expected_image = [[3 / 4, 1 / 4], [1 / 3, 2 / 3]]
    torch.testing.assert_close(text_seen[0], torch.tensor(expected_text, dtype=torch.float64))
    torch.testing.assert_close(image_seen[0], torch.tensor(expected_image, dtype=torch.float64))


def test_padded_words_are_never_attended_to():
    padded = torch.cat([TEXT, torch.full((1, 3, 2), 50.0, dtype=torch.float64)], dim=1)
    mask = torch.tensor([[True, True, False, False, False]])
    text_seen, image_seen = cross_attention(padded, IMAGE, mask)
    alone = cross_attention(TEXT, IMAGE, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(text_seen[:, :2], alone[0])
    torch.testing.assert_close(image_seen, alone[1])


def test_scaling_divides_the_scores_by_the_root_of_the_width():
    mask = torch.ones(1, 2, dtype=torch.bool)
    scaled = cross_attention(TEXT, IMAGE, mask, scale=True)
    by_hand = cross_attention(TEXT / 2**0.25, IMAGE / 2**0.25, mask)
    torch.testing.assert_close(scaled[0], by_hand[0] * 2**0.25)
    torch.testing.assert_close(scaled[1], by_hand[1] * 2**0.25)


def test_direction_shapes_at_prime_sizes():
    text_seen, image_seen = cross_attention(
        torch.randn(2, 5, 3), torch.randn(2, 7, 3), torch.ones(2, 5, dtype=torch.bool)
    )
    assert text_seen.shape == (2, 5, 3)
    assert image_seen.shape == (2, 7, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_hundreds_keep_their_order_under_autocast(dtype):
    """Unscaled scores of 256.5 and 257 are one number in bfloat16; here the right row must still win."""
    text = torch.tensor([[[256.0, 1.0]]])
    image = torch.tensor([[[1.0, 0.5], [1.0, 8.0]]])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        seen, _ = cross_attention(text, image, torch.ones(1, 1, dtype=torch.bool))
    weight = 1 / (1 + math.exp(-7.5))  # softmax(256.5, 264) on the second row
    assert float(seen[0, 0, 1]) == pytest.approx(0.5 + 7.5 * weight, rel=1e-4)
