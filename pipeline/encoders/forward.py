"""The arithmetic of the frozen encoders as modules of plain tensors, which PyTorch runs and graphs are made from."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.common.errors import option
from pipeline.encoders.fingerprint import SIGLIP
from pipeline.encoders.text_vector import CLS, MEAN, MODEL
from pipeline.encoders.towers import own_vector


class ImageForward(nn.Module):
    """Pixels (B, 3, S, S) uint8 to patches (B, m, C), row-major, and pooled (B, P), both float32. Eqs 1, 2.

    model: a frozen timm model; mean, std (3,): of its normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: Tensor, std: Tensor, pooled: str) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled
        self.register_buffer("mean", mean.view(3, 1, 1))
        self.register_buffer("std", std.view(3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        # One memory layout, whatever the pixels came in: another one takes other kernels, which round differently.
        x = pixels.float().contiguous(memory_format=torch.channels_last)
        x = x.div_(255).sub_(self.mean).div_(self.std)
        features = self.model.forward_features(x)
        patches = _rows(self.model, features).float()  # eq 1
        pooled = patches.mean(dim=1) if self.pooled == MEAN else self._own_vector(features).float()  # eq 2
        return patches, pooled

    def _own_vector(self, features: Any) -> Tensor:
        """The class token, or what the head makes of the features, (B, P). Raises ValueError where there is none."""
        if self.pooled == CLS:
            if getattr(self.model, "cls_token", None) is None or features.ndim != 3:
                raise ValueError(f"has no class token; take {option('image_pooled', MEAN)} or {MODEL}")
            token: Tensor = features[:, 0]
            return token
        vector: Tensor = self.model.forward_head(features)
        if vector.ndim != 2:
            raise ValueError(f"gives no one vector of an image; take {option('image_pooled', MEAN)}")
        return vector


class TextForward(nn.Module):
    """Ids (B, n) int64 under a mask (B, n), True = real token, to states (B, n, D) float32: the last hidden state, or
    the mean of the last `layers`. With `own` also what the model's own pooling gives, (B, D_p). Eqs 5, 21.

    padding: the id that SigLIP's texts are padded with, to all its positions.
    """

    def __init__(self, model: Any, family: str, *, layers: int, own: bool, padding: int) -> None:
        super().__init__()
        self.model, self.family, self.layers, self.own, self.padding = model, family, layers, own, padding

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        output = self._output(ids, mask)
        states = output.last_hidden_state[:, : mask.shape[1]].float()
        if self.layers > 1:
            states = torch.stack([state.float() for state in output.hidden_states[-self.layers :]]).mean(dim=0)
        if not self.own:
            return (states,)
        vector = own_vector(self.family, output)
        assert vector is not None  # asked for when it was loaded
        return states, vector.float()

    def _output(self, ids: Tensor, mask: Tensor) -> Any:
        if self.family != SIGLIP:
            return self.model(input_ids=ids, attention_mask=mask.to(torch.int64), output_hidden_states=self.layers > 1)
        more = self.model.config.max_position_embeddings - ids.shape[1]
        whole = nn.functional.pad(ids.where(mask, self.padding), (0, more), value=self.padding)
        return self.model(input_ids=whole)  # without a mask: it was trained to see the padding


def _rows(model: nn.Module, features: Any) -> Tensor:
    """timm's forward_features as (B, m, C), row-major, without prefix tokens (class or register tokens)."""
    if not isinstance(features, Tensor):
        raise ValueError("gives several outputs, not one grid of patches; take another model")
    if features.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :]
    raise ValueError(f"gives no patch grid (its features have shape {tuple(features.shape)})")
