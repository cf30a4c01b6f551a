"""sweep, reproduce, study, table, folds."""

import contextlib
from pathlib import Path
from typing import Any

import click

from fusion.commands.options import (
    ConfigSource,
    config_options,
    encoder_folder_option,
    jobs_option,
    open_with_splits,
    target_option,
)
from pipeline.common.console import Console
from pipeline.common.options import (
    PATH,
    cluster_options,
    device_option,
    overwrite_option,
    result_options,
    splits_options,
)


@click.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option(
    "--space", "space_file", required=True, type=PATH, help="YAML file with a range or choices for each setting."
)
@click.option(
    "--trials", required=True, type=click.IntRange(1), help="Number of trials in all; a later call may ask for more."
)
@click.option("--out", required=True, type=PATH, help="The folder of trials to write.")
@config_options()
@target_option
@splits_options
@click.option("--seed", type=int, help="Seed for the search and for each training; same as --set seed=N.")
@jobs_option
@cluster_options
@encoder_folder_option
@device_option
@overwrite_option
@result_options
def sweep(
    cache_dir: Path,
    space_file: Path,
    trials: int,
    out: Path,
    source: ConfigSource,
    target: str,
    splits: Path | None,
    allow_unmatched: bool,
    seed: int | None,
    jobs: int,
    engine: str,
    address: str | None,
    text_encoder: str | None,
    device: str,
    overwrite: bool,
    console: Console,
) -> None:
    """Search the settings of a space; keep the best by validation. The same command resumes after a kill."""
    from fusion.experiments import sweep as sweeping
    from fusion.experiments.search_space import read_space
    from fusion.experiments.sweep_results import BEST, format_trials
    from fusion.experiments.trials import SweepSpec
    from fusion.training.allocator import keep_memory
    from pipeline.extraction.ray_engine import cluster

    keep_memory()
    base = source.load(seed=seed)
    space = read_space(space_file, base)
    chosen = str(console.device(device))
    open_with_splits(cache_dir, target, splits, allow_unmatched, console)
    spec = SweepSpec(
        cache_dir.resolve(),
        out.resolve(),
        base,
        chosen,
        splits and splits.resolve(),
        text_encoder,
        jobs,
        allow_unmatched,
        target,
    )
    with cluster(address) if engine == "ray" else contextlib.nullcontext() as ray:
        result = sweeping.sweep(spec, space, trials, ray=ray, overwrite=overwrite, say=console.say)
    console.save(result)
    console.show(f"\n{format_trials(result['rows'])}\n")
    console.say(f"wrote {out}: trial {result['best_trial']} is the best; train with --config {out / BEST}")


@click.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option(
    "--table",
    required=True,
    type=click.Choice(["2", "3", "4", "beyond"]),
    help="The paper's table, or `beyond` for the options that the paper lacks.",
)
@click.option("--out", required=True, type=PATH, help="The folder for runs and tables; all tables can share one.")
@config_options("packaged")
@target_option
@click.option("--seeds", type=click.IntRange(1), default=5, help="Number of seeds (0, 1, ...) of each trained row.")
@click.option("--folds", type=PATH, help="A folder of fold_K.csv files (see `folds`): each post is tested once.")
@click.option("--baselines", is_flag=True, help="Also train the ten baselines of the paper's Table 2.")
@click.option("--only-paper", is_flag=True, help="Leave out the rows that the paper lacks.")
@click.option(
    "--budget", type=click.Choice(["quick", "full"]), default="full", help="quick: half of the preset's epochs."
)
@click.option(
    "--published",
    type=click.Choice(["mvsa-single", "mvsa-multiple", "none"]),
    default=None,
    help="Which of the paper's results to show beside ours; mvsa-single for MVSA's labels, else none.",
)
@jobs_option
@encoder_folder_option
@device_option
@result_options
def reproduce(
    cache_dir: Path,
    out: Path,
    source: ConfigSource,
    folds: Path | None,
    only_paper: bool,
    device: str,
    console: Console,
    **options: Any,
) -> None:
    """Reproduce a table of the paper: train the missing runs, compare on the same posts. The same command resumes after
    a kill.
    """
    _make_table(
        console,
        device,
        cache=cache_dir.resolve(),
        out=out.resolve(),
        base=source.load(),
        folds=folds and folds.resolve(),
        extra=not only_paper,
        **options,
    )


@click.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option(
    "--models",
    required=True,
    help="Comma-separated rows: presets, models, probe, probe-text, probe-mlp, majority, each with settings if wanted "
    "(packaged+mlm=false). All are compared with the first.",
)
@click.option("--out", required=True, type=PATH, help="The folder for runs and the table.")
@click.option("--folds", type=PATH, help="A folder of fold_K.csv files (see `folds`): each post is tested once.")
@click.option("--seeds", type=click.IntRange(1), default=5, help="Number of seeds (0, 1, ...) of each trained row.")
@click.option(
    "--ensemble",
    "ensembles",
    multiple=True,
    metavar="ROWS",
    help="Also the mean of the probabilities of all seeds of these rows, comma-separated; repeatable.",
)
@target_option
@jobs_option
@encoder_folder_option
@device_option
@result_options
def study(
    cache_dir: Path,
    models: str,
    out: Path,
    folds: Path | None,
    ensembles: tuple[str, ...],
    device: str,
    console: Console,
    **options: Any,
) -> None:
    """Compare any models on the same posts: train the missing runs, make one table. The same command resumes after a
    kill.
    """
    from fusion.config import Config
    from fusion.experiments.tables.rows import STUDY

    _make_table(
        console,
        device,
        cache=cache_dir.resolve(),
        out=out.resolve(),
        table=STUDY,
        base=Config(),
        folds=folds and folds.resolve(),
        models=tuple(models.split(",")),
        ensembles=ensembles,
        **options,
    )


def _make_table(console: Console, device: str, **spec: Any) -> None:
    """Make a table of many trainings, and say what it says."""
    from fusion.experiments.reproduce import TableSpec, reproduce
    from fusion.experiments.tables.write import write_table
    from fusion.training.allocator import keep_memory

    keep_memory()
    result = reproduce(TableSpec(device=str(console.device(device)), **spec), console.say)
    console.save(result)
    text, files = write_table(result, spec["out"])
    console.show(f"\n{text}")
    console.say(f"wrote {', '.join(map(str, files))}")


@click.command()
@click.argument("table_json", metavar="TABLE.json", type=PATH)
@click.option("--out", required=True, type=PATH, help="The folder for the Markdown and the figure.")
@result_options
def table(table_json: Path, out: Path, console: Console) -> None:
    """Write a table's Markdown and figure again from the JSON of `reproduce`; nothing is trained."""
    from fusion.experiments.tables.table_file import read_table
    from fusion.experiments.tables.write import write_table

    result = read_table(table_json)
    console.save(result)
    text, files = write_table(result, out)
    console.show(text)
    console.say(f"wrote {', '.join(map(str, files))}")


@click.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option("--out", required=True, type=PATH, help="The folder for fold_1.csv, fold_2.csv, ...")
@click.option("--k", "count", type=click.IntRange(3), default=10, help="Number of folds.")
@click.option("--seed", default=0, help="Seed of the assignment.")
@target_option
@overwrite_option
@result_options
def folds(cache_dir: Path, out: Path, count: int, seed: int, target: str, overwrite: bool, console: Console) -> None:
    """Write split files for K-fold cross-validation: stratified; repeats of a text or an image stay in one fold."""
    from fusion.data.folds import write_folds
    from pipeline.cache.reader import Cache

    console.report(write_folds(Cache(cache_dir, target=target), out, folds=count, seed=seed, overwrite=overwrite))
    console.say(f"wrote {out}/fold_1.csv to fold_{count}.csv")
