"""Files of tensors (safetensors): written complete or absent, and read only if they hold what a model expects.

Names, dtypes and shapes are compared in the file's header before any tensor takes memory.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.common.files import complete_or_absent, open_regular
from pipeline.common.machine import total_memory

Expected = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # dtype and shape by name
_MOST_HEADER = 8 << 20  # bytes; a model of 256 layers has half a MiB
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "I64": torch.int64}
_DTYPES |= {"I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors, complete or absent. Raises OSError naming the path, as for every file, when the disk is full."""
    with complete_or_absent(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata)
        except (SafetensorError, OSError) as error:
            # The library's own error has the kernel's number in its text alone.
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        temporary.chmod(mode)  # safetensors leaves its files to their owner alone; a run folder may be shared


def load_tensors(path: Path, expected: Expected) -> dict[str, Tensor]:
    """The tensors of a file that holds exactly the expected ones, all finite. Raises InputError."""
    with _opened(path) as file:
        names = set(file.keys())
        if missing := expected.keys() - names:
            raise _damaged(path, f"lacks {len(missing)} tensors, {min(missing)} among them")
        if unknown := names - expected.keys():
            raise _damaged(path, f"holds {len(unknown)} tensors too many, {min(unknown)[:100]} among them")
        needed = 0
        for name, (dtype, shape) in expected.items():
            header = file.get_slice(name)
            its_dtype, its_shape = header.get_dtype(), tuple(header.get_shape())
            if _DTYPES.get(its_dtype) != dtype:
                raise _damaged(path, f"{name} is {its_dtype}, not {dtype}".replace("torch.", ""))
            if its_shape != tuple(shape):
                raise _damaged(path, f"{name} is {its_shape}, and the model's {tuple(shape)}")
            needed += dtype.itemsize * torch.Size(shape).numel()
        require_memory(2 * needed, str(path))  # beside the model that they are copied into
        tensors = {name: file.get_tensor(name) for name in expected}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise _damaged(path, f"{name} holds values that are not finite")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The header's own entries. Raises InputError."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def tensor_names(path: Path) -> set[str]:
    """The names of a file's tensors. Raises InputError."""
    with _opened(path) as file:
        return set(file.keys())


def require_memory(needed: int, what: str) -> None:
    """Raises InputError if `needed` bytes are more than this machine has."""
    memory = total_memory()
    if needed > memory:
        raise InputError(f"{what}: needs {needed / 2**30:.1f} GiB of memory, and this machine has {memory / 2**30:.1f}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An ordinary file with a header of bounded size, open in the library."""
    try:
        with open_regular(path) as raw:
            header = int.from_bytes(raw.read(8), "little")
        if header > _MOST_HEADER:
            raise _damaged(path, f"a header of {header} bytes, over the limit of {_MOST_HEADER}")
        file: Any = safe_open(path, "pt")
    except (OSError, SafetensorError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _damaged(path, " ".join(reason.split())[:200]) from None
    with file:
        yield file


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: missing or damaged ({reason}); train again")
