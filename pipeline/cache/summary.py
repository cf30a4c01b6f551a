"""Counts what a cache holds, for people and scripts."""

from typing import Any

import numpy as np

from pipeline.cache.hdf5_layout import FLAGS
from pipeline.cache.reader import Cache
from pipeline.encoders.fingerprint import has_mask_token
from pipeline.posts.manifest import SPLITS


def summary(cache: Cache) -> dict[str, Any]:
    """What the cache holds, for people and scripts."""
    lengths = cache.lengths[cache.ok]
    names = {**dict(enumerate(SPLITS)), -1: "none"}
    return {
        "posts": len(cache),
        "by_split": {
            name: {
                **{
                    label: int(np.sum(here & cache.ok & (cache.labels == i)))
                    for i, label in enumerate(cache.label_names)
                },
                "unlabelled": int(np.sum(here & cache.ok & (cache.labels < 0))),
                "failed": int(np.sum(here & ~cache.ok)),
            }
            for code, name in names.items()
            if (here := cache.splits == code).any() or code >= 0
        },
        "targets": {
            name: {label: int(np.sum(cache.ok & (target.codes == code))) for code, label in enumerate(target.names)}
            for name, target in cache.index.targets.items()
        },
        "failed": {record.id: record.reason for record in cache.records if record.reason},
        "flags": {name: int(np.sum(cache.flags >> bit & 1)) for bit, name in enumerate(FLAGS)},
        "share_truncated": float(np.mean(cache.flags & 1)),
        "tokens_per_text": {
            "mean": float(lengths.mean()),
            **{f"{share} %": int(np.percentile(lengths, share)) for share in (50, 90, 99)},
            "longest": int(lengths.max()),
        }
        if len(lengths)
        else {},
        "keep": cache.keep,
        "patches": list(cache.patches_shape),
        "image_pooled_width": cache.image_pooled_width,
        "text_width": cache.text_width,
        "text_pooled_width": cache.text_pooled_width,
        "mask_token": has_mask_token(cache.fingerprint),
        "shards": cache.shard_count,
        "bytes": cache.bytes_on_disk(),
        "bytes_per_post": cache.bytes_on_disk() // len(cache),
        "manifest_sha256": cache.manifest_sha256,
        "fingerprint": cache.fingerprint,
    }
