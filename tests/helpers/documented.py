"""Reads the tables of docs/files.md, and compares files with them."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

PAGE = Path(__file__).parents[2] / "docs" / "files.md"
PARTS, OTHERS = "Parts of several files", "Files without fields"  # headings
# What the words in capitals stand for in the names of files; others are folders and files that a person names.
_PLACES = {
    "SPLIT": "(train|val|test)",
    "KEY": "[0-9a-f]{8}",
    "TABLE": "(2|3|4|beyond|study)",
    "ROW": "[a-z0-9.-]+",
    "FIT": r"(seed-\d+(-fold-\d+)?|fit)",
    "TIME": r"[\d.]+",
    "ID": "[^/]+",
    "K": r"\d+",
    "NNN": r"\d{3}",
    "NNNNN": r"\d{5}",
}
_RUN_FOLDERS = re.compile(r"(SWEEP/trial-\d{4}|TABLES/[a-z0-9.-]+/seed-\d+(-fold-\d+)?)/")

_MEMBERS = re.compile(r"(?<=/)members/\d{4}/")


@dataclass
class Field:
    """A field of a table, with those that it holds. `types` is None where the table has only what is below it."""

    where: str = ""
    types: list[str] | None = None
    optional: bool = False
    children: dict[str, "Field"] = field(default_factory=dict)
    item: "Field | None" = None
    seen: bool = False

    @property
    def any_key(self) -> "Field | None":
        """The field whose name stands for any key."""
        return next((child for name, child in self.children.items() if _any(name)), None)

    def all(self) -> Iterator["Field"]:
        yield self
        for child in [*self.children.values(), *([self.item] if self.item else [])]:
            yield from child.all()


@dataclass
class Page:
    """The documented files: `sections` by name, the fields of `parts`, the names of the files without fields."""

    sections: dict[str, Field]
    parts: dict[str, Field]
    others: list[str]

    def name_of(self, file: str) -> str | None:
        """The documented name of a file; one of a trial's, a fit's or a member's run folder is that of a run."""
        for candidate in (file, _RUN_FOLDERS.sub("RUN/", file, count=1), _MEMBERS.sub("", file)):
            for name in [*self.sections, *self.others]:
                if _pattern(name).fullmatch(candidate):
                    return name
        return None

    def unseen(self) -> list[str]:
        """Fields that no file had."""
        roots = {id(root): root for root in [*self.sections.values(), *self.parts.values()]}
        return sorted({one.where for root in roots.values() for one in root.all() if one.where and not one.seen})

    def columns(self, name: str, header: list[str]) -> list[str]:
        """A table's header in the order of its section, in which columns of any name have one place."""
        fields = self.sections[name].children
        return [column for one in fields for column in header if column == one or (_any(one) and column not in fields)]

    def problems(self, name: str, documents: list[Any], where: str) -> list[str]:
        """What in these documents is not as the table of `name` has it."""
        return [problem for document in documents for problem in self._check(self.sections[name], document, where)]

    def _check(self, table: Field, value: Any, where: str) -> Iterator[str]:
        table.seen = True
        if table.types is not None:
            if part := next((self.parts[kind] for kind in table.types if kind in self.parts), None):
                yield from self._check(part, value, where)
                return
            if not any(_fits(kind, value) for kind in table.types):
                yield f"{where}: {json.dumps(value)[:60]} is not {' or '.join(table.types)}"
                return
            if "any" in table.types or not isinstance(value, dict | list):
                return
        elif not isinstance(value, list if table.item else dict):
            yield f"{where}: {json.dumps(value)[:60]} is no {'list' if table.item else 'object'}"
            return
        if isinstance(value, list) and table.item:
            for entry in value:
                yield from self._check(table.item, entry, f"{where}[]")
        elif isinstance(value, dict):
            for key, entry in value.items():
                if (child := table.children.get(key) or table.any_key) is None:
                    yield f"{where}.{key}: is not documented"
                else:
                    yield from self._check(child, entry, f"{where}.{key}")
            for key, child in table.children.items():
                if key not in value and not child.optional and not _any(key):
                    yield f"{where}.{key}: is documented, and missing"


def read_page(text: str) -> Page:
    """The tables under their headings."""
    sections: dict[str, Field] = {}
    parts: dict[str, Field] = {}
    others: list[str] = []
    chapter, names = "", list[str]()
    for line in text.splitlines():
        if line.startswith("## "):
            chapter, names = line.removeprefix("## "), []
        elif line.startswith("### "):
            names = re.findall("`([^`]+)`", line) or [line.removeprefix("### ")]
            root = Field(", ".join(names), optional=True)
            (parts if chapter == PARTS else sections).update(dict.fromkeys(names, root))
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if names:
                _add(parts[names[0]] if chapter == PARTS else sections[names[0]], names[0], cells[0], cells[1])
            elif chapter == OTHERS:
                others += re.findall("`([^`]+)`", cells[0])
    return Page(sections, parts, others)


def _add(table: Field, name: str, cell: str, types: str) -> None:
    path = cell.strip("`")
    optional, path = path.endswith("?"), path.removesuffix("?")
    at = table
    for segment in [] if path == "." else path.split("."):
        key = segment.removesuffix("[]")
        if key:
            at = at.children.setdefault(key, Field())
        if key != segment:
            at.item = at = at.item or Field()
    assert at.types is None, f"{name}: {path} is documented twice"
    at.where, at.optional = f"{name}: {path}", optional
    at.types = re.sub(r"\[(\w+)\]\(#\w+\)", r"\1", types).split(" or ")


def documents_of(file: Path) -> list[Any]:
    """What a file holds: one document, or one for each line or row."""
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as opened:
            rows = csv.DictReader(opened, strict=True)
            return [{name: cell or None for name, cell in row.items()} for row in rows]
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            return [{key: json.loads(value) for key, value in tensors.metadata().items()}]
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        return [yaml.safe_load(text)]
    return [json.loads(text)] if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def _any(key: str) -> bool:
    return bool(re.fullmatch("[A-Z]+", key))


def _pattern(name: str) -> re.Pattern[str]:
    words = re.split("([A-Z]+)", name)
    return re.compile("".join(_PLACES.get(word, re.escape(word)) for word in words))


def _fits(kind: str, value: Any) -> bool:
    """Whether a value is of a documented type; the cells of a CSV file are strings."""
    if kind.startswith("list of "):
        return isinstance(value, list) and all(_fits(kind.removeprefix("list of "), entry) for entry in value)
    if kind.startswith("["):
        kinds = kind[1:-1].split(", ")
        return isinstance(value, list) and len(value) == len(kinds) and all(map(_fits, kinds, value))
    if kind == "any":
        return True
    if kind == "empty":  # a cell
        return value is None
    if kind in ("integer", "number") and isinstance(value, str):
        return bool(re.fullmatch(r"-?\d+" if kind == "integer" else r"-?\d+(\.\d+)?(e[+-]?\d+)?", value))
    types = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "null": type(None)}
    expected: Any = {**types, "object": dict, "list": list}[kind]
    return isinstance(value, expected) and (kind == "boolean" or not isinstance(value, bool))
