"""Measures explanations: how much the predicted class loses when what a method points at is masked.

A method that finds what the model uses lowers it more than masking the same number of words or patches at random.
The raw input is masked: words become [MASK] and the frozen text encoder reads the text again; patches are filled
with the image's mean colour and the frozen image encoder looks again. So words that BERT mixed into their neighbours
are gone from these, too.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fusion.explanation.attribution import PostFeatures, methods_for, weigh
from fusion.explanation.explain import cache_of, probabilities_of
from fusion.explanation.words import word_pieces
from fusion.inference.predictor import Predictor
from fusion.models.base import Model
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.load import ImageEncoder, TextEncoder
from pipeline.encoders.text import encode_texts
from pipeline.encoders.text_vector import MEAN
from pipeline.encoders.views import first_view
from pipeline.extraction.sources import Sources

FRACTION, DRAWS = 0.2, 5


class FrozenImage(Protocol):
    """What is needed of the frozen image encoder (pipeline.encoders.load.ImageEncoder is one)."""

    pooled: str  # how the image's vector is made

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (B, 3, S, S) uint8 to patches (B, m, C) and pooled (B, P)."""


@dataclass(frozen=True)
class EncoderInput:
    """What the encoders read: pixels (3, S, S) uint8, input_ids (n,), words (n,) True where an id can be masked."""

    pixels: np.ndarray
    input_ids: np.ndarray
    words: np.ndarray


def raw_posts(cache: Cache, rows: Iterable[int], image: ImageEncoder, text: TextEncoder) -> Iterable[EncoderInput]:
    """The posts of a cache from their sources, one by one; those whose image is not there any more, or has changed, are
    left out. No word can be masked where the text encoder has no mask token.
    """
    sources = Sources(cache)
    rows = list(rows)
    for row, picture in zip(rows, sources.pictures(rows, image.transform), strict=True):
        if isinstance(picture, str):
            continue
        written = sources.posts[row].text or ""
        (ids,), _ = text.tokenize([written])
        words = word_pieces(text.spans(text.normalized(written))) & (text.mask_id >= 0)
        yield EncoderInput(first_view(image.pixels(picture)), ids, words)


def faithfulness(
    model: Model,
    posts: Iterable[EncoderInput],
    image: FrozenImage,
    text: TextEncoder,
    *,
    fraction: float = FRACTION,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean drop of the predicted class's probability, by what was masked (words, patches) and by which method.

    Every method hides the same number in a post, max(1, round(fraction x candidates)), those with the highest weights;
    `random` is the mean over `draws`. `beyond_random` is the mean paired difference to it, with its standard error over
    posts; `best` has the highest mean of these over words and patches.
    """
    random = np.random.default_rng(seed)
    methods = methods_for(model)
    drops: dict[str, list[list[float]]] = {"words": [], "patches": []}
    count = 0
    for post in posts:
        count += 1
        features = _features(model, image, post.pixels[None], _texts(text, post.input_ids[None]))[0]
        whole = probabilities_of(model, features)
        predicted = int(whole.argmax())
        weights = [weigh(model, features, predicted, method) for method in methods]
        by_kind = {
            "words": (np.flatnonzero(post.words), [one.pieces for one in weights]),
            "patches": (np.arange(len(weights[0].patches)), [one.patches for one in weights]),
        }
        for kind, (candidates, found) in by_kind.items():
            if not len(candidates) or not len(found[0]):
                continue
            k = max(1, round(fraction * len(candidates)))
            chosen = [_strongest(one.cpu().numpy(), candidates, k) for one in found]
            chosen += [random.choice(candidates, k, replace=False) for _ in range(draws)]
            left = _without(model, features, post, kind, chosen, image, text)[:, predicted]
            lost = whole[predicted] - left
            drops[kind].append([*lost[: len(methods)], float(lost[len(methods) :].mean())])
    if not count:
        raise InputError("none of the posts' images can be read any more, so nothing can be masked")
    if not any(drops.values()):
        raise InputError(
            "nothing to measure: no patch has a weight of its own (or the run reads texts alone), and no word has one, "
            "or the text encoder has no mask token"
        )
    return _result(methods, drops, count, fraction, draws)


def of_run(
    predictor: Predictor,
    split: str,
    count: int,
    *,
    cache: str | Path | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """`faithfulness` of a run on at most `count` posts of a split, drawn at random with a fixed seed. `say` gets a line
    for what is not as it was when the run was trained.
    """
    run = predictor.run
    opened = cache_of(run, cache)
    if opened.note:
        say(opened.note)
    if predictor.text.mask_id < 0:
        say("words are not masked: the text encoder has no mask token")
    rows = np.random.default_rng(0).permutation(opened.cache.rows(split))[:count]
    posts = raw_posts(opened.cache, rows.tolist(), predictor.image, predictor.text)
    with tqdm(posts, total=len(rows), unit="post", desc="hide", disable=quiet) as bar:
        result = faithfulness(predictor.model, bar, predictor.image, predictor.text)
    return {"run": str(run.folder), "split": split, **result}


def format_faithfulness(result: dict[str, Any]) -> str:
    """The result as lines for a terminal, in percentage points."""
    lines = [
        f"{result['posts']} posts; drop of the predicted class's probability when the top {result['share']:.0%} are "
        "hidden, in points",
        f"{'':12}{'words':>9}{'- random':>18}{'patches':>11}{'- random':>18}{'mean - random':>16}",
    ]
    for name in [*result["methods"], "random"]:
        line = f"{name:12}"
        for kind, wide in (("words", 9), ("patches", 11)):
            if kind not in result["drop"]:
                line += f"{'-':>{wide}}{'':18}"
                continue
            line += f"{100 * result['drop'][kind][name]:>{wide}.2f}"
            beyond = result["beyond_random"][kind].get(name)
            line += f"{'':18}" if beyond is None else f"{100 * beyond['mean']:>+10.2f} ± {100 * beyond['error']:<5.2f}"
        mean = result["mean_beyond_random"].get(name)
        lines.append(line if mean is None else f"{line}{100 * mean:>+16.2f}")
    return "\n".join([*lines, f"best on average: {result['best']}"])


def mask_patches(pixels: np.ndarray, masked: Sequence[int] | np.ndarray, patches: int) -> np.ndarray:
    """Pixels (3, S, S) with the squares of the masked patches (row-major, of a square grid) in the mean colour."""
    side, size = math.isqrt(patches), pixels.shape[1]
    edges = np.linspace(0, size, side + 1).round().astype(int)
    out = pixels.copy()
    mean = pixels.reshape(3, -1).mean(axis=1).round().astype(np.uint8)
    for patch in masked:
        row, column = divmod(int(patch), side)
        out[:, edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = mean[:, None, None]
    return out


def _without(
    model: Model,
    features: PostFeatures,
    post: EncoderInput,
    kind: str,
    chosen: list[np.ndarray],
    image: FrozenImage,
    text: TextEncoder,
) -> np.ndarray:
    """Probabilities (len(chosen), 3) of the post with each choice of words or patches masked."""
    if kind == "words":
        ids = np.repeat(post.input_ids[None], len(chosen), axis=0)
        for row, masked in zip(ids, chosen, strict=True):
            row[masked] = text.mask_id
        changed = [replace(features, tokens=tokens, text_pooled=vector) for tokens, vector in _texts(text, ids)]
    else:
        assert features.patches is not None
        pixels = np.stack([mask_patches(post.pixels, masked, len(features.patches)) for masked in chosen])
        changed = _features(model, image, pixels, [(features.tokens, features.text_pooled)] * len(chosen))
    return np.stack([probabilities_of(model, one) for one in changed])


def _features(
    model: Model, image: FrozenImage, pixels: np.ndarray, texts: Sequence[tuple[Tensor | None, Tensor | None]]
) -> list[PostFeatures]:
    """Of posts whose images have these pixels (B, 3, S, S), and whose texts these tokens and vectors."""
    parameter, own_image_vector = next(model.parameters()), image.pooled != MEAN
    here = [(None if one is None else one.to(parameter) for one in text) for text in texts]
    images = (torch.from_numpy(values).to(parameter) for values in image.encode(pixels))
    return [
        PostFeatures(patches, pooled, tokens, text_pooled=vector, own_image_vector=own_image_vector)
        for patches, pooled, (tokens, vector) in zip(*images, here, strict=True)
    ]


def _texts(text: TextEncoder, ids: np.ndarray) -> list[tuple[Tensor, Tensor | None]]:
    """Tokens (n, D) of each row of ids (B, n), and its vector where that is not the mean of the tokens."""
    if text.pooled == MEAN:
        return [(one, None) for one in text.encode(torch.from_numpy(ids).long(), torch.ones(ids.shape).bool())]
    tokens, vectors = encode_texts(text, list(ids), np.dtype(np.float32))
    return [(torch.from_numpy(one), torch.from_numpy(vector)) for one, vector in zip(tokens, vectors, strict=True)]


def _strongest(weights: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    return candidates[np.argsort(-weights[candidates], kind="stable")[:k]]


def _result(
    methods: list[str], drops: dict[str, list[list[float]]], count: int, fraction: float, draws: int
) -> dict[str, Any]:
    names = [*methods, "random"]
    lost = {kind: np.array(rows) for kind, rows in drops.items() if rows}
    beyond = {kind: values[:, :-1] - values[:, -1:] for kind, values in lost.items()}
    mean = {name: float(np.mean([values[:, i].mean() for values in beyond.values()])) for i, name in enumerate(methods)}
    return {
        "posts": count,
        "posts_by_kind": {kind: len(values) for kind, values in lost.items()},
        "share": fraction,
        "random_draws": draws,
        "methods": methods,
        "drop": {
            kind: {name: float(values[:, i].mean()) for i, name in enumerate(names)} for kind, values in lost.items()
        },
        "beyond_random": {
            kind: {
                name: {
                    "mean": float(values[:, i].mean()),
                    "error": float(values[:, i].std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0,
                }
                for i, name in enumerate(methods)
            }
            for kind, values in beyond.items()
        },
        "mean_beyond_random": mean,
        "best": max(mean, key=lambda name: mean[name]),
    }
