"""A new file is a new model or a new data format: no list, no option and no document of names is edited."""

import textwrap

import pytest
import torch

import fusion.models.baselines
import pipeline.posts
from fusion.config import load_config
from fusion.experiments.tables.rows import rows_of
from fusion.names import model_modules
from fusion.run import Run
from pipeline.common.discovery import offered
from pipeline.common.errors import InputError
from pipeline.posts.formats import format_of, formats
from pipeline.posts.prepare import prepare
from tests.helpers.commands import SETTINGS, invoke, refused
from tests.helpers.toy import write_cache

MODEL = '''
"""The mean of the words, and nothing else."""

from torch import Tensor, nn

from fusion.models.base import Model


class MeanWords(Model):
    title = "mean of the words"

    def __init__(self, config, dimensions) -> None:
        super().__init__(config, dimensions)
        self.head = nn.Linear(dimensions.text_width, dimensions.classes)

    def forward(self, batch) -> Tensor:
        words = batch.tokens * batch.text_mask[:, :, None]
        return self.head(words.sum(dim=1) / batch.text_mask.sum(dim=1, keepdim=True).clamp(min=1))
'''


def extend(package, folder, monkeypatch):
    """Make a folder part of a package, so that its files count as files in the package."""
    places = [*package.__path__, str(folder)]
    monkeypatch.setattr(package, "__path__", places)
    monkeypatch.setattr(package.__spec__, "submodule_search_locations", places)


@pytest.fixture
def new_model(tmp_path, monkeypatch):
    """A new file in fusion/models/baselines, beside one that defines no model."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "mean_words.py").write_text(textwrap.dedent(MODEL))
    (folder / "parts_of_it.py").write_text("def useful(): pass\n")
    extend(fusion.models.baselines, folder, monkeypatch)
    return "mean-words"


def test_a_new_file_is_a_model_that_can_be_trained_evaluated_and_compared(new_model, tmp_path):
    assert model_modules()[new_model] == "fusion.models.baselines.mean_words"
    assert "parts-of-it" not in model_modules()
    cache = write_cache(tmp_path / "cache", posts=90)
    invoke("train", cache.folder, "--out", tmp_path / "run", *SETTINGS, "--model", new_model, "--device", "cpu")
    assert "accuracy" in invoke("evaluate", tmp_path / "run", "--device", "cpu")
    assert type(Run(tmp_path / "run").load_model(torch.device("cpu"))).__name__ == "MeanWords"
    rows = rows_of("2", load_config("packaged"), with_baselines=True)
    assert (rows[-1].key, rows[-1].title, rows[-1].published) == (new_model, "mean of the words", {})


def test_without_its_file_a_model_is_refused_by_name(tmp_path):
    for name in ("mean-words", "attention", "base", "../fusion", "fusion.py", ""):
        with pytest.raises(InputError, match=r"config, model: no such model; known are fusion, .*clmlf"):
            load_config(settings=(f"model={name!r}",))


def test_files_without_a_model_are_none():
    names = offered("fusion.models", r"^class \w+\(Model\)")
    assert names == {"fusion": "fusion.models.fusion"}
    assert offered("fusion.no_such_package", ".") == {}


FORMAT = """
from pipeline.posts.formats import DataSet
from pipeline.posts.manifest import Post


def reads(source):
    return source.suffix == ".lines"


def read(source, options):
    lines = source.read_text().splitlines()
    return DataSet([Post(str(n), line, None) for n, line in enumerate(lines)], facts={"lines": len(lines)})
"""


def test_a_new_file_is_a_data_format(tmp_path, monkeypatch):
    folder, source = tmp_path / "more", tmp_path / "texts.lines"
    folder.mkdir()
    (folder / "plain_lines.py").write_text(FORMAT)
    source.write_text("one\ntwo\n")
    extend(pipeline.posts, folder, monkeypatch)
    assert "plain-lines" in formats()
    prepared = prepare(source)
    assert [post.text for post in prepared.posts] == ["one", "two"]
    assert (prepared.summary["format"], prepared.summary["lines"]) == ("plain-lines", 2)


def test_formats_are_recognised_and_what_is_not_there_is_named(tmp_path):
    (tmp_path / "texts.csv").write_text("id,text\n1,a\n")
    assert format_of(tmp_path / "texts.csv").__name__ == "pipeline.posts.table"
    (tmp_path / "data").mkdir()
    assert format_of(tmp_path).__name__ == "pipeline.posts.mvsa"
    assert "no such folder or file" in refused("prepare", tmp_path / "none", "--out", tmp_path / "m.jsonl")
    source = tmp_path / "texts.txt"
    source.write_text("id,text\n1,a\n")
    assert f"looks like none of the formats {', '.join(formats())}; name one with --format" in refused(
        "prepare", source, "--out", tmp_path / "m.jsonl"
    )
    invoke("prepare", source, "--format", "table", "--out", tmp_path / "m.jsonl")
    assert "mvsa" in invoke("prepare", "--help")
