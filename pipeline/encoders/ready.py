"""Encoders that start at once: graph, tokenizer and facts, kept in the user's cache folder.

To predict one post, importing timm and transformers and loading and hashing weights would take most of the time. The
fingerprint says all that decides a feature, so whoever has a fingerprint can use what was kept under it. Each start
compares the features of a few posts with those that PyTorch gave.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save

from pipeline.common.files import write_bytes
from pipeline.encoders.fingerprint import NO_IMAGES, compared
from pipeline.encoders.graph import Graph, folder, kept_file, largest_difference
from pipeline.encoders.image import ImageEncoder, NoImages
from pipeline.encoders.text import TextEncoder
from pipeline.encoders.text_form import TextForm
from pipeline.encoders.transform import CenterCrop, PictureTransform, Resize
from pipeline.encoders.word_pieces import WordPieces

_FACTS = "facts"


class ReadyImageEncoder(ImageEncoder):
    """An image encoder of a graph and facts, without PyTorch's model."""

    def __init__(self, facts: Mapping[str, Any], graph: Graph) -> None:
        self._graph = graph
        self.device = torch.device("cpu")
        self.name, self.licence, self.pooled = facts["name"], facts["licence"], facts["pooled"]
        self.pooled_width, self.fingerprint = facts["pooled_width"], facts["fingerprint"]
        self.pixels_shape = tuple(facts["pixels_shape"])
        rows, channels = facts["patches_shape"]
        self.patches_shape = rows, channels
        resize, crop = facts["resize"], facts["crop"]
        self.transform = PictureTransform(
            Resize(tuple(resize["size"]), resize["longest"], resize["filter"]),
            CenterCrop(crop["height"], crop["width"], tuple(crop["fill"])),
            facts["views"],
        )


class ReadyTextEncoder(TextEncoder):
    """A text encoder of a graph, a tokenizer and facts, without PyTorch's model."""

    def __init__(self, facts: Mapping[str, Any], graph: Graph) -> None:
        self._graph = graph
        self.device = torch.device("cpu")
        self.name, self.licence, self.pooled = facts["name"], facts["licence"], facts["pooled"]
        self.pooled_width, self.fingerprint = facts["pooled_width"], facts["fingerprint"]
        self.width, self.vocabulary, self.max_tokens = facts["width"], facts["vocabulary"], facts["max_tokens"]
        self.layers, pieces = facts["layers"], facts["pieces"]
        self.pieces = WordPieces(**{**pieces, "special": tuple(pieces["special"])})
        self.mask_id, self.form = self.pieces.mask, TextForm(**facts["form"])


def ready_encoders(fingerprint: Mapping[str, Any], tolerance: float) -> tuple[ImageEncoder, TextEncoder] | None:
    """The encoders of a fingerprint; None unless both were kept and still give PyTorch's features to `tolerance`."""
    image: ImageEncoder | None = NoImages(torch.device("cpu"))
    if fingerprint["image"]["name"] != NO_IMAGES:
        image = _ready("image", fingerprint["image"], tolerance)
    text = _ready("text", fingerprint["text"], tolerance) if image else None
    return (image, text) if image and text else None


def _ready(kind: str, fingerprint: Mapping[str, Any], tolerance: float) -> Any | None:
    try:
        path = _file(kind, fingerprint)
        with safe_open(path, framework="np") as kept:
            facts = json.loads(kept.metadata()[_FACTS])
            expected = [kept.get_tensor(name) for name in sorted(kept.keys())]
        graph = Graph(folder() / Path(facts["graph"]).name)
        encoder = ReadyImageEncoder(facts, graph) if kind == "image" else ReadyTextEncoder(facts, graph)
        difference = largest_difference(expected, encoder.probed())
    except Exception:  # nothing is there, or what is there is damaged: the encoder is then loaded as ever
        return None
    return encoder if difference <= tolerance else None


def keep(encoder: ImageEncoder | TextEncoder, graph: Path, expected: tuple[np.ndarray, ...]) -> None:
    """Keep an encoder for `ready_encoder`. expected: PyTorch's features of the posts that `probed` is of."""
    path = _file(encoder.kind, encoder.fingerprint)
    if path.exists():
        return
    facts = {**_facts(encoder), "graph": graph.name}
    arrays = {str(number): np.ascontiguousarray(values) for number, values in enumerate(expected)}
    write_bytes(path, save(arrays, {_FACTS: json.dumps(facts)}))


def _facts(encoder: ImageEncoder | TextEncoder) -> dict[str, Any]:
    names = ("name", "licence", "pooled", "pooled_width", "fingerprint")
    facts = {name: getattr(encoder, name) for name in names}
    if isinstance(encoder, TextEncoder):
        more = {name: getattr(encoder, name) for name in ("width", "vocabulary", "max_tokens", "layers")}
        return {**facts, **more, "pieces": asdict(encoder.pieces), "form": asdict(encoder.form)}
    transform = encoder.transform
    return {
        **facts,
        "pixels_shape": encoder.pixels_shape,
        "patches_shape": encoder.patches_shape,
        "resize": asdict(transform.resize),
        "crop": asdict(transform.crop),
        "views": transform.views,
    }


def _file(kind: str, fingerprint: Mapping[str, Any]) -> Path:
    return kept_file(kind, compared(fingerprint), ".safetensors")
