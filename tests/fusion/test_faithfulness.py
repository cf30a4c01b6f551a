"""Hiding what a model looks at costs it its answer: planted models that look at one word or one patch only."""

import numpy as np
import pytest
import torch

from fusion.config import load_config
from fusion.explanation.faithfulness import EncoderInput, faithfulness, format_faithfulness, mask_patches
from fusion.models.base import Dimensions
from fusion.models.fusion import FusionModel
from pipeline.common.errors import InputError

SIGNAL, OTHERS, MASK, WIDTH = 4, (6, 7, 8, 9, 10), 5, 6


class PlantedText:
    """Every id has its own vector; only SIGNAL's has anything in dimension 0. [MASK] says nothing."""

    mask_id = MASK
    pooled = "mean"

    def encode(self, input_ids, mask):
        tokens = torch.zeros(*input_ids.shape, WIDTH)
        tokens[..., 1] = 0.1 * (input_ids % 5)
        tokens[..., 0] = 3.0 * (input_ids == SIGNAL)
        return tokens


class PlantedImage:
    """A patch's channel 0 is how red its square is beyond its blue, the rest does not matter."""

    pooled = "mean"

    def encode(self, pixels):
        squares = pixels.reshape(len(pixels), 3, 3, 4, 3, 4).mean(axis=(3, 5)).reshape(len(pixels), 3, 9)
        patches = np.zeros((len(pixels), 9, WIDTH), np.float32)
        patches[:, :, 0] = np.maximum(squares[:, 0] - squares[:, 2], 0) / 85
        patches[:, :, 1] = squares[:, 1] / 255
        return patches, patches.mean(axis=1)


def planted(*settings):
    """Both projections pass their input on, no attention, no feed-forward; class 0 needs dimension 0 of any row.

    The bias in dimension 1 is what a row's norm, which takes its scale away, measures dimension 0 against.
    """
    config = load_config(settings=(f"width={WIDTH}", "heads=2", "layers=1", "mlm=false", *settings))
    model = FusionModel(config, Dimensions(WIDTH, WIDTH, 31, classes=3)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("transformer.layers.0.norm"):
                parameter.zero_()
        model.text_projection.weight.copy_(torch.eye(WIDTH))
        model.image_projection.weight.copy_(torch.eye(WIDTH))
        model.text_projection.bias[1] = model.image_projection.bias[1] = 1.0
        model.sentiment_head.weight[0, 0] = 4.0
        model.sentiment_head.bias[0] = -4.0
    return model


def posts_of(count, signal):
    """Texts of 10 words and images of 3 x 3 squares of noise; one word or one square says `positive`."""
    random = np.random.default_rng(0)
    for _ in range(count):
        ids = np.array([2, *random.choice(OTHERS, 10), 3])
        pixels = np.repeat(np.repeat(random.integers(0, 80, (1, 3, 3)), 4, axis=1), 4, axis=2)
        pixels = np.repeat(pixels, 3, axis=0).astype(np.uint8)
        if signal == "words":
            ids[random.integers(1, 11)] = SIGNAL
        else:
            row, column = random.integers(0, 3, 2) * 4
            pixels[:, row : row + 4, column : column + 4] = np.array([255, 0, 0]).reshape(3, 1, 1)
        words = np.ones(12, bool)
        words[[0, -1]] = False
        yield EncoderInput(pixels, ids, words)


@pytest.mark.parametrize("settings", [(), ("cross_attention=false",)])
@pytest.mark.parametrize(("signal", "other"), [("words", "patches"), ("patches", "words")])
def test_methods_that_find_the_planted_signal_beat_random_hiding(signal, other, settings):
    result = faithfulness(planted(*settings), posts_of(12, signal), PlantedImage(), PlantedText())
    for method in ("rollout", "gradient"):
        assert result["drop"][signal][method] > 0.3
        assert result["drop"][signal][method] > result["drop"][signal]["random"] + 0.2
        beyond = result["beyond_random"][signal][method]
        assert beyond["mean"] > 5 * beyond["error"]
        assert abs(result["drop"][other][method]) < 0.05
    assert result["best"] in ("rollout", "gradient")
    assert result["posts_by_kind"] == {"words": 12, "patches": 12}
    assert result["methods"] == ([] if settings else ["attention"]) + ["rollout", "gradient"]


def test_random_hiding_finds_the_signal_as_often_as_chance_has_it():
    """2 of 10 words: the signal goes in a fifth of the draws, and each time costs what hiding it always costs."""
    result = faithfulness(planted(), posts_of(12, "words"), PlantedImage(), PlantedText(), draws=60)
    assert result["drop"]["words"]["random"] == pytest.approx(result["drop"]["words"]["rollout"] / 5, rel=0.25)


def test_the_table_has_a_line_for_every_method_and_names_the_best():
    result = faithfulness(planted(), posts_of(5, "words"), PlantedImage(), PlantedText())
    lines = format_faithfulness(result).splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["attention", "rollout", "gradient", "random"]
    assert f"{100 * result['drop']['words']['rollout']:.2f}" in lines[3]
    assert lines[-1] == f"best on average: {result['best']}"
    assert result["best"] == max(result["mean_beyond_random"], key=result["mean_beyond_random"].get)


def test_a_text_without_words_and_no_posts_at_all():
    empty = EncoderInput(np.zeros((3, 12, 12), np.uint8), np.array([2, 3]), np.zeros(2, bool))
    result = faithfulness(planted(), [empty], PlantedImage(), PlantedText())
    assert result["posts_by_kind"] == {"patches": 1}
    assert "-" in format_faithfulness(result).splitlines()[2].split()
    with pytest.raises(InputError, match="nothing can be masked"):
        faithfulness(planted(), [], PlantedImage(), PlantedText())


def test_hidden_patches_are_squares_of_the_mean_colour():
    pixels = 2 * np.arange(3 * 6 * 6, dtype=np.uint8).reshape(3, 6, 6)
    hidden = mask_patches(pixels, [1, 3], 9)  # 3 x 3: the middle of the top, the left of the middle
    changed = (hidden != pixels).any(axis=0)
    expected = np.zeros((6, 6), bool)
    expected[0:2, 2:4] = expected[2:4, 0:2] = True
    assert (changed == expected).all()
    assert hidden[:, 0, 2].tolist() == [35, 107, 179]
    assert pixels[0, 0, 2] == 4  # the original is left as it was
