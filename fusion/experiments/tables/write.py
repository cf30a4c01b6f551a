"""Writes a table's Markdown and its figure."""

from pathlib import Path
from typing import Any

from fusion.experiments.tables.forest_plot import draw_differences
from fusion.experiments.tables.markdown import lines_of, markdown
from pipeline.common.files import write_text


def write_table(result: dict[str, Any], out: Path) -> tuple[str, list[Path]]:
    """Write table-N.md and, where there is anything to compare, table-N.png; returns the Markdown and the files."""
    lines = lines_of(result)
    text = markdown(result, lines)
    page, figure = (out / f"table-{result['table']}.{ending}" for ending in ("md", "png"))
    write_text(page, text)
    return text, [page, *([figure] if draw_differences(result, lines, figure) else [])]
