"""Measures explanations: how much the predicted class loses when what a method points at is masked.

A method that finds what the model uses lowers it more than masking the same number of words or patches at random.
The raw input is masked: words become [MASK] and the frozen text encoder reads the text again; patches are filled
with the image's mean colour and the frozen image encoder looks again. So words that BERT mixed into their neighbours
are gone from these, too.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from fusion.models.base import FrozenText, Model
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.load import ImageEncoder, TextEncoder
from pipeline.encoders.views import first_view
from pipeline.extraction.sources import Sources

FRACTION, DRAWS = 0.2, 5


class FrozenImage(Protocol):
    """What is needed of the frozen image encoder (pipeline.encoders.load.ImageEncoder is one)."""

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (B, 3, S, S) uint8 to patches (B, m, C) and pooled (B, C)."""


@dataclass(frozen=True)
class EncoderInput:
    """What the encoders read: pixels (3, S, S) uint8, input_ids (n,), words (n,) True where an id can be masked."""

    pixels: np.ndarray
    input_ids: np.ndarray
    words: np.ndarray


def raw_posts(cache: Cache, rows: Iterable[int], image: ImageEncoder, text: TextEncoder) -> Iterable[EncoderInput]:
    """The posts of a cache from their sources, one by one; those whose image is not there any more, or has changed, are
    left out.
    """
    sources = Sources(cache)
    rows = list(rows)
    for row, picture in zip(rows, sources.pictures(rows, image.transform), strict=True):
        if isinstance(picture, str):
            continue
        written = sources.posts[row].text or ""
        (ids,), _ = text.tokenize([written])
        yield EncoderInput(first_view(image.pixels(picture)), ids, word_pieces(text.spans(written)))


def faithfulness(
    model: Model,
    posts: Iterable[EncoderInput],
    image: FrozenImage,
    text: FrozenText,
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
        features = _features(model, *image.encode(post.pixels[None]), _tokens(text, post.input_ids[None]))[0]
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
    text: FrozenText,
) -> np.ndarray:
    """Probabilities (len(chosen), 3) of the post with each choice of words or patches masked."""
    if kind == "words":
        ids = np.repeat(post.input_ids[None], len(chosen), axis=0)
        for row, masked in zip(ids, chosen, strict=True):
            row[masked] = text.mask_id
        changed = [PostFeatures(features.patches, features.pooled, one) for one in _tokens(text, ids)]
    else:
        assert features.patches is not None
        pixels = np.stack([mask_patches(post.pixels, masked, len(features.patches)) for masked in chosen])
        tokens = features.tokens[None].expand(len(chosen), -1, -1) if features.tokens is not None else None
        changed = _features(model, *image.encode(pixels), tokens)
    return np.stack([probabilities_of(model, one) for one in changed])


def _features(model: Model, patches: np.ndarray, pooled: np.ndarray, tokens: Tensor | None) -> list[PostFeatures]:
    parameter = next(model.parameters())
    arrays = [torch.from_numpy(values).to(parameter) for values in (patches, pooled)]
    texts = [None] * len(patches) if tokens is None else list(tokens.to(parameter))
    return [PostFeatures(*one) for one in zip(*arrays, texts, strict=True)]


def _tokens(text: FrozenText, ids: np.ndarray) -> Tensor:
    return text.encode(torch.from_numpy(ids).long(), torch.ones(ids.shape, dtype=torch.bool))


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
