"""Further labels of posts, in a table: the column `id`, and one column for each further target."""

from collections.abc import Collection
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.posts.labels import label_problem, target_problem
from pipeline.posts.shown import shown
from pipeline.posts.table_rows import bounded
from pipeline.posts.table_text import delimited_table


def read_targets(path: Path, taken: Collection[str]) -> dict[str, dict[str, str]]:
    """Post id -> the label of each target that it has; an empty cell is no label. `taken`: targets of another source,
    which no column may name. Raises InputError naming file, line and column.
    """
    table = delimited_table(path, None)
    ids = [name for name in table.columns if name.casefold() == "id"]
    if len(ids) != 1 or len(table.columns) < 2:
        raise InputError(f"{path}, line 1: must name the column id and one for each target")
    targets = [name for name in table.columns if name not in ids]
    for name in targets:
        if name in taken:
            raise InputError(f"{path}, line 1: {shown(name)} is a target already; name the column otherwise")
        if problem := target_problem(name):
            raise InputError(f"{path}, line 1: {problem}")
    posts: dict[str, dict[str, str]] = {}
    for row in bounded(table.rows(table.columns), path):
        where = f"{path}, {row.place}"
        if row.fault:
            raise InputError(f"{where}: {': '.join(row.fault)}")
        cells = {name: str(row.cells.get(name) or "").strip() for name in table.columns}
        if not any(cells.values()):
            continue
        id_ = cells[ids[0]]
        if not id_ or id_ in posts:
            raise InputError(f"{where}, column id: {f'{shown(id_)} occurs twice' if id_ else 'is empty'}")
        posts[id_] = {name: cells[name] for name in targets if cells[name]}
        for name, label in posts[id_].items():
            if problem := label_problem(label):
                raise InputError(f"{where}, column {shown(name)}: {problem}")
    return posts
