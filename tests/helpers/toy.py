"""Small stand-ins for tests: a cache of random features, and a text encoder that is a table of word vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.data.batches import Batch, mean_of_tokens
from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.encoders.text_vector import MEAN, MODEL, pooled_tokens
from pipeline.encoders.views import VIEWS
from pipeline.posts.labels import LABEL
from pipeline.posts.manifest import SPLITS, Post
from pipeline.posts.mvsa import LABELS

CLS, SEP, MASK, VOCABULARY = 2, 3, 5, 31
VECTOR, IMAGE_VECTOR = 3, 2  # widths of the texts' and the images' vectors by the pooling `model`
MVSA_NAMES = dict.fromkeys(("label", "text_label", "image_label"), LABELS)
FINGERPRINT = {"image": {"name": "toy"}, "text": {"name": "toy"}, "stored_dtype": "float32"}


class ToyText:
    """A frozen text encoder: every id has its vector, and every token sees the mean of its text."""

    mask_id = MASK
    vocabulary = VOCABULARY
    parameters = 0

    def __init__(self, width: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(7)
        self.word_embeddings = torch.randn(VOCABULARY, width, generator=generator, dtype=dtype)

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        words = self.word_embeddings[input_ids]
        real = mask[:, :, None].to(words.dtype)
        return words + (words * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)


def write_cache(
    folder: Path,
    *,
    posts: int = 60,
    m: int = 5,
    channels: int = 11,
    width: int = 7,
    seed: int = 0,
    strength: float = 1.0,
    fingerprint: dict[str, Any] = FINGERPRINT,
    views: int = 1,
    modality_labels: bool = True,
    image_sha256: Sequence[str] | None = None,
    text_pooled: str = "mean",
    image_pooled: str = "mean",
) -> Cache:
    """A cache of random features in which each modality tells part of the label; splits 6:2:2, all labels in each.

    `text_pooled`: how the texts' vectors are made; `model`: random ones of another width; empty: as in a cache of an
    earlier version, which has none. `image_pooled`: likewise of the images; `cls`: random ones of the patches' width.

    With `modality_labels`, every third text is labelled neutral, every third image too, and every seventh text not.
    """
    if views > 1:
        fingerprint = {**fingerprint, "image": {**fingerprint["image"], "views": list(VIEWS[:views])}}
    if text_pooled not in ("", MEAN):
        fingerprint = {**fingerprint, "text": {**fingerprint["text"], "pooled": text_pooled}}
    if image_pooled != MEAN:
        fingerprint = {**fingerprint, "image": {**fingerprint["image"], "pooled": image_pooled}}
    random = np.random.default_rng(seed)
    text_encoder = ToyText(width)
    labels = np.arange(posts) % 3
    splits = np.array([0, 0, 0, 1, 2])[np.arange(posts) // 3 % 5]
    ids = [np.array([CLS, *random.integers(6, VOCABULARY, random.integers(0, 9)), SEP]) for _ in range(posts)]
    tokens = []
    for number, row in enumerate(ids):
        states = text_encoder.encode(torch.from_numpy(row)[None], torch.ones(1, len(row), dtype=torch.bool))[0].numpy()
        states[:, 0] += strength * (labels[number] == 1)
        tokens.append(states.astype(np.float32))
    shape = (posts, m, channels) if views == 1 else (posts, views, m, channels)
    patches = random.normal(size=shape).astype(np.float32)
    if channels:
        patches[..., 0] += strength * labels.reshape(-1, *[1] * (len(shape) - 2))
    pooled = patches.mean(axis=-2) if m else np.zeros((posts, channels), np.float32)
    if image_pooled != MEAN:
        wide = IMAGE_VECTOR if image_pooled == MODEL else channels
        pooled = np.random.default_rng([seed, 2]).normal(size=(*shape[:-2], wide)).astype(np.float32)
        pooled[..., 0] += strength * labels.reshape(-1, *[1] * (len(shape) - 3))
    vectors = None if not text_pooled else np.stack([pooled_tokens(one, text_pooled) for one in tokens])
    if text_pooled == MODEL:
        vectors = np.random.default_rng([seed, 1]).normal(size=(posts, VECTOR)).astype(np.float32)
        vectors[:, 0] += strength * (labels == 1)
    folder.mkdir(parents=True, exist_ok=True)
    hashes = image_sha256 or [f"{number + posts:064x}" for number in range(posts)]
    records = [hdf5.PostRecord(str(number), f"{number:064x}", hashes[number]) for number in range(posts)]
    for start in range(0, posts, hdf5.SHARD_POSTS):
        part = slice(start, start + hdf5.SHARD_POSTS)
        own = None if vectors is None else vectors[part]
        features = hdf5.ShardFeatures(records[part], patches[part], pooled[part], tokens[part], ids[part], own)
        hdf5.write_shard(folder / hdf5.shard_name(start // hdf5.SHARD_POSTS), features, fingerprint)
    listed = []
    for number, (label, split) in enumerate(zip(labels, splits, strict=True)):
        text_label = None if number % 7 == 0 else "neutral" if number // 3 % 3 == 0 else LABELS[label]
        image_label = "neutral" if number // 3 % 3 == 1 else LABELS[label]
        own = {"text_label": text_label, "image_label": image_label} if modality_labels else {}
        targets = {name: value for name, value in own.items() if value}
        text, image = f"text number {number} of the toy", Path(f"{number}.jpg")
        listed.append(Post(str(number), text, image, LABELS[label], SPLITS[split], targets))
    hdf5.write_index(folder, hdf5.in_shards(listed), fingerprint, names=MVSA_NAMES)
    return Cache(folder)


def pooled_alone(cache: Cache, folder: Path) -> Cache:
    """The same posts in a cache that keeps their pooled vectors alone."""
    folder.mkdir(parents=True)
    sizes = hdf5.Sizes(*cache.patches_shape, cache.text_width)
    for number, part in hdf5.in_shards(range(len(cache))).items():
        rows = np.array(part)
        views = [cache.gather_pooled(rows, views=np.full(len(rows), view)) for view in range(cache.views)]
        pooled = views[0] if cache.views == 1 else np.stack(views, axis=1)
        vectors, lengths = cache.gather_text_pooled(rows), cache.lengths[rows].tolist()
        features = hdf5.PooledFeatures([cache.records[row] for row in part], pooled, vectors, lengths, sizes)
        hdf5.write_shard(folder / hdf5.shard_name(number), features, cache.fingerprint)
    names = {name: target.names for name, target in cache.index.targets.items()}
    hdf5.write_index(folder, hdf5.in_shards(hdf5.read_posts(cache.folder)), cache.fingerprint, names=names)
    return Cache(folder)


def random_batch(
    lengths: list[int], *, m: int, channels: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    """Posts of the given text lengths, padded with values that must never matter."""
    generator = torch.Generator().manual_seed(seed)
    longest, count = max(lengths), len(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    input_ids = torch.randint(6, VOCABULARY, (count, longest), generator=generator)
    input_ids[:, 0] = CLS
    input_ids[torch.arange(count), torch.tensor(lengths) - 1] = SEP
    patches = torch.randn(count, m, channels, generator=generator, dtype=dtype)
    everyone = torch.ones(count, dtype=torch.bool)
    tokens = torch.randn(count, longest, width, generator=generator, dtype=dtype)
    return Batch(
        rows=np.arange(count),
        patches=patches,
        pooled=patches.mean(dim=1),
        tokens=tokens,
        input_ids=input_ids,
        text_pooled=mean_of_tokens(tokens, mask),
        text_mask=mask,
        labels=torch.randint(0, 3, (count,), generator=generator),
        modality_labels=torch.randint(-1, 3, (count, 2), generator=generator),
        has_text=everyone,
        has_image=everyone,
        num_maskable=np.array(lengths) - 2,
    )


def relabelled(cache: Cache, labels: Sequence[Mapping[str, str | None]], names: Mapping[str, Sequence[str]]) -> Cache:
    """The cache written anew with these labels of each post, by target; the features stay. It is one of one shard."""
    posts = []
    for post, given in zip(hdf5.read_posts(cache.folder), labels, strict=True):
        others = {target: label for target, label in given.items() if target != LABEL and label is not None}
        posts.append(replace(post, label=given.get(LABEL), targets=others))
    hdf5.write_index(cache.folder, {0: posts}, cache.fingerprint, names=names)
    return Cache(cache.folder)
