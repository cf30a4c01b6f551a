"""Reads Twitter-15 and Twitter-17 (Yu and Jiang, IJCAI 2019): tweets with the sentiment towards one target in each.

A folder of one of the two, `absa_data/twitter2015/` or `absa_data/twitter/` (Twitter-17) in its repository, holds
`{train,dev,test}.tsv`: index, label 0, 1 or 2, image, text with `$T$` in the place of the target, and target. The
`.txt` files that these were made from have four lines a sample: text, target, label -1, 0 or 1, image.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.common.errors import InputError, option
from pipeline.common.files import open_regular
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions
from pipeline.posts.manifest import read_lines
from pipeline.posts.rows import FIELDS, NoPost, Rows, known_label
from pipeline.posts.shown import shown
from pipeline.posts.source_files import require_files, require_folder

LABELS = ("negative", "neutral", "positive")
TSV_CODES = dict(enumerate(LABELS))
TXT_CODES = dict(enumerate(LABELS, start=-1))
PLACE = "$T$"
TEMPLATE = "{target} : {text}"
SPLIT_FILES = {"train": "train", "val": "dev", "test": "test"}
FORMS = {"twitter2015": "Twitter-15", "twitter2017": "Twitter-17", "twitter": "Twitter-17"}
IMAGE_FOLDERS = ("twitter2015_images", "twitter2017_images", "images")
_LOOKED_AT = 200  # rows whose images decide between several folders of images
_COLUMNS = "index, label, image, text with $T$ and target"
_WHAT = "holds train, dev and test as .tsv or .txt, like absa_data/twitter2015"


class Sample(NamedTuple):
    """A row of a file; `where` it stands."""

    split: str
    id: str
    label: str
    image: str
    text: str
    target: str
    where: str


def reads(source: Path) -> bool:
    """Whether a folder, or one with a name of the two sets in it, has a training file like theirs."""
    return any(_looks_like_one(folder) for folder in (source, *_sets(source)))


def read(source: Path, options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the samples of one of the two sets, with their own splits. The text of a post is `options.template`, in
    which {text} stands for the tweet, with the target in the place of `$T$`, and {target} for the target.

    Raises InputError if a file is missing or is none of the format, if both sets are there, or for a template without
    the two fields.
    """
    options.require_only("twitter", "template")
    template = options.template or TEMPLATE
    _require_template(template)
    require_folder(source, _WHAT)
    folder = _one_set(source)
    suffix = ".tsv" if any((folder / f"{name}.tsv").exists() for name in SPLIT_FILES.values()) else ".txt"
    files = [f"{name}{suffix}" for name in SPLIT_FILES.values()]
    if not any((folder / name).exists() for name in files):
        raise InputError(f"{folder}: no train.tsv and no train.txt; name the folder that {_WHAT}")
    require_files(folder, files, f"a folder of Twitter-15 or -17 {_WHAT}")
    samples: list[Sample] = []
    not_five: list[NoPost] = []
    for (split, name), file in zip(SPLIT_FILES.items(), files, strict=True):
        path = folder / file
        samples += _txt_samples(path, split, name) if suffix == ".txt" else _tsv_samples(path, split, name, not_five)
    images = _image_folder(source, folder, [sample.image for sample in samples[:_LOOKED_AT]])
    rows = Rows(images)
    for problem in not_five:
        rows.reject(problem)
    codes = TXT_CODES if suffix == ".txt" else TSV_CODES
    for sample in samples:
        with rows.row():
            label = known_label(sample.label, codes, sample.where)
            id_ = rows.claim(sample.id, sample.where, "index")
            of_text = "" if sample.target else f"text: no target to put in the place of {PLACE}"
            text = _filled(template, sample.text, sample.target)
            rows.add(id_, text, sample.image, label, sample.split, problem=of_text)
    facts = {
        "form": FORMS.get(folder.name, "Twitter-15 or -17"),
        "files": [str(folder / name) for name in files],
        "template": template,
        "image_folder": str(images),
        "different_images": len({sample.image for sample in samples}),
    }
    return rows.data_set({"label": LABELS}, f"the files {', '.join(files)} of {folder}", facts)


def _sets(source: Path) -> list[Path]:
    """The folders below `source` with a name of the two sets."""
    places = (base / name for base in (source / "absa_data", source) for name in FORMS)
    return [folder for folder in places if folder.is_dir()]


def _one_set(source: Path) -> Path:
    """The folder with the files. Raises InputError if there are several."""
    if any((source / f"train{suffix}").exists() for suffix in (".tsv", ".txt")):
        return source
    found = _sets(source)
    if len(found) > 1:
        raise InputError(
            f"{source}: holds {' and '.join(str(folder.relative_to(source)) for folder in found)}, which are different "
            "data sets; name one of these folders"
        )
    return found[0] if found else source


def _looks_like_one(folder: Path) -> bool:
    """Whether the training file begins as that of the format does."""
    for name, mark in (("train.tsv", b"index\t#1"), ("train.txt", PLACE.encode())):
        try:
            with open_regular(folder / name) as file:
                first = file.read(4096).removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0]
        except OSError:
            continue
        return first.startswith(mark) if name.endswith(".tsv") else mark in first
    return False


def _tsv_samples(path: Path, split: str, name: str, not_five: list[NoPost]) -> Iterator[Sample]:
    """The rows below the header, by position: test.tsv names four columns and has five, and two have the same name.
    Quotes mean nothing. Each row of other than five fields goes to `not_five`.
    """
    lines = read_lines(path)
    if lines[0].split("\t")[0].strip().lower() != "index":
        raise InputError(
            f"{path}, line 1: no header that begins with index; the columns are {_COLUMNS}: {shown(lines[0])}"
        )
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 5:
            not_five.append(NoPost(FIELDS, f"{where}: {len(cells)} fields, not {_COLUMNS}: {shown(line)}"))
            continue
        index, label, image, text, target = cells
        yield Sample(split, f"{name}-{index}" if index else "", label, image, text, target, where)


def _txt_samples(path: Path, split: str, name: str) -> Iterator[Sample]:
    """The samples of four lines each, numbered from 1 as the .tsv files number them."""
    lines = [line.strip() for line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) % 4:
        raise InputError(
            f"{path}: {len(lines)} lines, not four a sample: text with $T$, target, label -1, 0 or 1, and image"
        )
    for start in range(0, len(lines), 4):
        text, target, label, image = lines[start : start + 4]
        yield Sample(split, f"{name}-{start // 4 + 1}", label, image, text, target, f"{path}, line {start + 1}")


def _image_folder(source: Path, folder: Path, names: list[str]) -> Path:
    """The folder of the images: of those that are there, the first that has one of the images `names`."""
    own = f"{'twitter2015' if folder.name == 'twitter2015' else 'twitter2017'}_images"
    known = folder.name in FORMS
    kinds = (own, "images") if known else IMAGE_FOLDERS
    bases = dict.fromkeys((folder, folder.absolute().parent, source, source.absolute().parent))
    if folder.absolute().parent.name == "absa_data":
        bases[folder.absolute().parent.parent] = None
    there = [path for base in bases for path in (base / kind for kind in kinds) if path.is_dir()]
    for images in (*there, folder):
        rows = Rows(images)
        if any(map(rows.image_file, names)):
            return images
    return there[0] if there else folder


def _require_template(template: str) -> None:
    """Raises InputError unless a template has the fields {text} and {target} and no other."""
    fields = re.findall(r"\{([^{}]*)\}", template)
    rest = re.sub(r"\{[^{}]*\}", "", template)
    if set(fields) != {"text", "target"} or "{" in rest or "}" in rest:
        raise InputError(
            f"{option('template', shown(template))}: must have the fields {{text}} and {{target}} and no other, "
            f"like {TEMPLATE!r}"
        )


def _filled(template: str, text: str, target: str) -> str:
    values = {"text": text.replace(PLACE, target), "target": target}
    return re.sub(r"\{(text|target)\}", lambda field: values[field[1]], template)
