"""The frozen image encoder: pictures to patches and a pooled vector, and the fingerprint of both (eqs 1-3)."""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.common.errors import InputError, option
from pipeline.encoders.fingerprint import NO_IMAGES
from pipeline.encoders.forward import ImageForward
from pipeline.encoders.frozen import COMPUTE_DTYPES, compute_precision, freeze, weights_sha256
from pipeline.encoders.graph import Computed
from pipeline.encoders.pairs import UNKNOWN, Crop
from pipeline.encoders.text_vector import MEAN
from pipeline.encoders.timm_models import no_such_size
from pipeline.encoders.transform import picture_transform
from pipeline.encoders.views import VIEWS
from pipeline.posts import images


class ImageEncoder(Computed):
    """A frozen timm model with a patch grid (eq 1). `pixels_shape` is (3, S, S), with several views (V, 3, S, S).

    pooled: what an image's one vector is: the `mean` of its patches (eq 2), the class token (`cls`), or what the
    `model`'s own head makes of them, with CLIP's projection or SigLIP's attention pool, without a classifier. Its width
    is `pooled_width`. `size` and `crop` go before the model's own.
    """

    kind = "image"

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
        mean, std = (torch.tensor(config[name], device=device) for name in ("mean", "std"))
        self._forward = ImageForward(self._model, mean, std, pooled).eval()
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

    @property
    def graph_facts(self) -> dict[str, Any]:
        """What decides the encoder's arithmetic."""
        transform = self.fingerprint["transform"]
        facts = {name: self.fingerprint[name] for name in ("name", "weights_sha256")}
        return {**facts, "pooled": self.pooled, **{name: transform[name] for name in ("size", "mean", "std")}}

    def exported(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The module of the encoder's arithmetic, and an example of its input."""
        return self._forward, {"pixels": torch.zeros(2, *self.pixels_shape[-3:], dtype=torch.uint8)}

    def probed(self) -> tuple[np.ndarray, ...]:
        """The features of a few pictures of noise, always the same ones."""
        shape = (3, *self.pixels_shape[-3:])
        return self.encode(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))

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
        patches, pooled = self._graph(pictures) if self._graph else self._by_torch(pictures)
        of = pixels.shape[:-3]
        return patches.reshape(*of, *patches.shape[1:]), pooled.reshape(*of, -1)

    def _by_torch(self, pictures: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode(), compute_precision(self.device, self._dtype):
            features = self._forward(torch.from_numpy(pictures).to(self.device))
        return tuple(values.cpu().numpy() for values in features)

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

    @property
    def runtime(self) -> str:
        return NO_IMAGES

    def describe(self) -> str:
        return "no image encoder"

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(pixels), 0, 0), np.float32), np.zeros((len(pixels), 0), np.float32)
