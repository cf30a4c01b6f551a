"""The frozen image encoder: pictures to patches and a pooled vector, and the fingerprint of both (eqs 1-3)."""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.common.errors import InputError, option
from pipeline.encoders.fingerprint import NO_IMAGES
from pipeline.encoders.frozen import COMPUTE_DTYPES, compute_precision, freeze, weights_sha256
from pipeline.encoders.pairs import UNKNOWN, Crop
from pipeline.encoders.text_vector import CLS, MEAN, MODEL
from pipeline.encoders.timm_models import no_such_size
from pipeline.encoders.transform import picture_transform
from pipeline.encoders.views import VIEWS
from pipeline.posts import images


class ImageEncoder:
    """A frozen timm model with a patch grid (eq 1). `pixels_shape` is (3, S, S), with several views (V, 3, S, S).

    pooled: what an image's one vector is: the `mean` of its patches (eq 2), the class token (`cls`), or what the
    `model`'s own head makes of them, with CLIP's projection or SigLIP's attention pool, without a classifier. Its width
    is `pooled_width`. `size` and `crop` go before the model's own.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        *,
        dtype: str,
        device: torch.device,
        views: int = 1,
        pooled: str = MEAN,
        size: int | None = None,
        crop: Crop | None = None,
        licence: str = UNKNOWN,
    ) -> None:
        from timm.data import create_transform, resolve_data_config

        self.name, self.licence = name, licence
        self._model = freeze(model, device)
        self._dtype = COMPUTE_DTYPES[dtype]
        self.device = device
        self.pooled, self._size = pooled, size
        given = {"img_size": size} | ({"crop_pct": crop.pct, "crop_mode": crop.mode} if crop else {})
        config = resolve_data_config(given, model=model)
        steps = create_transform(**config, normalize=False).transforms
        self.transform: Any = picture_transform(steps, name, views)
        self._mean = torch.tensor(config["mean"], device=device).view(3, 1, 1)
        self._std = torch.tensor(config["std"], device=device).view(3, 1, 1)
        self.pixels_shape: tuple[int, ...] = tuple(config["input_size"])
        if views > 1:
            self.pixels_shape = (views, *self.pixels_shape)
        self.patches_shape, self.pooled_width = self._probe_sizes()
        self.fingerprint: dict[str, Any] = {
            "name": name,
            "weights_sha256": weights_sha256(model),
            "transform": {
                "size": config["input_size"][1],
                "crop_pct": config["crop_pct"],
                "crop_mode": config["crop_mode"],
                "interpolation": config["interpolation"],
                "mean": list(config["mean"]),
                "std": list(config["std"]),
                "decoder": images.DECODER,
            },
            "views": list(VIEWS[:views]),
            **({} if pooled == MEAN else {"pooled": pooled}),
            "compute_dtype": dtype,
            "licence": licence,
        }

    def describe(self) -> str:
        patches, channels = self.patches_shape
        views = "".join(f"{count} views of " for count in self.pixels_shape[:-3])
        pooled = "" if self.pooled == MEAN else f", pooled {self.pooled_width}"
        return f"{self.name} ({views}{patches} x {channels}{pooled})"

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """An RGB picture, resized and cropped: uint8 of `pixels_shape`. Raises ImageProblem for one that is too long
        and thin for that.
        """
        return self.transform(picture)

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features of a batch of `pixels()`: patches (B, m, C), row-major, and pooled (B, P); both float32. Of several
        views (B, V, m, C) and (B, V, P). Eqs 1, 2.
        """
        pictures = pixels.reshape(-1, *pixels.shape[-3:])
        with torch.inference_mode(), compute_precision(self.device, self._dtype):
            # One memory layout, whatever the pixels came in: another one takes other kernels, which round differently.
            x = torch.from_numpy(pictures).to(self.device).float().contiguous(memory_format=torch.channels_last)
            x = x.div_(255).sub_(self._mean).div_(self._std)
            features = self._model.forward_features(x)
            patches = _rows(self._model, features).float()  # eq 1
            pooled = patches.mean(dim=1) if self.pooled == MEAN else self._own_vector(features).float()  # eq 2
        of = pixels.shape[:-3]
        return patches.cpu().numpy().reshape(*of, *patches.shape[1:]), pooled.cpu().numpy().reshape(*of, -1)

    def _own_vector(self, features: Any) -> Tensor:
        """The class token, or what the head makes of the features, (B, P). Raises ValueError where there is none."""
        if self.pooled == CLS:
            if getattr(self._model, "cls_token", None) is None or features.ndim != 3:
                raise ValueError(f"has no class token; take {option('image_pooled', MEAN)} or {MODEL}")
            token: Tensor = features[:, 0]
            return token
        vector: Tensor = self._model.forward_head(features)
        if vector.ndim != 2:
            raise ValueError(f"gives no one vector of an image; take {option('image_pooled', MEAN)}")
        return vector

    def _probe_sizes(self) -> tuple[tuple[int, int], int]:
        """(m, C) and P, read off one blank picture. Raises InputError for a model that gives no square grid of patches,
        or not the pooled vector that was asked for.
        """
        _, height, width = self.pixels_shape[-3:]
        if height != width:
            raise InputError(
                f"{option('image_encoder', self.name)}: takes pictures of {height}x{width}, which are not square; "
                "take another model"
            )
        try:
            patches, pooled = self.encode(np.zeros((1, *self.pixels_shape[-3:]), np.uint8))
        except ValueError as error:
            raise InputError(f"{option('image_encoder', self.name)}: {error}") from None
        except (AssertionError, RuntimeError) as error:
            if self._size is None:
                raise
            raise no_such_size(self.name, self._size, " ".join(str(error).split())[:200]) from None
        count = patches.shape[1]
        if math.isqrt(count) ** 2 != count or count < 4:
            raise InputError(
                f"{option('image_encoder', self.name)}: gives {count} rows for a square picture, which are no "
                "square grid of patches (there may be a class token among them, or no grid at all); take another model"
            )
        return (count, patches.shape[2]), pooled.shape[1]


class NoImages(ImageEncoder):
    """Null image encoder for text-only caches: yields empty features."""

    def __init__(self, device: torch.device) -> None:
        self.name, self.licence = NO_IMAGES, ""
        self.device = device
        self.transform = None
        self.pixels_shape = (3, 1, 1)
        self.patches_shape, self.pooled, self.pooled_width = (0, 0), MEAN, 0
        self.fingerprint = {"name": NO_IMAGES}

    def describe(self) -> str:
        return "no image encoder"

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(pixels), 0, 0), np.float32), np.zeros((len(pixels), 0), np.float32)


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
