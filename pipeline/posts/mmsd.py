"""Reads the two published forms of the multimodal sarcasm data set: HFM, also called MMSD, and MMSD2.0.

HFM (Cai et al., ACL 2019) holds `text/train.txt`, `valid2.txt` and `test2.txt`, a list in Python's notation a line:
id, text and label, in valid2 and test2 the label of the hashtag and then that of people. MMSD2.0 (Qin et al., ACL
Findings 2023) holds `text_json_final/{train,valid,test}.json`, a list of objects with `image_id`, `text` and `label`;
its older `text_json_clean` has the texts of HFM. Both have `dataset_image/ID.jpg`.
"""

import ast
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions
from pipeline.posts.rows import FIELDS, NOT_JSON, NoPost, Rows, id_in, known_label
from pipeline.posts.shown import shown
from pipeline.posts.source_files import lines_of, read_json, require_files, require_folder

NAMES = {0: "not-sarcastic", 1: "sarcastic"}
IMAGES = "dataset_image"
HFM_FILES = {"train": "train.txt", "val": "valid2.txt", "test": "test2.txt"}
JSON_FILES = {"train": "train.json", "val": "valid.json", "test": "test.json"}
JSON_FOLDERS = ("text_json_final", "text_json_clean")
# A training line with one of these words is no part of the published set: the word tells the label, or there is no
# image of it.
LEAKED = {
    *("sarcasm", "sarcastic", "irony", "ironic"),
    *("humour", "humor", "joke", "jokes", "exgag", "reposting", "<url>"),
}
_NOT_A_LIST = "not a list in Python's notation"
_LONGEST_LINE = 10_000  # characters; the parser's work is bounded by it, and a tweet has a few hundred
_WHAT = "holds text_json_final/ (MMSD2.0) or text/ with train.txt, valid2.txt and test2.txt (HFM)"
_LEAK = (
    "the labels of HFM leak into its # and emoji tokens, so text alone scores too well; MMSD2.0 was made without them"
)


def reads(source: Path) -> bool:
    """Whether a folder has the texts of MMSD2.0, or two of the files of HFM."""
    if _json_folder(source) is not None:
        return True
    return sum((source / "text" / name).exists() for name in HFM_FILES.values()) > 1


def read(source: Path, options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the folder of either form; where both are there, MMSD2.0. The splits are the source's own.

    Raises InputError if a file of the form is missing or can't be read.
    """
    options.require_only("mmsd")
    require_folder(source, _WHAT)
    texts = _json_folder(source)
    if texts is not None:
        return _read_json(texts)
    if not any((source / "text" / name).exists() for name in HFM_FILES.values()):
        raise InputError(f"{source}: neither form of MMSD; name the folder that {_WHAT}")
    return _read_hfm(source)


def _json_folder(source: Path) -> Path | None:
    """The folder of MMSD2.0's texts, which its repository has below data/."""
    folders = (base / name for name in JSON_FOLDERS for base in (source, source / "data"))
    return next((folder for folder in folders if folder.is_dir()), None)


def _read_json(texts: Path) -> DataSet:
    require_files(texts, list(JSON_FILES.values()), f"{texts.name}/ holds {', '.join(JSON_FILES.values())}")
    root = texts.parent
    rows = Rows(root)
    for split, name in JSON_FILES.items():
        path = texts / name
        for number, item in enumerate(read_json(path, list, "a list of objects with image_id, text and label"), 1):
            where = f"{path}, object {number}"
            with rows.row():
                if not isinstance(item, dict):
                    raise NoPost(NOT_JSON, f"{where}: not a JSON object but {shown(item)}")
                _add(rows, item.get("image_id"), item.get("text"), item.get("label"), split, where, "image_id")
    facts: dict[str, Any] = {"form": "MMSD2.0", "texts": f"{texts.name}/"}
    if texts.name != JSON_FOLDERS[0]:
        facts["note"] = f"{JSON_FOLDERS[0]}/ is not there: {texts.name}/ has the texts of HFM; {_LEAK}"
    if any((root / "text" / name).exists() for name in HFM_FILES.values()):
        facts["not_read"] = "text/: HFM has other texts and labels of the same posts"
    return rows.data_set({"label": tuple(NAMES.values())}, _splits_from(texts, JSON_FILES), facts)


def _read_hfm(root: Path) -> DataSet:
    texts = root / "text"
    require_files(texts, list(HFM_FILES.values()), f"text/ holds {', '.join(HFM_FILES.values())}")
    rows = Rows(root)
    dropped, differ = 0, Counter[str]()
    for split, name in HFM_FILES.items():
        for where, line in lines_of(texts / name):
            with rows.row():
                values = _literal_list(line, where)
                if split == "train" and isinstance(values[1], str) and not LEAKED.isdisjoint(values[1].split()):
                    dropped += 1
                    continue
                _add(rows, values[0], values[1], values[-1], split, where)
                differ[split] += values[2] != values[-1]
    facts = {
        "form": "HFM",
        "dropped_train_lines": dropped,
        "dropped_why": f"a token of the text is one of {', '.join(sorted(LEAKED))}",
        "hashtag_label_differs": {split: count for split, count in differ.items() if count},
        "note": _LEAK,
    }
    return rows.data_set({"label": tuple(NAMES.values())}, _splits_from(texts, HFM_FILES), facts)


def _add(rows: Rows, id_: Any, text: Any, label: Any, split: str, where: str, field: str = "id") -> None:
    """Add the post of a row. Raises NoPost if it is none."""
    name = known_label(label, NAMES, where)
    post_id = rows.claim(id_in(id_, where, field), where, field)
    rows.add(post_id, text, f"{IMAGES}/{post_id}.jpg", name, split)


def _literal_list(line: str, where: str) -> list[Any]:
    """The id, text and labels of a line, a list in Python's notation that is read without running anything. Raises
    NoPost if the line is none.
    """
    problem = NoPost(_NOT_A_LIST, f"{where}: {_NOT_A_LIST}, or over {_LONGEST_LINE} characters: {shown(line)}")
    if len(line) > _LONGEST_LINE:
        raise problem
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, for escapes that it does not know
            value = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise problem from None
    if not isinstance(value, list):
        raise problem
    if len(value) not in (3, 4):
        raise NoPost(FIELDS, f"{where}: not id, text and one or two labels, but {len(value)} values")
    return value


def _splits_from(texts: Path, files: dict[str, str]) -> str:
    return f"the files {', '.join(files.values())} of {texts}"
