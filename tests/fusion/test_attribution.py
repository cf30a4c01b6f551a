"""The written-out pass against the model, and the three methods against values worked out by hand or in loops."""

from dataclasses import replace

import pytest
import torch

from fusion.config import load_config
from fusion.explanation import attribution
from fusion.explanation.attribution import (
    METHODS,
    decisive_rows,
    methods_for,
    roll_out,
    signed_contributions,
    trace,
)
from pipeline.common.errors import InputError
from tests.helpers.models import BASE, LENGTHS, VARIANTS, batch_of, features_of, model_of


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_the_written_out_pass_gives_the_models_rows_and_logits(settings):
    """Of a padded batch: so the weights of a post don't depend on the others either."""
    model, batch = model_of(load_config(settings=(*BASE, *settings))), batch_of(LENGTHS)
    said = {}
    hook = model.transformer.register_forward_hook(lambda _, given, rows: said.update(rows=rows, mask=given[1]))
    with torch.no_grad():
        logits = model(batch)
    hook.remove()
    for post in range(len(LENGTHS)):
        seen = trace(model, features_of(batch, post))
        torch.testing.assert_close(seen.rows, said["rows"][post][said["mask"][post]], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(seen.logits, logits[post], rtol=1e-9, atol=1e-9)
        assert len(seen.attention) == model.config.layers
        for weights in seen.attention:
            assert weights.shape == (model.config.heads, len(seen.rows), len(seen.rows))
            torch.testing.assert_close(weights.sum(dim=2), torch.ones_like(weights[:, :, 0]))


@pytest.mark.parametrize("missing", ["has_text", "has_image"])
def test_a_post_without_one_modality_is_traced_as_the_model_sees_it(missing):
    model, batch = model_of(load_config(settings=BASE)), batch_of(LENGTHS)
    batch = replace(batch, **{missing: torch.zeros_like(batch.has_text)})
    post = features_of(batch, 0)
    post = replace(post, tokens=None) if missing == "has_text" else replace(post, patches=None, pooled=None)
    with torch.no_grad():
        torch.testing.assert_close(trace(model, post).logits, model(batch)[0], rtol=1e-9, atol=1e-9)
    for method in ("rollout", "gradient"):
        weights = METHODS[method](model, post, 1)
        assert len(weights.pieces) == (0 if missing == "has_text" else LENGTHS[0])
        assert len(weights.patches) == (0 if missing == "has_image" else 5)


def test_decisive_rows_by_hand():
    """Dimension 0 is won by row 1 with 3, dimension 1 by row 2 with 4; the head's means over classes are 1 and 1.

    So class 0 gets (2 - 1) 3 = 3 from row 1 and (3 - 1) 4 = 8 from row 2; class 2 gets nothing from row 1, and -4 from
    row 2, which counts as 0.
    """
    rows = torch.tensor([[1.0, 0.0], [3.0, -1.0], [2.0, 4.0]])
    head = torch.tensor([[2.0, 3.0], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(decisive_rows(rows, head, 0), torch.tensor([0, 3 / 11, 8 / 11]))
    assert decisive_rows(rows, head, 2).tolist() == [0, 0, 0]


def test_rollout_by_hand():
    """Two layers, the first with two heads; from rows 1 and 2.

    Layer 2: s A = (4, 4, 3) / 11, with s itself and halved (4, 7, 11) / 22. Layer 1, mean of heads: every row looks
    half at row 1, half at row 2: u A = (0, 11, 11) / 22, with u itself and halved (4, 18, 22) / 44.
    """
    start = torch.tensor([0, 3 / 11, 8 / 11])
    first = torch.tensor([[[0.0, 1, 0]] * 3, [[0.0, 0, 1]] * 3])
    second = torch.tensor([[[1.0, 0, 0], [0, 0, 1], [0.5, 0.5, 0]]])
    torch.testing.assert_close(roll_out(start, [first, second]), torch.tensor([4 / 44, 18 / 44, 22 / 44]))


def test_rollout_is_traced_back_to_words_and_patches():
    """Against loops over rows: eqs 10-11 lead from I' to words, 8-9 from T' to image rows, 2 from pooled to patches."""
    model, batch = model_of(load_config(settings=BASE)), batch_of(LENGTHS)
    post = features_of(batch, 0)
    n, m = len(post.tokens), len(post.patches)
    with torch.no_grad():
        seen = trace(model, post)
    u = roll_out(decisive_rows(seen.rows, model.sentiment_head.weight.detach(), 1), seen.attention).tolist()
    words = [u[i] for i in range(n)]
    image = [u[2 * n + 1 + m + j] for j in range(1 + m)]
    for i in range(n):
        for j in range(1 + m):
            words[i] += u[2 * n + j] * float(seen.image_to_text[j, i])
            image[j] += u[n + i] * float(seen.text_to_image[i, j])
    weights = attribution.attention_rollout(model, post, 1)
    assert weights.pieces.tolist() == pytest.approx(words)
    assert weights.patches.tolist() == pytest.approx([share + image[0] / m for share in image[1:]])
    assert sum(words) + sum(image) == pytest.approx(1)


@pytest.mark.parametrize("settings", [(), ("cross_attention=false",), ("segment_embeddings=true",)])
def test_gradient_times_input_is_the_slope_of_the_log_odds(settings):
    """Central differences: each row scaled by 1 ± h, a patch together with its part of the pooled feature."""
    model, batch = model_of(load_config(settings=(*BASE, *settings))), batch_of(LENGTHS)
    post, h = features_of(batch, 0), 1e-5

    def odds(changed):
        probabilities = trace(model, changed).logits.softmax(dim=0)
        return float(torch.logit(probabilities[2]))

    with torch.no_grad():
        pieces, patches = signed_contributions(model, post, 2)
        for row in range(len(post.tokens)):
            values = []
            for factor in (1 + h, 1 - h):
                tokens = post.tokens.clone()
                tokens[row] *= factor
                values.append(odds(replace(post, tokens=tokens)))
            assert float(pieces[row]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-7)
        for row in range(len(post.patches)):
            values = []
            for factor in (1 + h, 1 - h):
                changed = post.patches.clone()
                changed[row] *= factor
                values.append(odds(replace(post, patches=changed, pooled=changed.mean(dim=0))))
            assert float(patches[row]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-7)
    assert (pieces < 0).any()  # there is something for the cut at 0 to do


def test_cross_modal_attention_is_the_mean_look_of_the_other_modality():
    model, batch = model_of(load_config(settings=BASE)), batch_of(LENGTHS)
    post = features_of(batch, 2)
    with torch.no_grad():
        scores = (
            model.embed_text(post.tokens)
            @ torch.nn.functional.gelu(model.image_projection(torch.cat([post.pooled[None], post.patches]))).T
        )
    weights = attribution.cross_modal_attention(model, post, 0)
    image = scores.softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(weights.patches, (image[1:] + image[0] / 5) / 2)
    torch.testing.assert_close(weights.pieces, scores.softmax(dim=0).mean(dim=1) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_shares_of_the_whole_post(method):
    model, batch = model_of(load_config(settings=BASE)), batch_of(LENGTHS)
    for post in range(len(LENGTHS)):
        weights = METHODS[method](model, features_of(batch, post), 0)
        both = torch.cat([weights.pieces, weights.patches])
        assert (both >= 0).all()
        assert float(both.sum()) == pytest.approx(1)


def test_a_run_without_cross_modal_attention_says_which_methods_serve_it():
    config = load_config(settings=(*BASE, "cross_attention=false"))
    assert methods_for(model_of(config)) == ["rollout", "gradient"]
    assert methods_for(model_of(load_config(settings=BASE))) == list(METHODS)
    with pytest.raises(InputError, match="no cross-modal attention"):
        attribution.cross_modal_attention(model_of(config), features_of(batch_of(LENGTHS), 0), 0)
