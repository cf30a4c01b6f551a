"""A loaded model in, a frozen encoder out, which turns pictures or texts into features and knows its fingerprint.

Frozen means evaluation mode, no gradients, inference mode. A fingerprint has everything that changes the meaning of the
features, and nothing else.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.common.errors import InputError
from pipeline.encoders.transform import picture_transform
from pipeline.encoders.views import VIEWS
from pipeline.posts import images

NO_IMAGES = "none"  # in place of an image encoder's name
COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ImageEncoder:
    """A frozen timm model with a patch grid (eq 1). `pixels_shape` is (3, S, S), with several views (V, 3, S, S)."""

    def __init__(self, model: Any, name: str, *, dtype: str, device: torch.device, views: int = 1) -> None:
        from timm.data import create_transform, resolve_data_config

        self.name = name
        self._model = _frozen(model, device)
        self._dtype = COMPUTE_DTYPES[dtype]
        self.device = device
        config = resolve_data_config({}, model=model)
        steps = create_transform(**config, normalize=False).transforms
        self.transform: Any = picture_transform(steps, name, views)
        self._mean = torch.tensor(config["mean"], device=device).view(3, 1, 1)
        self._std = torch.tensor(config["std"], device=device).view(3, 1, 1)
        self.pixels_shape: tuple[int, ...] = tuple(config["input_size"])
        if views > 1:
            self.pixels_shape = (views, *self.pixels_shape)
        self.patches_shape = self._probe_grid()
        self.fingerprint: dict[str, Any] = {
            "name": name,
            "weights_sha256": _weights_sha256(model),
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
            "compute_dtype": dtype,
        }

    def describe(self) -> str:
        patches, channels = self.patches_shape
        views = "".join(f"{count} views of " for count in self.pixels_shape[:-3])
        return f"{self.name} ({views}{patches} x {channels})"

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """An RGB picture, resized and cropped: uint8 of `pixels_shape`. Raises ImageProblem for one that is too long
        and thin for that.
        """
        return self.transform(picture)

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features of a batch of `pixels()`: patches (B, m, C), row-major, and their mean (B, C); both float32. Of
        several views (B, V, m, C) and (B, V, C). Eqs 1, 2.
        """
        pictures = pixels.reshape(-1, *pixels.shape[-3:])
        with torch.inference_mode(), _precision(self.device, self._dtype):
            # One memory layout, whatever the pixels came in: another one takes other kernels, which round differently.
            x = torch.from_numpy(pictures).to(self.device).float().contiguous(memory_format=torch.channels_last)
            x = x.div_(255).sub_(self._mean).div_(self._std)
            patches = _rows(self._model, self._model.forward_features(x)).float()  # eq 1
            pooled = patches.mean(dim=1)  # eq 2
        of = pixels.shape[:-3]
        return patches.cpu().numpy().reshape(*of, *patches.shape[1:]), pooled.cpu().numpy().reshape(*of, -1)

    def _probe_grid(self) -> tuple[int, int]:
        """(m, C), read off one blank picture."""
        try:
            patches, _ = self.encode(np.zeros((1, *self.pixels_shape[-3:]), np.uint8))
        except ValueError as error:
            raise InputError(f"--image-encoder {self.name}: {error}") from None
        return patches.shape[1], patches.shape[2]


class NoImages(ImageEncoder):
    """Stands where an image encoder would, for texts alone: no pixels in, features of no size out."""

    def __init__(self, device: torch.device) -> None:
        self.name = NO_IMAGES
        self.device = device
        self.transform = None
        self.pixels_shape = (3, 1, 1)
        self.patches_shape = (0, 0)
        self.fingerprint = {"name": NO_IMAGES}

    def describe(self) -> str:
        return "no image encoder"

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(pixels), 0, 0), np.float32), np.zeros((len(pixels), 0), np.float32)


class TextEncoder:
    """A frozen BERT-family model with its tokenizer (eqs 5, 17, 21).

    With `split_special_tokens` a literal [MASK] or [SEP] in a text is text, cut into word pieces like any other.
    Without, as in caches that were made before, it becomes the special token itself.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        *,
        max_tokens: int,
        dtype: str,
        device: torch.device,
        layers: int = 1,
        split_special_tokens: bool = True,
    ) -> None:
        self.name = name
        self._model = _frozen(model, device)
        self._tokenizer = tokenizer
        self._dtype = COMPUTE_DTYPES[dtype]
        self.device = device
        self.max_tokens = max_tokens
        self._layers = layers
        self._split = split_special_tokens
        self._special = [id_ for id_ in tokenizer.all_special_ids if id_ != tokenizer.unk_token_id]
        self.width: int = model.config.hidden_size
        self.vocabulary: int = model.config.vocab_size
        self.mask_id: int = -1 if tokenizer.mask_token_id is None else tokenizer.mask_token_id  # -1: it has none
        self.fingerprint: dict[str, Any] = {
            "name": name,
            "weights_sha256": _weights_sha256(model),
            "tokenizer_sha256": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "max_tokens": max_tokens,
            "layers": list(range(-layers, 0)),
            **({"special_tokens_in_text": "split"} if split_special_tokens else {}),
            "compute_dtype": dtype,
        }

    def describe(self) -> str:
        layers = f", mean of {self._layers} layers" if self._layers > 1 else ""
        return f"{self.name} ({self.width}{layers})"

    def in_precision(self, dtype: str) -> "TextEncoder":
        """The same encoder computing in `dtype`, where its features need not equal those of a cache."""
        other = copy(self)
        other._dtype = COMPUTE_DTYPES[dtype]
        return other

    @property
    def parameters(self) -> int:
        """How many parameters the frozen model has."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def word_embeddings(self) -> Tensor:
        """The input embeddings (V, D), frozen."""
        return self._model.get_input_embeddings().weight.detach()

    def tokenize(self, texts: Sequence[str]) -> tuple[list[np.ndarray], list[bool]]:
        """Word-piece ids with [CLS] and [SEP], int32, at most `max_tokens` a text, and whether each was cut short. Eq
        17.
        """
        encodings = self._encodings(texts)  # eq 17
        return [self._ids(encoding) for encoding in encodings], [bool(row.overflowing) for row in encodings]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Which characters [start, end) of the text each id of `tokenize` stands for; [CLS] and [SEP]: (0, 0)."""
        (encoding,) = self._encodings([text])
        return list(encoding.offsets)

    def _encodings(self, texts: Sequence[str]) -> Sequence[Any]:
        return self._tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, split_special_tokens=self._split
        ).encodings

    def _ids(self, encoding: Any) -> np.ndarray:
        ids = np.asarray(encoding.ids, np.int32)
        if self._split and self._tokenizer.unk_token_id is not None:
            # A SentencePiece vocabulary has <s> and <mask> among its pieces and finds them in a text all the same.
            written = np.asarray(encoding.special_tokens_mask) == 0
            ids[written & np.isin(ids, self._special)] = self._tokenizer.unk_token_id
        return ids

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """last_hidden_state, or the mean of the last hidden states, of ids (B, n) under mask (B, n), True = real token:
        (B, n, D) float32 on the device. Eqs 5, 21.
        """
        with torch.inference_mode(), _precision(self.device, self._dtype):
            ids = input_ids.to(self.device, torch.int64)
            real = mask.to(self.device, torch.int64)
            output = self._model(input_ids=ids, attention_mask=real, output_hidden_states=self._layers > 1)
            states = output.last_hidden_state.float()  # eqs 5, 21
            if self._layers > 1:
                states = torch.stack([state.float() for state in output.hidden_states[-self._layers :]]).mean(dim=0)
        return states.clone()  # outside inference mode, so that what follows may learn from it


def _frozen(model: Any, device: torch.device) -> Any:
    return model.eval().requires_grad_(False).to(device)


@contextmanager
def _precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


def _rows(model: nn.Module, features: Tensor) -> Tensor:
    """timm's forward_features as (B, m, C), row-major, without prefix tokens (class or register tokens)."""
    if features.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :]
    raise ValueError(f"gives no patch grid (its features have shape {tuple(features.shape)})")


def _weights_sha256(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of all tensors that reach the features (a text pooler does not)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("pooler."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
