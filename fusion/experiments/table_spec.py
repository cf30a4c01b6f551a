"""What a table of the paper is made of: its rows, its configurations, and the single fits."""

from dataclasses import dataclass
from pathlib import Path

from fusion.config import Config
from fusion.data.requirements import require_trainable, settled
from fusion.experiments.tables.rows import STUDY, Row, rows_of
from fusion.experiments.tables.study_rows import study_rows
from fusion.training.build import dimensions_of, require_fits
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.fingerprint import require_images
from pipeline.posts.labels import LABEL

ANSWERS = "answers.json"


@dataclass(frozen=True)
class TableSpec:
    """The inputs that all fits of a table share, small enough to send to another process."""

    cache: Path
    out: Path
    table: str
    base: Config
    device: str
    seeds: int = 5
    folds: Path | None = None
    baselines: bool = False
    extra: bool = True
    budget: str = "full"
    published: str | None = None  # None: mvsa-single for the labels of MVSA, else none
    text_encoder: str | None = None
    jobs: int = 1
    target: str = LABEL
    models: tuple[str, ...] = ()  # of a study, as `study_rows` reads them
    ensembles: tuple[str, ...] = ()

    def rows(self, cache: Cache) -> tuple[list[Row], list[dict[str, str]]]:
        """The table's rows, and those that the base or the cache excludes, each with its title and the reason. All rows
        are compared with the first.

        Raises InputError if that one is excluded.
        """
        rows: list[Row] = []
        left_out: list[dict[str, str]] = []
        if self.table == STUDY:
            wanted = study_rows(self.models, self.ensembles)
        else:
            wanted = rows_of(self.table, self.base, extra=self.extra, with_baselines=self.baselines)
        for row in wanted:
            try:
                if absent := set(row.members) - {kept.key for kept in rows}:
                    raise InputError(f"its row {min(absent)} is left out")
                if row.kind == "trained":
                    config = settled(row.config(self.base), cache)
                    require_trainable(cache, config)
                    require_fits(config, dimensions_of(cache))
                elif row.kind == "probe" and row.key != "probe-text":
                    require_images(cache.fingerprint, cache.folder, f"a {row.title} needs images")
            except InputError as error:
                if row is wanted[0]:
                    raise
                left_out.append({"title": row.title, "why": str(error)})
            else:
                rows.append(row)
        return rows, left_out

    def config(self, row: Row, seed: int, cache: Cache) -> Config:
        """A row's configuration for a cache; the quick budget has half of its epochs, over which a schedule runs its
        whole course.

        Raises InputError where the base excludes the row's settings.
        """
        config = row.config(self.base)
        epochs = -(-config.epochs // 2) if self.budget == "quick" else config.epochs
        return settled(config, cache).model_copy(update={"seed": seed, "epochs": epochs})


@dataclass(frozen=True)
class TableRun:
    """One fit: a row with a seed (baselines have none), on a fold (or the cache's own splits)."""

    row: Row
    seed: int | None
    fold: Path | None

    def folder(self, out: Path) -> Path:
        parts = [f"seed-{self.seed}"] if self.seed is not None else []
        name = "-".join([*parts, *([self.fold.stem.replace("_", "-")] if self.fold else [])])
        return out / self.row.key / (name or "fit")


def result_file(spec: TableSpec) -> Path:
    return spec.out / f"table-{spec.table}.json"
