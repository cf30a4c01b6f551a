"""Explains predictions: the weight of each word and of each part of the image (table 5 of the paper).

`attribution` computes the weights; here they are laid on the words of the text and the grid of the image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.evaluation.predict import predict_rows
from fusion.explanation.attribution import PostFeatures, Weights, batch_of, weigh
from fusion.explanation.words import Spans, join_words
from fusion.inference.predictor import Inputs, Predictor
from fusion.models.base import Model
from fusion.run import Run, RunCache
from pipeline.cache.keep import ALL
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.fingerprint import pooled_is_mean, require_images
from pipeline.encoders.from_fingerprint import same_image_encoder
from pipeline.encoders.load import ImageEncoder, TextEncoder
from pipeline.encoders.text import encode_texts
from pipeline.encoders.text_vector import MEAN
from pipeline.encoders.views import first_view
from pipeline.extraction.sources import Sources

# The method whose words and patches, when masked, cost the predicted class the most on average: see docs/results.md
#   python cli.py explain RUN --faithfulness --posts 100
DEFAULT_METHOD = "gradient"

_NO_WORDS = "words are not shown: the model reads the text's pooled vector, which is not the mean of its words"
NO_PLACES = "places are not shown: the model reads the image's pooled vector, which is not the mean of its patches"


@dataclass(frozen=True)
class Explanation:
    """A prediction for one post with the weights behind it.

    Attributes:
        predicted: the class with the highest probability; probabilities: by class.
        words: each word of the text with its weight in [0, 1], 1 for the highest; none for a post without a text.
        unread: how many words at the end the tokenizer cut off.
        heat: (grid_h, grid_w) in [0, 1], 0 for the lowest patch and 1 for the highest; None without an image.
        pieces: (n,) and patches: (m,): the weights behind both, which sum to 1 over the whole post.
        note: what can't be shown, and why; empty if nothing is left out.
    """

    method: str
    predicted: str
    probabilities: dict[str, float]
    words: list[tuple[str, float]]
    unread: int
    heat: np.ndarray | None
    pieces: np.ndarray
    patches: np.ndarray
    note: str = ""

    @property
    def text_share(self) -> float | None:
        """The text's part of all weight; None if the method cannot tell, or if all weights are 0."""
        total = float(self.pieces.sum() + self.patches.sum())
        return None if self.method == "attention" or self.note or total == 0 else float(self.pieces.sum()) / total

    def summary(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "method": self.method,
            "predicted": self.predicted,
            "probabilities": self.probabilities,
            "words": [[word, weight] for word, weight in self.words],
            "unread_words": self.unread,
            "heat": None if self.heat is None else self.heat.tolist(),
            "text_share": self.text_share,
        }


def explain_posts(predictor: Predictor, inputs: Sequence[Inputs], *, method: str = DEFAULT_METHOD) -> list[Explanation]:
    """Explain raw posts, with the probabilities that `predictor.predict_inputs` gives for the same posts.

    Args:
        inputs: what `predictor.inputs` made of them. One that has a `reason` raises InputError.
        method: one of METHODS; their formulas stand in `fusion.explanation.attribution`.
    """
    views = predictor.features(inputs)
    batch, known = views[0], predictor.probabilities(views)
    posts = []
    for i, one in enumerate(inputs):
        length = int(batch.text_mask[i].sum())
        tokens, ids = (None, None) if one.text is None else (batch.tokens[i, :length], batch.input_ids[i, :length])
        patches, pooled = (None, None) if one.pixels is None else (batch.patches[i], batch.pooled[i])
        vector = _own_vector(batch.text_pooled[i], predictor.text.pooled)
        posts.append(PostFeatures(patches, pooled, tokens, ids, vector, predictor.image.pooled != MEAN))
    texts = [None if one.text is None else predictor.text.normalized(one.text) for one in inputs]
    labels = predictor.labels
    return explain_features(
        predictor.model, posts, texts, predictor.text.spans, labels, method=method, probabilities=known
    )


def explain_features(
    model: Model,
    posts: Sequence[PostFeatures],
    texts: Sequence[str | None],
    spans: Callable[[str], Spans],
    names: Sequence[str],
    *,
    method: str = DEFAULT_METHOD,
    probabilities: np.ndarray | None = None,
) -> list[Explanation]:
    """Explain each post by itself: an explanation does not depend on the other posts.

    Args:
        texts: what the features' tokens were made of, normalised; spans: `TextEncoder.spans`; names: the labels.
        probabilities: (posts, classes) the known prediction; without it the model predicts here, in float32.
    """
    explanations = []
    for number, (post, text) in enumerate(zip(posts, texts, strict=True)):
        classes = probabilities_of(model, post) if probabilities is None else probabilities[number]
        weights = weigh(model, post, int(classes.argmax()), method)
        hidden = {
            _NO_WORDS: text is not None and post.text_pooled is not None and not len(weights.pieces),
            NO_PLACES: post.patches is not None and post.own_image_vector and not len(weights.patches),
        }
        note = "; ".join(note for note, is_so in hidden.items() if is_so)
        explanations.append(_explanation(method, names, classes, weights, text, spans, note))
    return explanations


def probabilities_of(model: Model, post: PostFeatures) -> np.ndarray:
    """Class probabilities (classes,) float64 of one post (eq 15), at the model's temperature."""
    with torch.no_grad():
        return (model(batch_of(model, post))[0].cpu().double() / model.temperature).softmax(dim=0).numpy()


def explain_cached(
    model: Model,
    cache: Cache,
    rows: np.ndarray,
    device: torch.device,
    text: TextEncoder,
    method: str = DEFAULT_METHOD,
    *,
    posts: Sequence[PostFeatures] | None = None,
) -> list[Explanation]:
    """Explain posts of a cache, with the probabilities that `evaluate` gives to them.

    posts: their features, of a cache that keeps pooled vectors alone (`features_of_posts`); without them the cache's.
    """
    read = model.config.modalities
    if posts is None:
        cache.require_all_kept("explaining its posts needs them")
        posts = [cached_features(cache, int(row), device) for row in rows]
    texts = [text.normalized(cache.texts[row]) if read != "image" else None for row in rows]
    for row, written in zip(rows.tolist(), texts, strict=True):
        if written is not None and len(text.spans(written)) != cache.lengths[row]:
            raise InputError(f"{cache.folder}: post {cache.ids[row]}: its features are not of its text")
    known = predict_rows(model, cache, rows, device)
    return explain_features(model, posts, texts, text.spans, cache.label_names, method=method, probabilities=known)


def cache_of(run: Run, folder: str | Path | None = None) -> RunCache:
    """A run's cache, to explain posts of. Raises InputError if it is of other encoders, or of texts alone."""
    require_images(run.metadata["fingerprint"], run.folder, "explaining needs images")
    return run.open_cache(folder)


def cached_features(cache: Cache, row: int, device: torch.device) -> PostFeatures:
    """A post's features from the cache, in float32."""
    return _post_features(cache, row, device, cache.patches(row), cache.tokens(row), cache.input_ids(row))


def _post_features(
    cache: Cache, row: int, device: torch.device, patches: np.ndarray, tokens: np.ndarray, ids: np.ndarray
) -> PostFeatures:
    """A post's patches (m, C), tokens (n, D) and ids (n,), with its vectors from the cache, in float32."""
    grid, pooled, words = (
        torch.from_numpy(np.array(values, np.float32)).to(device) for values in (patches, cache.pooled(row), tokens)
    )
    pieces = torch.from_numpy(ids.astype(np.int64)).to(device)
    vector = torch.from_numpy(cache.gather_text_pooled(np.array([row]))[0]).to(device)
    own_image_vector = not pooled_is_mean(cache.fingerprint)
    return PostFeatures(grid, pooled, words, pieces, _own_vector(vector, cache.text_pooling), own_image_vector)


def features_of_posts(
    run: Run, cache: Cache, rows: np.ndarray, device: torch.device, text: TextEncoder, weights: Path | None = None
) -> list[PostFeatures] | None:
    """The features to explain posts by where the cache keeps pooled vectors alone: both encoders make patches and
    tokens again, of image files and texts. None where it keeps all.

    weights: the file of the image encoder's, if it has moved. Raises InputError if that encoder is unavailable or
    another one, and naming a post whose image is not what it was.
    """
    if cache.keep == ALL:
        return None
    image = same_image_encoder(cache.fingerprint["image"], str(device), weights=weights, owner=run.folder)
    return list(_encoded_again(cache, rows, device, image, text))


def _encoded_again(
    cache: Cache, rows: np.ndarray, device: torch.device, image: ImageEncoder, text: TextEncoder
) -> Iterator[PostFeatures]:
    """Posts' patches and tokens, rounded as a cache stores them."""
    sources, stored = Sources(cache), np.dtype(cache.fingerprint["stored_dtype"])
    pictures = sources.pictures(rows.tolist(), image.transform)
    for row, picture in zip(rows.tolist(), pictures, strict=True):
        if isinstance(picture, str):
            raise InputError(
                f"{cache.folder}: keeps pooled vectors alone, and the patches of post {cache.ids[row]} can't be made "
                f"again from its image ({picture}); bring the image back, or explain other posts"
            )
        patches, _ = image.encode(first_view(image.pixels(picture))[None])
        (ids,), _ = text.tokenize([sources.posts[row].text or ""])
        (tokens,), _ = encode_texts(text, [ids], stored)
        yield _post_features(cache, row, device, patches[0].astype(stored), tokens, ids)


def _own_vector(vector: torch.Tensor, pooling: str) -> torch.Tensor | None:
    """A text's vector, unless it is the mean of its tokens."""
    return None if pooling == MEAN else vector


def _explanation(
    method: str,
    names: Sequence[str],
    probabilities: np.ndarray,
    weights: Weights,
    text: str | None,
    spans: Callable[[str], Spans],
    note: str,
) -> Explanation:
    pieces, patches = weights.pieces.cpu().double().numpy(), weights.patches.cpu().double().numpy()
    words: list[tuple[str, float]] = []
    unread = 0
    if text is not None and len(pieces):
        words, unread = join_words(text, spans(text), pieces)
    highest = max((weight for _, weight in words), default=0.0)
    return Explanation(
        method=method,
        predicted=names[int(probabilities.argmax())],
        probabilities=dict(zip(names, map(float, probabilities), strict=True)),
        words=[(word, weight / highest if highest else 0.0) for word, weight in words],
        unread=unread,
        heat=_heat(patches) if len(patches) else None,
        pieces=pieces,
        patches=patches,
        note=note,
    )


def _heat(patches: np.ndarray) -> np.ndarray:
    """Patch weights (m,), row-major, as a square grid in [0, 1]; all alike is 0 everywhere."""
    side = math.isqrt(len(patches))
    if side * side != len(patches):
        raise InputError(f"the image encoder's {len(patches)} patches are no square grid, so there is no heat map")
    lowest, highest = float(patches.min()), float(patches.max())
    if highest <= lowest:
        return np.zeros((side, side))
    return ((patches - lowest) / (highest - lowest)).reshape(side, side)
