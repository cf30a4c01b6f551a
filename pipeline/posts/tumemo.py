"""Reads TumEmo (Yang et al., IEEE Transactions on Multimedia 2020) in the form of MGNNS: posts of Tumblr with one of
seven emotions.

The folder holds `{train,val,test}_all_anno.json`, or has them in `data/all_anno_json/` as the repository does: a JSON
object a line with `id`, `text`, `image`, `label`, `places` and `objects`. The images are
`data/image_data/SPLIT_image/ID.jpg`; `label.json` gives the code of each emotion.
"""

from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions
from pipeline.posts.labels import LABEL, require_names
from pipeline.posts.manifest import SPLITS
from pipeline.posts.rows import Rows, id_in, json_object, known_label
from pipeline.posts.shown import shown
from pipeline.posts.source_files import lines_of, read_json, require_files, require_folder

LABELS = ("angry", "bored", "calm", "fear", "happy", "love", "sad")
FILES = {split: f"{split}_all_anno.json" for split in SPLITS}
_WHAT = f"holds {', '.join(FILES.values())}"
_MOST_CODE = 10**6


def reads(source: Path) -> bool:
    """Whether a folder has one of the annotation files."""
    return _annotations(source) is not None


def read(source: Path, options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the posts with the splits of their files. A label is a name, or a code of `label.json`.

    Raises InputError if an annotation file is missing or `label.json` is not what it must be.
    """
    options.require_only("tumemo")
    require_folder(source, _WHAT)
    folder = _annotations(source)
    if folder is None:
        raise InputError(f"{source}: none of {', '.join(FILES.values())} in it; name the folder that {_WHAT}")
    require_files(folder, list(FILES.values()), f"a folder of TumEmo {_WHAT}")
    names, names_from = _names(source)
    known: dict[Any, str] = {**names, **{name: name for name in names.values()}}
    rows = Rows(source)
    for split, name in FILES.items():
        for where, line in lines_of(folder / name):
            with rows.row():
                record = json_object(line, where)
                label = known_label(record.get("label"), known, where)
                id_ = rows.claim(id_in(record.get("id"), where), where)
                rows.add(id_, record.get("text"), _image(rows, record.get("image"), split, id_), label, split)
    facts = {
        "form": "MGNNS",
        "label_names_from": names_from,
        "note": "the texts are stemmed and stripped in this form; a label is the tag that the post was found by",
    }
    return rows.data_set({LABEL: tuple(names.values())}, f"the files {', '.join(FILES.values())} of {folder}", facts)


def _annotations(source: Path) -> Path | None:
    """The folder of the annotation files."""
    for folder in (source, source / "data" / "all_anno_json", source / "all_anno_json"):
        if any((folder / name).exists() for name in FILES.values()):
            return folder
    return None


def _image(rows: Rows, named: Any, split: str, id_: str) -> str:
    """The image that a row names, below the folder; else, where that is no file, the one in the published place."""
    places = [f"data/image_data/{split}_image/{id_}.jpg", f"image_data/{split}_image/{id_}.jpg"]
    if isinstance(named, str) and named:
        if rows.folder.image(named)[1]:
            return named
        places = [named, *places]
    return next((place for place in places if rows.image_file(place)), places[0])


def _names(source: Path) -> tuple[dict[int, str], str]:
    """The names of the labels by code, in the order of the codes, and where they are from."""
    path = next(
        (folder / "label.json" for folder in (source, source / "data") if (folder / "label.json").exists()), None
    )
    if path is None:
        return dict(enumerate(LABELS)), "the published order; there is no label.json"
    what = 'an object of names and codes like {"angry": 0, "bored": 1}'
    codes = read_json(path, dict, what)
    if not codes or not all(type(code) is int and 0 <= code <= _MOST_CODE for code in codes.values()):
        raise InputError(f"{path}: not {what} but {shown(codes)}")
    if len(set(codes.values())) < len(codes):
        raise InputError(f"{path}: two names have the same code; give each name a code of its own")
    require_names({LABEL: tuple(codes)}, str(path))
    return {code: name for name, code in sorted(codes.items(), key=lambda item: item[1])}, str(path)
