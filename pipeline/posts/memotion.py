"""Reads the folder of Memotion 7k (Sharma et al., SemEval 2020): memes with their sentiment and four further targets.

The folder, or `memotion_dataset_7k/` in it, holds `images/` and `labels.csv` with the columns `image_name`, `text_ocr`,
`text_corrected`, `humour`, `sarcasm`, `offensive`, `motivational` and `overall_sentiment`. It has no splits of its own.
"""

import csv
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.common.files import open_regular
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions
from pipeline.posts.manifest import read_lines, require_unique
from pipeline.posts.rows import FIELDS, NoPost, Rows, known_label
from pipeline.posts.shown import shown
from pipeline.posts.source_files import require_folder

LABEL_COLUMN = "overall_sentiment"
LABELS = ("very_negative", "negative", "neutral", "positive", "very_positive")
TARGETS = {
    "humour": ("not_funny", "funny", "very_funny", "hilarious"),
    "sarcasm": ("not_sarcastic", "general", "twisted_meaning", "very_twisted"),
    "offensive": ("not_offensive", "slight", "very_offensive", "hateful_offensive"),
    "motivational": ("not_motivational", "motivational"),
}
COLUMNS = ("image_name", "text_ocr", "text_corrected", *TARGETS, LABEL_COLUMN)
_FOLDER = "memotion_dataset_7k"
_WHAT = "holds labels.csv and images/"
_HEAD = 4096  # bytes in which the header of labels.csv ends


def reads(source: Path) -> bool:
    """Whether a folder has the label file of Memotion: one with its sentiment column, or a table of Excel beside
    images/, so that the message says how to save it.
    """
    base = _base(source)
    if base.name == _FOLDER and base.is_dir():
        return True
    if (base / "labels.xlsx").exists() and not (base / "labels.csv").exists():
        return (base / "images").is_dir()
    try:
        with open_regular(base / "labels.csv") as file:
            header = file.read(_HEAD).partition(b"\n")[0]
    except OSError:
        return False
    return LABEL_COLUMN.encode() in header


def read(source: Path, options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the memes: the text is `text_corrected`, and `text_ocr` where that is empty; the id is the image's name.

    Raises InputError if the table is missing, is a table of Excel, or lacks a column.
    """
    options.require_only("memotion")
    require_folder(source, _WHAT)
    base = _base(source)
    path = base / "labels.csv"
    if not path.exists() and (base / "labels.xlsx").exists():
        raise InputError(f"{base / 'labels.xlsx'}: not read; save it as CSV UTF-8 under the name labels.csv beside it")
    if not path.exists():
        raise InputError(f"{path}: no such file; name the folder that {_WHAT}")
    lines = read_lines(path)
    delimiter = ";" if "," not in lines[0] and ";" in lines[0] else ","  # Excel writes ; in many countries
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    rows, from_ocr = Rows(base), 0
    try:
        header = [name.strip() for name in next(reader)]
        _require_columns(header, f"{path}, line 1")
        before = reader.line_num
        for cells in reader:
            where = f"{path}, line {before + 1}"  # where the row begins: a text may hold line breaks
            before = reader.line_num
            if any(cell.strip() for cell in cells):
                with rows.row():
                    from_ocr += _add(rows, header, cells, where)
    except csv.Error as error:
        raise InputError(
            f"{path}, after line {reader.line_num}: not CSV ({error}); save it anew as CSV UTF-8"
        ) from None
    facts = {
        "form": "7k",
        "text_ocr_for_want_of_text_corrected": from_ocr,
        "columns_not_read": [name for name in header if name and name not in COLUMNS],
    }
    return rows.data_set({"label": LABELS, **TARGETS}, None, facts)


def _base(source: Path) -> Path:
    """The folder of the label file: `source`, or the folder in it that the published archive has."""
    here = any((source / name).exists() for name in ("labels.csv", "labels.xlsx"))
    return source if here or not (source / _FOLDER).is_dir() else source / _FOLDER


def _require_columns(header: list[str], where: str) -> None:
    require_unique((name for name in header if name in COLUMNS), where, "column")
    if missing := [name for name in COLUMNS if name not in header]:
        raise InputError(f"{where}: no column {missing[0]!r}; the header of Memotion names {', '.join(COLUMNS)}")


def _add(rows: Rows, header: list[str], cells: list[str], where: str) -> bool:
    """Add the post of a row; whether its text is the machine's reading of the image. Raises NoPost if it is none."""
    if len(cells) != len(header):
        raise NoPost(FIELDS, f"{where}: {len(cells)} fields for {len(header)} columns: {shown(','.join(cells))}")
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    label = known_label(row[LABEL_COLUMN], LABELS, where, LABEL_COLUMN)
    targets = {target: known_label(row[target], names, where, target) for target, names in TARGETS.items()}
    id_ = rows.claim(row["image_name"], where, "image_name")
    text = row["text_corrected"] or row["text_ocr"] or None
    rows.add(id_, text, f"images/{id_}", label, None, targets)
    return text is not None and not row["text_corrected"]
