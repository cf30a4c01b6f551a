"""The tables in docs/results.md are those that their JSON in docs/tables makes, without training anything."""

import pytest

from fusion.experiments.tables.forest_plot import draw_differences
from fusion.experiments.tables.markdown import lines_of, markdown
from fusion.experiments.tables.table_file import read_table
from tests.helpers.commands import ROOT

TABLES = sorted((ROOT / "docs" / "tables").glob("table-*.json"))


@pytest.mark.parametrize("path", TABLES, ids=[path.stem for path in TABLES])
def test_a_table_is_made_again_from_its_json_alone(path, tmp_path):
    result = read_table(path)
    lines = lines_of(result)
    assert markdown(result, lines) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert draw_differences(result, lines, tmp_path / "table.png")
    assert path.with_suffix(".png").is_file()


def test_there_are_tables():
    assert TABLES
