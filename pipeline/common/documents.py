"""Reads JSON and YAML that may come from a stranger: bounded in size and depth, and checked by a model.

Whatever is wrong with a document is an InputError of one line that names the file and the field.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.common.errors import InputError
from pipeline.common.files import regular_text

MOST_JSON = 32 << 20  # bytes; an evaluation of 100,000 posts has half of it
MOST_YAML = 128 << 10  # PyYAML reads this in about two seconds
_MOST_DEPTH = 16
_MOST_SHOWN = 200  # characters of a message that may repeat what the file holds


class Document(BaseModel):
    """A part of a JSON file: strict types and finite numbers; fields that it does not name are dropped."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)


def one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must hold printable characters alone")
    return text


def _plain(value: Any) -> Any:
    _require_plain(value, _MOST_DEPTH)
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]  # of two shares
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Line = Annotated[str, Field(max_length=500), AfterValidator(one_line)]  # text that is shown
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.+-]+$")]
PLAIN = AfterValidator(_plain)  # for a JSON value of any form: it must be small, shallow and finite
Post = Annotated[str, Field(min_length=1, max_length=4096)]  # an id

Model = TypeVar("Model", bound=BaseModel)


def read_json(path: Path, model: type[Model], most: int = MOST_JSON) -> Model:
    """The JSON document of an ordinary file. Raises InputError naming file and field, and OSError for other files."""
    try:
        text = regular_text(path, most)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged, not UTF-8 at byte {error.start}") from None
    return parse_json(text, model, str(path))


def parse_json(text: str, model: type[Model], where: str) -> Model:
    """A JSON document. NaN and Infinity are refused unless `model` has a float that permits them. Raises InputError."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise InputError(f"{where}: damaged, nested too deep") from None
    except ValueError as error:
        raise InputError(f"{where}: damaged, not JSON ({str(error)[:_MOST_SHOWN]})") from None
    return checked(value, model, where)


def checked(value: Any, model: type[Model], where: str) -> Model:
    """`value` as the model has it. Raises InputError naming `where` and the first field that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{where}: damaged, {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first thing that a model finds wrong: field and reason."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"]))[:_MOST_SHOWN]
    reason = " ".join(first["msg"].removeprefix("Value error, ").split())[:_MOST_SHOWN]
    return f"{field}: {reason}" if field else reason


def read_yaml(path: Path) -> dict[str, Any]:
    """The key: value lines of an ordinary file. Raises InputError naming it, and OSError for other files."""
    try:
        value = parse_yaml(regular_text(path, MOST_YAML))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())[:_MOST_SHOWN]})") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold key: value lines")
    return {str(key): entry for key, entry in value.items()}


def parse_yaml(text: str) -> Any:
    """A YAML document of mappings, lists, strings, numbers, booleans and null, without anchors, aliases and tags.

    Raises ValueError or yaml.YAMLError.
    """
    if len(text) > MOST_YAML:
        raise ValueError(f"over the limit of {MOST_YAML} characters")
    try:
        return yaml.load(text, _PlainLoader)
    except OverflowError as error:  # a float in the base 60 of YAML 1.1
        raise ValueError(str(error)) from None


class _PlainLoader(yaml.SafeLoader):
    """Refuses what can make a small file large (aliases), deep, or of other types (tags, timestamps)."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            self._refuse("anchors and aliases are not permitted", event)
        if getattr(event, "tag", None) is not None:
            self._refuse("tags are not permitted", event)
        if self._depth == _MOST_DEPTH:
            self._refuse("nested too deep", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_yaml_int(self, node: Any) -> int:
        try:
            value = int(super().construct_yaml_int(node))
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None
        if abs(value) >= 1 << 63:
            raise yaml.constructor.ConstructorError(None, None, "an integer over 64 bits", node.start_mark)
        return value

    def _refuse(self, reason: str, event: Any) -> NoReturn:
        raise yaml.composer.ComposerError(None, None, reason, event.start_mark)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "bool", "int", "float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _require_plain(value: Any, depth: int) -> None:
    """Raises ValueError if a JSON value is nested deeper than `depth`, or holds long strings, many entries or a number
    that is not finite.
    """
    if isinstance(value, dict | list):
        if depth == 0:
            raise ValueError("nested too deep")
        if len(value) > 1000:
            raise ValueError(f"{len(value)} entries, over the limit of 1000")
        for entry in value:
            _require_plain(entry, depth - 1)
            if isinstance(value, dict):
                _require_plain(value[entry], depth - 1)
    elif isinstance(value, str):
        if len(value) > 2000:
            raise ValueError(f"a string of {len(value)} characters, over the limit of 2000")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number that is not finite")
    elif isinstance(value, int) and value.bit_length() > 64:
        raise ValueError("an integer over 64 bits")
