"""Weights laid on words and on the picture: pieces joined, nothing turned round, nothing shifted, all within [0, 1]."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fusion.config import load_config
from fusion.explanation.attribution import METHODS, PostFeatures
from fusion.explanation.explain import cached_features, explain_features, explain_posts
from fusion.explanation.words import join_words, word_pieces
from fusion.inference.predictor import Predictor, RawPost
from fusion.models.base import Dimensions
from fusion.models.fusion import FusionModel
from fusion.report.heatmap import STOPS, colours, crop_box, overlay
from pipeline.common.errors import InputError
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import refused
from tests.helpers.hostile_pictures import endless_jpeg, thin_png
from tests.helpers.toy import write_cache

CPU = torch.device("cpu")


def test_word_pieces_are_joined_to_the_words_of_the_text():
    text = "Un believ able!  \u4f60\u597d end"
    #       [CLS]   Un      be      liev    able    !         你        好        [SEP]
    spans = [(0, 0), (0, 2), (3, 5), (5, 9), (10, 14), (14, 15), (17, 18), (18, 19), (0, 0)]
    weights = np.array([0.3, 0.01, 0.02, 0.04, 0.08, 0.16, 0.05, 0.06, 0.28])
    words, unread = join_words(text, spans, weights)
    assert [word for word, _ in words] == ["Un", "believ", "able!", "\u4f60", "\u597d", "end"]
    assert [weight for _, weight in words] == pytest.approx([0.01, 0.03, 0.12, 0.05, 0.06, 0.0])
    assert unread == 1
    assert word_pieces(spans).tolist() == [False, *[True] * 7, False]


def test_the_real_tokenizers_spans_point_into_the_text(text_encoder):
    text = "RT @friend: Soooo HAPPY\u2026 https://t.co/x1 \u2764\ufe0f caf\u00e9!"
    (ids,), _ = text_encoder.tokenize([text])
    spans = text_encoder.spans(text)
    assert len(spans) == len(ids)
    assert word_pieces(spans).sum() == len(ids) - 2
    words, unread = join_words(text, spans, np.ones(len(ids)))
    assert words == [(word, 1.0) for word in text.split()]
    assert unread == 0


def test_words_beyond_the_tokenizers_limit_are_counted(text_encoder):
    text = " ".join(["word"] * 130)
    (ids,), (cut,) = text_encoder.tokenize([text])
    words, unread = join_words(text, text_encoder.spans(text), np.ones(len(ids)))
    assert cut
    assert (len(words), unread) == (130, 130 - (128 - 2))
    assert words[-1] == ("word", 0.0)


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_a_text_without_words_has_none(text_encoder, text):
    (ids,), _ = text_encoder.tokenize([text])
    assert join_words(text, text_encoder.spans(text), np.ones(len(ids))) == ([], 0)


@pytest.mark.parametrize("size", [(611, 223), (223, 611), (97, 101)])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 6), (6, 0), (5, 1)])
def test_heat_lies_where_the_encoder_looked(image_encoder, size, row, column):
    """What the overlay marks as one patch, painted white on a black photo, is what the encoder sees in that patch."""
    view = image_encoder.fingerprint["transform"]
    left, top, right, bottom = crop_box(*size, view)
    step_x, step_y = (right - left) / 7, (bottom - top) / 7
    photo = Image.new("RGB", size)
    ImageDraw.Draw(photo).rectangle(
        (left + column * step_x, top + row * step_y, left + (column + 1) * step_x, top + (row + 1) * step_y),
        fill="white",
    )
    pixels = image_encoder.pixels(photo).mean(axis=0)
    side = pixels.shape[0] // 7
    light = pixels.reshape(7, side, 7, side).mean(axis=(1, 3)) / 255
    assert light[row, column] > 0.85
    light[row, column] = 0
    assert light.max() < 0.2

    heat = np.zeros((7, 7))
    heat[row, column] = 1
    shown = np.asarray(overlay(photo.point(lambda _: 128), heat, view, marks=0), float)
    redness = shown[:, :, 0] - shown[:, :, 2]
    y, x = np.unravel_index(redness.argmax(), redness.shape)
    # the brightest pixel of a corner patch may lie at the very corner: bicubic resampling goes flat there
    assert left + column * step_x - 1 <= x <= left + (column + 1) * step_x + 1
    assert top + row * step_y - 1 <= y <= top + (row + 1) * step_y + 1


def test_what_the_encoder_cut_off_is_grey():
    view = {"size": 7, "crop_pct": 0.875, "crop_mode": "center"}
    photo = Image.new("RGB", (80, 32), (250, 10, 10))
    shown = np.asarray(overlay(photo, np.zeros((7, 7)), view), int)
    assert crop_box(80, 32, view) == (26, 2, 54, 30)
    inside = np.zeros((32, 80), bool)
    inside[2:30, 26:54] = True
    grey = np.ptp(shown, axis=2) == 0
    assert (grey == ~inside).all()


@pytest.mark.parametrize(
    ("mode", "box"), [("center", (5, 1, 13, 9)), ("squash", (1.8, 1, 16.2, 9)), ("border", (1.8, -2.2, 16.2, 12.2))]
)
def test_crop_boxes_by_hand(mode, box):
    """18 x 10 pixels; the view keeps 8 of 10 scaled pixels, so 0.8 of the side it goes by."""
    assert crop_box(18, 10, {"size": 8, "crop_pct": 0.8, "crop_mode": mode}) == pytest.approx(box)


def test_a_picture_smaller_than_the_view_is_covered_all_over():
    heat = np.zeros((3, 3))
    heat[1, 2] = 1
    shown = np.asarray(
        overlay(Image.new("RGB", (40, 20)), heat, {"size": 8, "crop_pct": 1, "crop_mode": "border"}, marks=0), float
    )
    assert shown.shape == (20, 40, 3)
    assert (np.ptp(shown, axis=2) > 0).all()  # nowhere grey
    assert shown[10, 35, 0] > 2 * shown[10, 5, 0]


def test_the_colours_go_from_blue_over_green_and_yellow_to_red():
    assert colours(np.array([at for at, _ in STOPS])).tolist() == [list(colour) for _, colour in STOPS]
    blue, green, yellow, red = colours(np.array([0.0, 0.35, 0.68, 1.0]))
    assert blue.argmax() == 2
    assert green.argmax() == 1
    assert min(yellow[:2]) > yellow[2]
    assert red.argmax() == 0


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A cache of 2 x 2 patches and an untrained model."""
    cache = write_cache(tmp_path_factory.mktemp("explain") / "cache", m=4)
    config = load_config(settings=("width=8", "heads=2", "layers=2", "mlm=false"))
    torch.manual_seed(3)
    return cache, FusionModel(config, Dimensions(11, 7, 31, classes=3)).eval()


def word_spans(text, lengths):
    """Toy spans: one word for each id between [CLS] and [SEP]."""
    count = lengths[text]
    return [(0, 0), *((2 * i, 2 * i + 1) for i in range(count - 2)), (0, 0)]


@pytest.mark.parametrize("method", METHODS)
def test_explanations_lie_within_0_and_1_and_depend_on_their_own_post_alone(toy, method):
    cache, model = toy
    rows = [int(row) for row in cache.rows("val")]
    texts = [" ".join("abcdefghi"[: cache.lengths[row] - 2]) + f" {row}" for row in rows]
    lengths = {text: int(cache.lengths[row]) for text, row in zip(texts, rows, strict=True)}
    posts = [cached_features(cache, row, CPU) for row in rows]

    def spans(text):
        return word_spans(text, lengths)

    together = explain_features(model, posts, texts, spans, LABELS, method=method)
    for post, text, explanation in zip(posts, texts, together, strict=True):
        (alone,) = explain_features(model, [post], [text], spans, LABELS, method=method)
        assert alone.summary() == explanation.summary()
        weights = [weight for _, weight in explanation.words]
        assert min(weights) >= 0
        assert max(weights) in (0, 1)
        assert explanation.heat.shape == (2, 2)
        assert (explanation.heat.min(), explanation.heat.max()) in ((0, 1), (0, 0))
        assert explanation.predicted == max(explanation.probabilities, key=explanation.probabilities.get)
        assert sum(explanation.probabilities.values()) == pytest.approx(1)
    assert any(explanation.heat.max() > 0 for explanation in together)
    assert any(max(weight for _, weight in explanation.words) == 1 for explanation in together)


def test_patches_are_laid_out_row_by_row(toy):
    """The one patch that differs from the others stands where row-major order puts it."""
    cache, model = toy
    post = cached_features(cache, 0, CPU)
    patches = torch.zeros(4, 11)
    patches[1] = 9.0
    (explanation,) = explain_features(
        model, [PostFeatures(patches, patches.mean(dim=0), post.tokens)], [None], lambda _: [], LABELS, method="rollout"
    )
    same = [explanation.heat[0, 0], explanation.heat[1, 0], explanation.heat[1, 1]]
    assert same == pytest.approx([same[0]] * 3)
    assert abs(explanation.heat[0, 1] - same[0]) == pytest.approx(1)


def test_an_image_alone_has_heat_and_no_words_and_a_text_alone_words_and_no_heat(toy):
    cache, model = toy
    post = cached_features(cache, 1, CPU)
    length = len(post.tokens)
    (image,) = explain_features(model, [PostFeatures(post.patches, post.pooled, None)], [None], lambda _: [], LABELS)
    assert (image.words, image.text_share) == ([], 0)
    assert image.heat.shape == (2, 2)
    text = " ".join("abcdefghi"[: length - 2])
    (alone,) = explain_features(
        model, [PostFeatures(None, None, post.tokens)], [text], lambda given: word_spans(given, {text: length}), LABELS
    )
    assert alone.heat is None
    assert alone.text_share == 1


def test_raw_posts_are_explained_with_the_answers_that_predict_gives(image_encoder, text_encoder):
    """And each as by itself: which posts are encoded together changes rounding only."""
    config = load_config(settings=("width=8", "heads=2", "layers=1", "mlm=false", "modality_dropout=0.1"))
    torch.manual_seed(5)
    model = FusionModel(config, Dimensions(image_encoder.patches_shape[1], text_encoder.width, 0, classes=3)).eval()
    run = SimpleNamespace(metadata={"fingerprint": {"stored_dtype": "float16"}, "labels": list(LABELS)})
    predictor = Predictor(run, model, image_encoder, text_encoder, CPU)
    photo = io.BytesIO()
    Image.effect_noise((90, 60), 80).convert("RGB").save(photo, "PNG")
    posts = [
        RawPost("a", "What a <b>lovely</b> day\u2026", photo.getvalue()),
        RawPost("b", "no photo, and a longer text than the other one has", None),
        RawPost("c", None, photo.getvalue()),
    ]
    inputs = [predictor.inputs(post) for post in posts]
    explanations = explain_posts(predictor, inputs)
    for post, one, explanation, answer in zip(
        posts, inputs, explanations, predictor.predict_inputs(inputs), strict=True
    ):
        assert explanation.probabilities == answer.probabilities
        assert [word for word, _ in explanation.words] == (post.text or "").split()
        assert (explanation.heat is None) == (post.image is None)
        (alone,) = explain_posts(predictor, [one])
        assert alone.predicted == explanation.predicted
        np.testing.assert_allclose(alone.pieces, explanation.pieces, atol=1e-3)
        np.testing.assert_allclose(alone.patches, explanation.patches, atol=1e-3)


def test_unknown_methods_and_crooked_grids_are_refused(toy, tmp_path):
    cache, model = toy
    post = cached_features(cache, 0, CPU)
    with pytest.raises(InputError, match="no such method; known are attention, rollout, gradient"):
        explain_features(model, [post], [None], lambda _: [], LABELS, method="magic")
    with pytest.raises(InputError, match="no square grid"):
        explain_features(
            model, [PostFeatures(post.patches[:3], post.pooled, post.tokens)], [None], lambda _: [], LABELS
        )


def test_a_picture_of_ones_own_is_decoded_within_the_limits_of_extraction(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.extraction.sources._SECONDS", 0.3)
    (tmp_path / "slow.jpg").write_bytes(endless_jpeg())
    (tmp_path / "thin.png").write_bytes(thin_png(6000))
    for name, reason in (("slow.jpg", "reading it takes over 0.3 s"), ("thin.png", "1x6000 is resized to 256x1536000")):
        options = ("--image", tmp_path / name, "--text", "a", "--out", tmp_path / "look")
        assert f"{name}: {reason}" in refused("explain", tiny_run.folder, *options)
    assert not (tmp_path / "look").exists()


def test_pictures_are_not_written_through_a_linked_folder(tiny_run, drawn_posts, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "2026-11.jpg").write_bytes(b"precious")
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / "heat").symlink_to(tmp_path / "mine")
    options = ("--image", drawn_posts[0].image, "--text", "a", "--out", tmp_path / "look")
    assert "a link to another folder" in refused("explain", tiny_run.folder, *options)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["2026-11.jpg"]
