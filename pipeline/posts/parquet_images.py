"""Reads single images out of a column of a Parquet file, without reading more than their row group up to them.

pyarrow decodes what a stranger wrote, and a few bytes may stand for gigabytes: this is for processes with limits of
memory and time. A column is one of bytes, or a struct with `bytes` (and `path`), as Hugging Face's data sets have it.
"""

import errno
import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, repeat
from typing import Any, BinaryIO

from pipeline.common.files import MOST_BYTES
from pipeline.common.remote import identity_of, open_file

BYTES, PATH = "bytes", "path"  # the fields of a struct
MOST_GROUP = 4 << 30  # stated bytes of the image column in a row group
_ROWS = 4  # read at a time: images may have many MiB
_BUFFER = 1 << 20


def open_parquet(file: BinaryIO) -> Any:
    """A pyarrow ParquetFile that reads its pages one after the other, with memory that the process's limit counts."""
    import pyarrow
    from pyarrow import parquet

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    return parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)


def image_columns(schema: Any) -> dict[str, bool]:
    """The columns of an Arrow schema that may hold images, and whether each is a struct."""
    return {field.name: _is_struct(field.type) for field in schema if _is_bytes(field.type) or _is_struct(field.type)}


def present(table: Any, column: str) -> Iterator[bool]:
    """For each row whether it has bytes; nothing is read where the file's statistics say it of a whole row group."""
    leaf = _leaf(table, column)
    for number in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(number)
        statistics = _chunk(group, leaf).statistics
        nulls = statistics.null_count if statistics is not None and statistics.has_null_count else -1
        if nulls in (0, group.num_rows):
            yield from repeat(nulls == 0, group.num_rows)
            continue
        _require_bounded(group, leaf)
        for values in _batches(table, number, leaf):
            yield from values.is_valid().to_pylist()


def parquet_image_bytes(file: str, name: str, most: int = MOST_BYTES) -> bytes:
    """The bytes in a row (from 0) of a column; `name` is ROW/COLUMN. Raises OSError; MemoryError beyond the process's
    limit.
    """
    row, slash, column = name.partition("/")
    where = f"{file}::{name}"
    if not (slash and row.isascii() and row.isdigit() and len(row) < 16):
        raise OSError(errno.EINVAL, "must be FILE.parquet::ROW/COLUMN", where)
    try:
        value = _column(file, column).value(int(row))
        if value.is_valid and value.as_buffer().size > most:
            raise OSError(errno.EFBIG, f"over the limit of {most} bytes")
        data = value.as_py()
    except OSError as error:
        raise OSError(error.errno or errno.EINVAL, error.strerror or _one_line(error), where) from None
    except MemoryError:
        raise
    except ImportError:
        raise OSError(errno.EINVAL, "needs the package pyarrow; pip install -e '.[parquet]'", where) from None
    except Exception as error:  # pyarrow raises whatever a damaged file leads it to
        raise OSError(errno.EINVAL, f"not a readable Parquet file ({_one_line(error)})", where) from None
    if data is None:
        raise OSError(errno.ENOENT, "no image in this row", where)
    return bytes(data)


class _Column:
    """A column, and where in it the last value was: the next ones are read on from there."""

    def __init__(self, file: BinaryIO, column: str) -> None:
        self.file = file
        self._table = open_parquet(file)
        self._leaf = _leaf(self._table, column)
        groups = range(self._table.metadata.num_row_groups)
        self._ends = list(accumulate(self._table.metadata.row_group(number).num_rows for number in groups))
        self._group = -1
        self._values: Any = ()  # some values of that row group, from row `_first` on
        self._first = 0
        self._rest: Iterator[Any] = iter(())
        self._broken = ""  # why nothing behind these values can be read

    def value(self, row: int) -> Any:
        """The value of a row, an Arrow scalar."""
        group = bisect_right(self._ends, row)
        if group == len(self._ends):
            raise OSError(errno.EINVAL, f"the file has {self._ends[-1] if self._ends else 0} rows")
        if group != self._group or row < self._first:
            _require_bounded(self._table.metadata.row_group(group), self._leaf)
            self._group, self._values = group, ()
            self._first = self._ends[group - 1] if group else 0
            self._rest, self._broken = _batches(self._table, group, self._leaf), ""
        while row >= self._first + len(self._values):
            if self._broken:  # not to be read up to there once more for each row behind it
                raise OSError(errno.EINVAL, f"unreadable from row {self._first} of the file on: {self._broken}")
            self._first += len(self._values)
            self._values = ()  # before the next ones take memory, too
            try:
                self._values = next(self._rest)
            except StopIteration:
                self._broken = "the row group has fewer rows than the file says"
            except MemoryError:
                self._broken = "too large"
                raise
            except Exception as error:
                self._broken = _one_line(error)
        return self._values[row - self._first]


def _column(file: str, column: str) -> _Column:
    """A column that stays open until another one is asked for, or the file was replaced, or this process was forked."""
    global _last
    key = (file, column, os.getpid(), *identity_of(file))
    if _last is None or _last[0] != key:
        if _last is not None:
            _last[1].file.close()
            _last = None
        opened = open_file(file)
        try:
            _last = key, _Column(opened, column)
        except BaseException:
            opened.close()
            raise
    return _last[1]


_last: tuple[tuple[Any, ...], _Column] | None = None


def _leaf(table: Any, column: str) -> str:
    """The column of the file that has the bytes. Raises OSError if there is none."""
    columns = image_columns(table.schema_arrow)
    if column not in columns or table.schema_arrow.names.count(column) != 1:
        raise OSError(errno.EINVAL, "no such column of images in the file")
    return f"{column}.{BYTES}" if columns[column] else column


def _batches(table: Any, group: int, leaf: str) -> Iterator[Any]:
    """The values of a row group, a few at a time; of a struct that is null, null."""
    for batch in table.iter_batches(_ROWS, row_groups=[group], columns=[leaf], use_threads=False):
        values = batch.column(0)
        yield values.flatten()[0] if _is_struct(values.type) else values


def _chunk(group: Any, leaf: str) -> Any:
    chunks = (group.column(number) for number in range(group.num_columns))
    found = next((chunk for chunk in chunks if chunk.path_in_schema == leaf), None)
    if found is None:
        raise OSError(errno.EINVAL, "no such column of images in the file")
    return found


def _require_bounded(group: Any, leaf: str) -> None:
    stated = _chunk(group, leaf).total_uncompressed_size
    if not 0 <= stated <= MOST_GROUP:
        raise OSError(
            errno.EFBIG,
            f"a row group with {stated} bytes of images, over the limit of {MOST_GROUP}; divide it",
        )


def _is_bytes(type_: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_binary(type_) or pyarrow.types.is_large_binary(type_))


def _is_struct(type_: Any) -> bool:
    import pyarrow

    if not pyarrow.types.is_struct(type_):
        return False
    at = type_.get_field_index(BYTES)
    return at >= 0 and _is_bytes(type_.field(at).type)


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split())[:200] or type(error).__name__
