"""Datasets and attributes of an HDF5 file as plain values, each refused unless it has the form that a cache's files
have: a plain one of the file itself, of the type that we write, and inside the file.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5s, h5t

from pipeline.cache.check_json import Wrong, bounded_text
from pipeline.cache.hdf5_layout import TEXT


def require_members(group: h5g.GroupID, path: str, expected: Iterable[str]) -> None:
    """Refuse a group that has other members than these, or one that is no plain object of this file."""
    wanted = set(expected)
    count = group.get_num_objs()
    names = {name.decode("utf-8", "backslashreplace") for name in group} if count <= 2 * len(wanted) else None
    if names is None or names - wanted:
        raise Wrong(f"{path} has members that a cache has not")
    if wanted - names:
        raise Wrong(f"{path} lacks {', '.join(sorted(wanted - names))}")
    for name in wanted:
        if group.links.get_info(name.encode()).type != h5l.TYPE_HARD:
            raise Wrong(f"{path.rstrip('/')}/{name} is a link")


def column_group(file: h5py.File, group: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a group, all of one length: texts as lists, the others as arrays."""
    require_members(h5g.open(file.id, group.encode()), f"/{group}", types)
    datasets = {name: plain_dataset(file, f"/{group}/{name}", dtype) for name, dtype in types.items()}
    first = next(iter(types))
    shape = datasets[first].shape
    if len(shape) != 1 or not shape[0]:
        raise Wrong(f"/{group}/{first} has the shape {shape}")
    for name, dataset in datasets.items():
        require_shape(dataset, f"/{group}/{name}", shape)
    return {name: read_values(dataset) for name, dataset in datasets.items()}


def plain_dataset(file: h5py.File, path: str, dtype: np.dtype) -> h5d.DatasetID:
    """A dataset that lies in one piece inside this file, of this type."""
    dataset = h5d.open(file.id, path.encode())
    how = dataset.get_create_plist()
    if how.get_layout() != h5d.CONTIGUOUS or how.get_nfilters() or how.get_external_count():
        raise Wrong(f"{path} is not contiguous, uncompressed and in this file")
    _require_form(dataset, path, dtype)
    size = math.prod(dataset.shape) * dataset.get_type().get_size()
    if size and ((start := dataset.get_offset()) is None or start + size > file.id.get_filesize()):
        raise Wrong(f"{path} has {size} bytes, which do not all lie in the file")
    return dataset


def virtual_dataset(file: h5py.File, path: str, dtype: np.dtype) -> tuple[list[int], list[tuple[str, int, int]]]:
    """The shape of a virtual dataset, and its sources: the file, and its first and last row target."""
    dataset = h5d.open(file.id, path.encode())
    how = dataset.get_create_plist()
    if how.get_layout() != h5d.VIRTUAL:
        raise Wrong(f"{path} is not virtual")
    sources = []
    for number in range(how.get_virtual_count()):  # before asking for the shape, for which HDF5 may open them
        target, source = how.get_virtual_vspace(number), how.get_virtual_srcspace(number)
        for space in (target, source):
            if space.get_simple_extent_dims() != space.get_simple_extent_dims(True):
                raise Wrong(f"{path} is virtual without an end")
        first, last = target.get_select_bounds()
        names = how.get_virtual_filename(number), how.get_virtual_dsetname(number)
        if names[1] != path:
            raise Wrong(f"{path} is virtual over another dataset")
        sources.append((names[0], int(first[0]), int(last[0])))
    _require_form(dataset, path, dtype)
    return list(dataset.shape), sources


def _require_form(dataset: h5d.DatasetID, path: str, dtype: np.dtype) -> None:
    if not dataset.get_type().equal(h5t.py_create(dtype, logical=True)):
        raise Wrong(f"{path} has another type than a cache has")
    space = dataset.get_space()
    if space.get_simple_extent_type() != h5s.SIMPLE or space.get_simple_extent_dims(True) != dataset.shape:
        raise Wrong(f"{path} has no fixed shape")


def require_shape(dataset: h5d.DatasetID, path: str, shape: tuple[int, ...]) -> None:
    if dataset.shape != shape:
        raise Wrong(f"{path} has the shape {dataset.shape}, not {shape}")


def read_values(dataset: h5d.DatasetID) -> Any:
    """Texts as a list of str, else an array."""
    if dataset.dtype == TEXT:
        return h5py.Dataset(dataset).asstr("utf-8", "strict")[:].tolist()
    values = np.empty(dataset.shape, dataset.dtype)
    if values.size:
        dataset.read(h5s.ALL, h5s.ALL, values)
    return values


def read_attribute(file: h5py.File, name: str, shape: tuple[int, ...] = (), dtype: np.dtype = TEXT) -> Any:
    """An attribute of the file, of this type and shape; texts are valid UTF-8."""
    attribute = h5a.open(file.id, name.encode())
    if not attribute.get_type().equal(h5t.py_create(dtype, logical=True)) or attribute.shape != shape:
        raise Wrong(f"the attribute {name} has another form than a cache has")
    value = file.attrs[name]
    if dtype == TEXT:
        for text in [value] if shape == () else value:
            bounded_text(text, f"the attribute {name}")
    return value


def attribute_if_there(file: h5py.File, name: str, dtype: np.dtype) -> Any:
    try:
        return read_attribute(file, name, (), dtype) if h5a.exists(file.id, name.encode()) else None
    except Wrong:
        return None


def listed(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as lists, of bytes as ASCII: what JSON can hold."""
    return {
        name: [value.decode("ascii") for value in values.tolist()]
        if isinstance(values, np.ndarray) and values.dtype.kind == "S"
        else values.tolist()
        if isinstance(values, np.ndarray)
        else values
        for name, values in columns.items()
    }
