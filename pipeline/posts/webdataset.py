"""Reads tars as WebDataset has them: a sample is all members of one key, the name up to the first dot of its last part.

`jpg`, `jpeg`, `png`, `webp`, `gif`, `bmp`, `tif` or `tiff` is the image, `txt` the text, `cls` the label, and the
fields of `json` are columns as those of a table are. The key is the id. Members of other kinds are not looked at, and
images stay in the tars.
"""

import errno
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.common.errors import InputError, option
from pipeline.common.remote import is_url, open_file
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions
from pipeline.posts.image_files import Member
from pipeline.posts.labels import MODALITY_TARGETS
from pipeline.posts.shown import shown
from pipeline.posts.source_set import splits_by_name
from pipeline.posts.table import posts_of
from pipeline.posts.table_columns import may_be_used, with_split
from pipeline.posts.table_rows import FILE, MOST_COLUMNS, MOST_ROWS, MOST_TEXT, Row, Table, Unusable
from pipeline.posts.tar_files import IMAGE_ENDINGS, DamagedTar, TarMember, members

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_KEY, _IMAGE, _TEXT, _LABEL, _JSON = "__key__", "__image__", "txt", "cls", "json"
_OWN = ("targets", "problem", *MODALITY_TARGETS)  # fields of a manifest, which json may have, too
_MOST_JSON = 1 << 20  # bytes of a member


def reads(source: Path) -> bool:
    """Whether it is a tar by its name, or a folder that holds tars."""
    return source.name.lower().endswith((".tar", *_PACKED)) if source.is_file() else bool(_tars_in(source))


def reads_files(files: Sequence[str]) -> bool:
    """Whether several files, or remote ones, are tars by their names."""
    return all(file.lower().endswith((".tar", *_PACKED)) for file in files)


def read(source: Path, options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the posts of a tar, or of all tars of a folder. Raises InputError as `read_files` does."""
    files = [str(source)] if source.is_file() else _tars_in(source)
    if not files:
        raise InputError(f"{source}: no tar, and no folder with tars")
    return read_files(files, options)


def read_files(files: Sequence[str], options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the posts of tars, paths or URLs, as one data set. `options` may give the fields of json that are columns,
    further targets, and the encoding of the texts. Where no field of json is the split, the names of the tars may be.

    Raises InputError for a tar that is damaged or compressed, and where no sample is a usable post.
    """
    options.require_only("webdataset", "encoding", "columns", "targets")
    if "image" in options.columns:
        raise InputError(f"{option('columns', 'image=..')}: the image is a member of the tar; leave it out")
    found = _Found(options)
    splits = splits_by_name(files)
    for file, split in zip(files, splits, strict=True):
        if not file.lower().endswith(".tar"):
            raise InputError(f"{file}: no name of a plain tar; unpack a compressed one to .tar")
        found.add(file, split)
    source = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    table = found.table()
    columns = with_split({**found.columns_of_members(), **options.columns}, table.columns, splits)
    folder = Path() if is_url(files[0]) else Path(files[0]).parent
    return posts_of(table, source, folder, replace(options, columns=columns))


def _tars_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.tar")) if folder.is_dir() else []


@dataclass
class _Sample:
    """The cells of a sample, and which kinds of member it has; `fault`: why it is no post."""

    cells: dict[str, Any]
    kinds: set[str] = field(default_factory=set)
    fault: tuple[str, str] | None = None


class _Found:
    """The samples of the tars so far, and what was passed over."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._encoding = options.encoding or "utf-8"
        self._rows: list[Row] = []
        self._columns: dict[str, None] = dict.fromkeys((_KEY, _IMAGE, FILE))
        self._counts: Counter[str] = Counter()

    def add(self, file: str, split: str | None) -> None:
        """Read a tar. Raises InputError if it is none, or is damaged."""
        path = file if is_url(file) else str(Path(file).absolute())
        samples: dict[str, _Sample] = {}
        self._counts["tars"] += 1
        try:
            with open_file(file) as opened:
                for member in members(opened):
                    self._take(member, opened, path, samples)
                    if len(self._rows) + len(samples) > MOST_ROWS:
                        raise DamagedTar(errno.EFBIG, f"over the limit of {MOST_ROWS} samples; divide the set")
        except OSError as error:
            raise InputError(f"{file}: {error.strerror or error}") from None
        for key, sample in samples.items():
            place = f"{Path(file).name}, key {shown(key)}"
            self._rows.append(Row(len(self._rows) + 1, place, {**sample.cells, FILE: split}, sample.fault))

    def columns_of_members(self) -> dict[str, str]:
        """The columns of id and image, and of text and label if the tars have members for them."""
        kinds = {"text": _TEXT, "label": _LABEL}
        return {"id": _KEY, "image": _IMAGE} | {name: one for name, one in kinds.items() if one in self._columns}

    def table(self) -> Table:
        """The samples as a table."""

        def rows(_: Collection[str]) -> Iterator[Row]:
            return iter(self._rows)

        return Table(tuple(self._columns), rows, "tar", notes=self._counts, is_json=True)

    def _take(self, member: TarMember, file: BinaryIO, path: str, samples: dict[str, _Sample]) -> None:
        """Put a member into the sample of its key."""
        folder, slash, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        kind = _IMAGE if ending.lower() in IMAGE_ENDINGS else ending.lower()
        if not (member.ordinary and stem and kind in (_IMAGE, _TEXT, _LABEL, _JSON)):
            self._counts["members_passed_over"] += 1
            return
        key = folder + slash + stem
        sample = samples.setdefault(key, _Sample({_KEY: key}))
        if kind in sample.kinds:
            sample.fault = "a repeated member", f"{shown(member.name)} is the second {kind.strip('_')} of its key"
        elif kind == _IMAGE:
            sample.cells[_IMAGE] = Member(path, member.name)
        elif kind == _JSON:
            self._take_json(member, file, sample)
        else:
            sample.cells[kind] = self._text(member, file, kind, 4 * MOST_TEXT)
        sample.kinds.add(kind)
        self._columns.update(dict.fromkeys(sample.cells))

    def _take_json(self, member: TarMember, file: BinaryIO, sample: _Sample) -> None:
        """The fields become cells; of those that can't be a column only the names are kept."""
        text = self._text(member, file, _JSON, _MOST_JSON, "utf-8")
        try:
            if isinstance(text, Unusable):
                raise ValueError(text.reason)
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise ValueError(f"it is {type(fields).__name__}")
        except (ValueError, RecursionError) as error:
            sample.fault = "json is no object", " ".join(str(error).split())[:200]
            return
        for name in fields:
            if name in _OWN or may_be_used(name, self._options.columns, self._options.targets):
                sample.cells.setdefault(name, fields[name])
            elif len(self._columns) <= MOST_COLUMNS:
                self._columns.setdefault(name)

    def _text(
        self, member: TarMember, file: BinaryIO, kind: str, most: int, encoding: str | None = None
    ) -> str | Unusable:
        """The text of a member of at most `most` bytes, without the line end that tools put behind it."""
        if member.size > most:
            return Unusable(f"{kind} is over the limit of {most} bytes")
        encoding = encoding or self._encoding
        file.seek(member.start)
        try:
            text = file.read(member.size).decode(encoding)
        except UnicodeDecodeError as error:
            return Unusable(f"not {encoding.upper()} at byte {error.start}; {option('encoding')} names another one")
        except (LookupError, UnicodeError):
            raise InputError(f"{option('encoding', encoding)}: Python knows no such text encoding") from None
        return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")
