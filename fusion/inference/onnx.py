"""Exports a model, from features to logits, as ONNX, if onnxruntime gives the same numbers."""

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fusion.data.batches import Batch, mean_of_tokens
from fusion.models.base import Dimensions, Model
from pipeline.common.errors import InputError
from pipeline.common.files import complete_or_absent
from pipeline.encoders.onnx_runtime import onnx_runtime

INPUTS = ("patches", "pooled", "tokens", "text_mask", "text_pooled")
TOLERANCE = 1e-4
# Posts, patches and tokens of the batches that are compared: other sizes than those that the graph is made from.
_CHECKED = ((1, 49, 2), (1, 49, 37), (3, 196, 11), (7, 49, 128))


class _Logits(nn.Module):
    """Pass 1 with plain tensors in place of a batch; both modalities are there. The softmax of what it gives are the
    run's probabilities of one view.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, patches: Tensor, pooled: Tensor, tokens: Tensor, text_mask: Tensor, text_pooled: Tensor | None = None
    ) -> Tensor:
        everyone = torch.ones(patches.shape[0], dtype=torch.bool)
        nothing = torch.zeros(patches.shape[0], dtype=torch.int64)
        logits: Tensor = self.model(
            Batch(
                rows=np.zeros(0),
                patches=patches,
                pooled=pooled,
                tokens=tokens,
                text_pooled=mean_of_tokens(tokens, text_mask) if text_pooled is None else text_pooled,
                input_ids=text_mask.long(),
                text_mask=text_mask,
                labels=nothing,
                modality_labels=nothing[:, None].expand(-1, 2),
                has_text=everyone,
                has_image=everyone,
                num_maskable=np.zeros(0),
            )
        )
        return logits / self.model.temperature


def write_onnx(model: Model, path: Path, labels: Sequence[str], *, own_vector: bool = False) -> float:
    """Write the model, float32, on the CPU. Returns the largest difference of a logit that was seen.

    Inputs: patches (B, m, C), pooled (B, P), tokens (B, n, D) float32 and text_mask (B, n) bool, True = real token; B,
    m and n are free, m not where it is built into the weights. With `own_vector`, where the texts' vectors are not the
    means of their tokens, also text_pooled (B, D_p). Output: logits (B, classes). Raises InputError, and leaves no
    file, if a logit differs by TOLERANCE, or if the exporter can't follow the model.
    """
    logits, sizes = _Logits(model).eval(), model.dimensions
    fixed = sizes.patches if model.fixed_grid else None
    posts, grid, length = (torch.export.Dim(name) for name in ("posts", "grid", "length"))
    text = {0: posts, 1: length}
    patches = {0: posts} if fixed else {0: posts, 1: grid}
    free = {"patches": patches, "pooled": {0: posts}, "tokens": text, "text_mask": text, "text_pooled": {0: posts}}
    names = INPUTS if own_vector else INPUTS[:-1]

    def features(count: int, m: int, longest: int) -> tuple[Tensor, ...]:
        return _features(sizes, count, fixed or m, longest)[: len(names)]

    # Without gradients: with them attention goes by the training's own kernels, which no graph can hold.
    with complete_or_absent(path) as temporary, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                logits,
                features(2, 3, 5),
                str(temporary),
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes={name: free[name] for name in names},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: not written; the exporter can't follow this model ({reason})") from error
        _describe(temporary, labels)
        worst = max(_difference(logits, temporary, features(*checked)) for checked in _CHECKED)
        if not worst < TOLERANCE:
            raise InputError(f"{path}: not written; onnxruntime's logits differ by {worst:.2g}, over {TOLERANCE:g}")
    return worst


def _describe(path: Path, labels: Sequence[str]) -> None:
    """Write the names of the classes, in the order of the logits, into the file as its metadata `labels`, JSON."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"labels": json.dumps(list(labels), ensure_ascii=False)})
    onnx.save(model, path)


def _features(sizes: Dimensions, posts: int, grid: int, longest: int) -> tuple[Tensor, ...]:
    """Random features; all texts but the first are shorter than the longest."""
    generator = torch.Generator().manual_seed(posts)
    patches = torch.randn(posts, grid, sizes.channels, generator=generator)
    lengths = torch.randint(2, longest + 1, (posts,), generator=generator)
    lengths[0] = longest
    tokens = torch.randn(posts, longest, sizes.text_width, generator=generator)
    vectors = torch.randn(posts, sizes.text_vector_width, generator=generator)
    equal = sizes.image_vector_width == sizes.channels
    pooled = patches.mean(dim=1) if equal else torch.randn(posts, sizes.image_vector_width, generator=generator)
    return patches, pooled, tokens, torch.arange(longest) < lengths[:, None], vectors


def _difference(logits: nn.Module, path: Path, features: tuple[Tensor, ...]) -> float:
    session = onnx_runtime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    input_names = {one.name for one in session.get_inputs()}  # a run of one modality has the other's inputs not
    fed = {name: values.numpy() for name, values in zip(INPUTS, features, strict=False) if name in input_names}
    (computed,) = session.run(["logits"], fed)
    return float(np.abs(computed - logits(*features).numpy()).max())
