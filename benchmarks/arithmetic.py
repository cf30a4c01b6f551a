"""Counts the matrix products of a training step, from the configuration, the encoders' sizes and the texts' lengths.

Only useful work is counted: no padding, no row that no loss asks for, each common row once, as in `fast_losses`.
Elementwise work is not counted. The sum is what a training step would take if products were all it did.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.config import Config
from fusion.models.base import Dimensions
from fusion.models.masking import masked_counts


@dataclass(frozen=True)
class Product:
    """`count` products of (rows, inner) by (inner, columns)."""

    rows: int
    inner: int
    columns: int
    count: int = 1

    @property
    def flops(self) -> int:
        """Additions and multiplications."""
        return 2 * self.rows * self.inner * self.columns * self.count


@dataclass(frozen=True)
class TextSize:
    """The frozen text encoder's layers, feed-forward width and heads."""

    layers: int
    feedforward: int
    heads: int


def step_products(config: Config, dimensions: Dimensions, lengths: Sequence[int], patches: int) -> list[Product]:
    """Products of one training step, forward and backward, over texts of these lengths and `patches` a picture.

    For modalities both, and without a text's re-encoding (`reencoding_products`). A product with a weight costs two
    more in the backward pass, one where its input is frozen; a product of two activations costs two more.
    """
    if config.modalities != "both":
        raise ValueError("modalities: counted for both alone")
    d, f, grid = config.width, config.feedforward_width, patches + 1
    texts = np.asarray(lengths)
    words, posts = int(texts.sum()), len(texts)
    hidden = masked_counts(texts - 2, config.mask_rate) if config.mlm else np.zeros(posts, int)
    asked = int(hidden.sum())
    cross = config.cross_attention
    rows = 2 * (texts + grid) if cross else texts + grid  # of one pass, by post
    own = texts + rows // 2 if config.mlm_cross == "masked" and cross else texts  # of pass 2, not in common
    every, own_rows = int(rows.sum()), int(own.sum())
    found: list[Product] = []

    found += _from_frozen(posts * grid, dimensions.channels, d)  # eq 4
    found += _from_frozen(words, dimensions.text_width, d)  # eq 6
    for _ in range(2 if config.label_rule else 1):  # the text's head and the image's, or the post's
        found += _trained(posts, d, dimensions.classes)  # eq 15
    for _ in range(config.layers):  # eq 12
        found += _layer(every, every, every, d, f) + _attention(zip(rows, rows, strict=True), config)
    times = 1
    if config.mlm:
        found += _from_frozen(words, dimensions.text_width, d) if config.mask_projection else []  # eq 21
        times += config.mlm_cross == "masked"
        for number in range(config.layers):  # eq 22
            last = number == config.layers - 1
            keys = own_rows if number == 0 and config.share_transformer else every
            queries = asked if last else keys
            found += _layer(queries, keys, asked if last else every, d, f)
            found += _attention(zip(hidden if last else rows, rows, strict=True), config)
        found += _trained(asked, d, dimensions.vocabulary)  # eq 24
    if cross:
        for n in texts:  # eqs 7, 9, 11: pictures by words, and back
            pairs = [Product(n, d, grid), Product(n, grid, d), Product(grid, n, d)]
            found += [Product(p.rows, p.inner, p.columns, times) for pair in pairs for p in _activations(pair)]
    return _merged(found)


def reencoding_products(width: int, size: TextSize, lengths: Sequence[int]) -> list[Product]:
    """Products of encoding masked texts of these lengths again (eq 21), forward alone; `width` is D."""
    words = int(np.sum(lengths))
    found = [
        *(Product(words, width, width, 4 * size.layers),),
        Product(words, width, size.feedforward, size.layers),
        Product(words, size.feedforward, width, size.layers),
    ]
    for n in lengths:
        count = size.layers * size.heads
        found += [Product(n, width // size.heads, n, count), Product(n, n, width // size.heads, count)]
    return _merged(found)


def _layer(queries: int, keys: int, out: int, d: int, f: int) -> list[Product]:
    """The weights of one encoder layer: queries for some rows, keys and values for others, the rest for `out` rows."""
    apart = _trained(queries, d, d) + _trained(keys, d, 2 * d)
    found = _trained(queries, d, 3 * d) if queries == keys else apart
    return found + _trained(out, d, d) + _trained(out, d, f) + _trained(out, f, d)


def _attention(pairs: Iterable[tuple[int, int]], config: Config) -> list[Product]:
    """Scores and weighted values of all heads, for each post's (queries, keys)."""
    size = config.width // config.heads
    return [
        Product(p.rows, p.inner, p.columns, config.heads)
        for queries, keys in pairs
        for pair in (Product(queries, size, keys), Product(queries, keys, size))
        for p in _activations(pair)
    ]


def _trained(rows: int, inner: int, columns: int) -> list[Product]:
    """A product with a weight, its input's gradient and the weight's."""
    return [Product(rows, inner, columns), Product(rows, columns, inner), Product(inner, rows, columns)]


def _from_frozen(rows: int, inner: int, columns: int) -> list[Product]:
    """The same where the input is frozen and needs no gradient."""
    return [Product(rows, inner, columns), Product(inner, rows, columns)]


def _activations(product: Product) -> list[Product]:
    """A product of two activations, and both gradients."""
    rows, inner, columns = product.rows, product.inner, product.columns
    return [product, Product(rows, columns, inner), Product(inner, rows, columns)]


def _merged(products: Iterable[Product]) -> list[Product]:
    """Equal shapes once, with their number, the most work first; empty ones left out."""
    counts: Counter[tuple[int, int, int]] = Counter()
    for product in products:
        counts[int(product.rows), int(product.inner), int(product.columns)] += product.count
    merged = [Product(*shape, count) for shape, count in counts.items() if 0 not in shape]
    return sorted(merged, key=lambda product: -product.flops)
