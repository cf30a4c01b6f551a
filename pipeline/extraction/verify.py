"""Verifies a cache against its encoders: encodes some posts again and compares."""

from pathlib import Path

import numpy as np

from pipeline.cache.keep import ALL
from pipeline.cache.reader import Cache
from pipeline.encoders.from_fingerprint import same_image_encoder, same_text_encoder
from pipeline.encoders.load import ImageEncoder, TextEncoder
from pipeline.encoders.text import encode_texts
from pipeline.extraction.sources import Sources

# Another batch, thread count or machine changes features by float16 rounding at most.
RELATIVE, ABSOLUTE = 1e-2, 1e-2


def load_encoders(
    cache: Cache, device: str, image_weights: Path | None, text_encoder: str | None
) -> tuple[ImageEncoder, TextEncoder]:
    """The encoders that made the cache, by the names in its fingerprint, or from the given local files.

    Raises InputError if they are unavailable or others, naming the field.
    """
    fingerprint = cache.fingerprint
    image = same_image_encoder(fingerprint["image"], device, weights=image_weights, owner=cache.folder)
    return image, same_text_encoder(fingerprint["text"], device, folder=text_encoder, owner=cache.folder)


def encode_again(cache: Cache, image: ImageEncoder, text: TextEncoder, count: int, seed: int = 0) -> list[str]:
    """Encode `count` random posts again from their sources; a line for each that differs beyond rounding."""
    sources = Sources(cache)
    posts = sources.posts
    rows = np.flatnonzero(cache.ok)
    chosen = sorted(np.random.default_rng(seed).permutation(rows)[:count].tolist())
    pictures = sources.pictures(chosen, image.transform) if cache.has_images else [None] * len(chosen)
    problems = []
    for row, picture in zip(chosen, pictures, strict=True):
        again: dict[str, np.ndarray] = {}
        if isinstance(picture, str):
            problems.append(f"post {posts[row].id}: its image can't be read any more ({picture})")
            continue
        if picture is not None:
            again["patches"], again["pooled"] = image.encode(image.pixels(picture)[None])
        (ids,), _ = text.tokenize([posts[row].text or ""])
        (again["tokens"],), (again["text_pooled"],) = encode_texts(text, [ids], np.dtype(np.float32))
        if cache.keep != ALL:
            again = {name: values for name, values in again.items() if name in ("pooled", "text_pooled")}
        for name, values in again.items():
            stored = _stored(cache, name, row)
            if values.size == stored.size:  # one post's one view, or its several views
                values = values.reshape(stored.shape)
            scale = ABSOLUTE * max(1.0, float(np.abs(values).max()))
            if stored.shape != values.shape or not np.allclose(stored, values, rtol=RELATIVE, atol=scale):
                problems.append(f"post {posts[row].id}: its {name} are not what the encoders say")
    return problems


def _stored(cache: Cache, name: str, row: int) -> np.ndarray:
    """A post's features of this name, of an image all views."""
    if name == "tokens":
        return cache.tokens(row)
    if name == "text_pooled":
        return np.asarray(cache.gather_text_pooled(np.array([row]))[0])
    return np.stack([getattr(cache, name)(row, view) for view in range(cache.views)])
