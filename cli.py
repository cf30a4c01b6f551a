"""The commands, and nothing else: a body builds a config, calls one function and prints what came of it."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.common.console import escape_message, escaped_warnings, printable, say
from pipeline.common.errors import InputError, problem_of
from pipeline.common.files import write_json

if TYPE_CHECKING:
    import torch

    from fusion.data.feature_store import Place

PATH = click.Path(path_type=Path)


class Commands(click.Group):
    """Turns a problem of the user's input into one line and exit code 1; usage errors stay click's own (2)."""

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **named)
        except click.ClickException as error:
            raise escape_message(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with escaped_warnings():
                return super().invoke(ctx)
        except click.ClickException as error:
            raise escape_message(error) from None
        except (InputError, OSError, MemoryError, RuntimeError, UnicodeEncodeError) as error:
            if (problem := problem_of(error)) is None:
                raise
            raise escape_message(click.ClickException(problem)) from None


@click.group(
    cls=Commands,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"], "max_content_width": 120},
)
def cli() -> None:
    """Image-text sentiment: encode a data set once, then train fusion models from the cache again and again."""


def result_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command takes."""
    command = click.option("--json", "json_file", type=PATH, help="Also write the result here, for scripts.")(command)
    return click.option("--quiet", is_flag=True, help="Print nothing but problems.")(command)


def encoder_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which encoders: what pipeline.encoders.load.EncoderChoice holds."""
    for option in (
        click.option("--max-tokens", default=128, help="Longer texts are cut by the tokenizer."),
        click.option("--text-layers", type=click.IntRange(1), default=1, help="Tokens: mean of its last K layers."),
        click.option("--text-encoder", "text", help="A BERT-family model by hub name, or a local folder."),
        click.option("--views", type=click.IntRange(1, 6), default=1, help="Of each image: centre, mirror, corners."),
        click.option("--image-weights", type=PATH, help="Its weights from a local .safetensors or .pth file."),
        click.option("--image-encoder", "image", help="A timm model with a patch grid; none: texts alone."),
        click.option(
            "--encoders", "preset", type=click.Choice(["paper", "packaged"]), default="paper", help="The pair."
        ),
    ):
        command = option(command)
    return command


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where a run's encoders lie, if not where they did."""
    command = click.option("--text-encoder", help="The folder of the run's text encoder, if from local files.")(command)
    return click.option("--image-weights", type=PATH, help="The file of the run's image weights, if local.")(command)


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what an earlier call finished there.")
device_option = click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
splits_option = click.option(
    "--splits", type=PATH, help="CSV id,label,split in place of the cache's own labels and splits."
)


@cli.command()
@click.argument("source", metavar="MVSA_DIR|TEXTS.csv", type=PATH)
@click.option("--out", required=True, type=PATH, help="The manifest to write (JSONL).")
@click.option("--splits", type=PATH, help="CSV id,label,split; without it a stratified split is made.")
@click.option("--ratios", default="8:1:1", help="Shares of train, val and test.")
@click.option("--seed", default=0, help="Seed of the stratified split.")
@click.option("--encoding", default="gb18030", help="Encoding of an MVSA folder's texts; never guessed.")
@overwrite_option
@result_options
def prepare(
    source: Path,
    out: Path,
    splits: Path | None,
    ratios: str,
    seed: int,
    encoding: str,
    overwrite: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Read an MVSA folder, or a CSV file id,text,label,split without images: label rule, split, duplicates; write a
    manifest.
    """
    from pipeline.posts import csv_texts as texts
    from pipeline.posts import manifest as records
    from pipeline.posts import mvsa

    _refuse_finished(out, out.exists(), overwrite)
    try:
        shares = [float(part) for part in ratios.split(":")]
    except ValueError:
        raise click.BadParameter(f"{ratios!r} is not like 8:1:1", param_hint="--ratios") from None
    if source.is_file():
        prepared = texts.prepare(source, splits=splits, ratios=shares, seed=seed)
    else:
        prepared = mvsa.prepare(source, splits=splits, ratios=shares, seed=seed, encoding=encoding)
    records.write_manifest(out, prepared.posts)
    _report(prepared.summary, json_file, quiet)
    _say(quiet, f"wrote {out}: {len(prepared.posts)} posts")


@cli.command()
@click.argument("manifest", type=PATH)
@click.option("--out", required=True, type=PATH, help="The cache folder to write.")
@encoder_options
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Posts encoded at once.")
@click.option("--workers", type=click.IntRange(1), default=2, help="Processes that decode images.")
@device_option
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", help="Precision of the encoders."
)
@click.option(
    "--store",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    help="Precision on disk (HDF5 has no bfloat16).",
)
@click.option(
    "--max-fail-rate", type=click.FloatRange(0, 1), default=0.05, help="Exit 1 if more posts than this failed."
)
@click.option("--append", is_flag=True, help="Add the posts of a larger manifest to a finished cache.")
@click.option("--retry-failed", is_flag=True, help="Make the shards with failed posts again.")
@click.option("--repair", is_flag=True, help="Check every shard's bytes, and make damaged ones again.")
@click.option("--part", default="1/1", help="i/n: make part i of n only, for `merge`.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", help="ray (experimental): workers of a cluster."
)
@click.option("--address", help="The Ray cluster's; without it one is started here.")
@overwrite_option
@result_options
def extract(
    manifest: Path,
    out: Path,
    device: str,
    store: str,
    batch_size: int,
    workers: int,
    max_fail_rate: float,
    append: bool,
    retry_failed: bool,
    repair: bool,
    part: str,
    engine: str,
    address: str | None,
    overwrite: bool,
    json_file: Path | None,
    quiet: bool,
    **encoders: Any,
) -> None:
    """Run both encoders once over a manifest's posts; write a feature cache. The same command goes on after a kill."""
    from pipeline.encoders.fingerprint import NO_IMAGES
    from pipeline.encoders.load import EncoderChoice, load_image_encoder, load_text_encoder
    from pipeline.extraction import extract as extraction
    from pipeline.extraction.continued import as_before
    from pipeline.extraction.decode import start_server
    from pipeline.extraction.plan import Changes, Part
    from pipeline.posts import manifest as records

    posts = records.read_manifest(manifest, images=encoders["image"] != NO_IMAGES)
    changes = Changes(append, retry_failed, repair)
    share = Part.parse(part)
    _refuse_finished(out, (out / "index.h5").exists() and not any((append, retry_failed, repair)), overwrite)
    chosen = _device(device, quiet)
    start_server()
    choice = EncoderChoice(**encoders, device=str(chosen))
    choice = choice if overwrite else as_before(choice, out)
    image, text = load_image_encoder(choice), load_text_encoder(choice)
    _say(quiet, f"encoders: {image.describe()} and {text.describe()}")
    with contextlib.ExitStack() as stack:
        elsewhere = None
        if engine == "ray":
            from pipeline.extraction.ray_engine import cluster, engine_on

            ray = stack.enter_context(cluster(address))
            elsewhere = engine_on(
                ray, choice, batch_size=batch_size, workers=workers, log=lambda line: _say(quiet, line)
            )
        report = extraction.extract(
            posts,
            out,
            image,
            text,
            batch_size=batch_size,
            workers=workers,
            stored_dtype=store,
            part=share,
            changes=changes,
            overwrite=overwrite,
            engine=elsewhere,
            quiet=quiet,
            say=lambda line: _say(quiet, line),
        )
    _report(report.summary(), json_file, quiet)
    _say(
        quiet,
        f"wrote {out}: {report.posts - len(report.failed)} of {report.posts} posts, {report.bytes / 2**20:.0f} MiB",
    )
    if len(report.failed) > max_fail_rate * report.posts:
        raise InputError(
            f"{len(report.failed)} of {report.posts} posts failed, over --max-fail-rate {max_fail_rate:g}; "
            f"{out / extraction.FAILURES} says why"
        )


@cli.command()
@encoder_options
@click.option("--out", type=PATH, default=Path(), help="Where a cache is to be written.")
@click.option("--offline", is_flag=True, help="Don't ask the hub, only its local cache.")
@result_options
def doctor(out: Path, json_file: Path | None, quiet: bool, **encoders: Any) -> None:
    """Say whether all that `extract` needs is here: weights, devices, memory, disk."""
    from pipeline.encoders.load import EncoderChoice
    from pipeline.extraction.doctor import examine

    findings = list(examine(EncoderChoice(**encoders), out))
    for finding in findings:
        _say(quiet, f"{finding.mark:4} {finding.what}: {finding.found}")
    if json_file:
        write_json(json_file, [vars(finding) for finding in findings])
    missing = [finding.what for finding in findings if finding.ok is False]
    if missing:
        raise InputError(f"not ready: {', '.join(missing)}")


@cli.command()
@click.argument("parts", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, help="The cache folder to write.")
@overwrite_option
@result_options
def merge(parts: tuple[Path, ...], out: Path, overwrite: bool, json_file: Path | None, quiet: bool) -> None:
    """Make one cache of the parts that `extract --part i/n` made."""
    from pipeline.cache.merge import merge as merge_parts

    _refuse_finished(out, (out / "index.h5").exists(), overwrite)
    merged = merge_parts(parts, out, overwrite=overwrite)
    _report(merged.summary(), json_file, quiet)
    _say(quiet, f"wrote {out}: {len(merged)} posts of {len(parts)} parts")


@cli.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option("--verify", is_flag=True, help="Read everything: checksums, offsets, finiteness, manifest hash.")
@click.option("--re-encode", default=0, metavar="K", help="Also encode K random posts again and compare.")
@click.option("--image-weights", type=PATH, help="For --re-encode: the image encoder's weights, if from a local file.")
@click.option("--text-encoder", help="For --re-encode: the text encoder's folder, if from local files.")
@device_option
@result_options
def inspect(
    cache_dir: Path,
    verify: bool,
    re_encode: int,
    image_weights: Path | None,
    text_encoder: str | None,
    device: str,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Say what is in a cache, how big it is, and whether it is whole."""
    from pipeline.cache.reader import Cache

    cache = Cache(cache_dir)
    problems = cache.damage() if verify else []
    if re_encode:
        from pipeline.extraction import verify as check

        encoders = check.load_encoders(cache, str(_device(device, quiet)), image_weights, text_encoder)
        problems += check.encode_again(cache, *encoders, re_encode)
    checked = {"problems": problems} if verify or re_encode else {}
    _report(cache.summary() | checked, json_file, quiet)
    if problems:
        raise InputError(
            f"{cache_dir}: damaged; {'; '.join(problems)}; `extract` with --repair makes damaged shards again"
        )


@cli.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@splits_option
@result_options
def probe(cache_dir: Path, splits: Path | None, json_file: Path | None, quiet: bool) -> None:
    """The linear floor: logistic regression on averaged features of text, image and both."""
    from fusion.evaluation import linear_probe as floor
    from pipeline.cache.reader import Cache

    cache = Cache(cache_dir).with_splits(splits) if splits else Cache(cache_dir)
    rows = {kind: floor.probe(cache, kind).summary() for kind in floor.kinds_of(cache)}
    if json_file:
        write_json(json_file, rows)
    _say(quiet, f"{'':8}{'val accuracy':>14}{'test accuracy':>15}{'test weighted F1':>18}{'C':>10}")
    for kind, row in rows.items():
        scores = f"{row['val_accuracy']:>14.4f}{row['test_accuracy']:>15.4f}{row['test_weighted_f1']:>18.4f}"
        _say(quiet, f"{kind:8}{scores}{row['strength']:>10.2g}")


@cli.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option("--out", required=True, type=PATH, help="The run folder to write.")
@click.option("--preset", help="A shipped configuration: demo, packaged, mvsa-single, mvsa-multiple.")
@click.option("--config", "config_file", type=PATH, help="A YAML file of settings, over the preset.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting, over preset and file; repeatable."
)
@splits_option
@click.option("--model", help="Same as --set model=NAME: fusion, or a baseline (docs/baselines.md lists them).")
@click.option("--seed", type=int, help="Same as --set seed=N.")
@click.option("--text-encoder", help="Where the cache's text encoder lies, if not where it did.")
@click.option("--resume", is_flag=True, help="Go on with the unfinished run at --out, with its own configuration.")
@click.option(
    "--cache-in",
    type=click.Choice(["auto", "map", "ram", "device"]),
    default="auto",
    help="Where features are read from: mapped files, this process's memory, the GPU.",
)
@click.option(
    "--remember", type=click.IntRange(0), default=1024, metavar="MIB", help="Masked texts' encodings to keep; CPU only."
)
@click.option(
    "--micro-batch", type=click.IntRange(1), help="Posts in the model at a time: less memory, the same gradient."
)
@click.option("--checkpointing", is_flag=True, help="Compute layers again for the gradient: less memory, more time.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard event files into the run folder.")
@device_option
@overwrite_option
@result_options
def train(
    cache_dir: Path,
    out: Path,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    splits: Path | None,
    model: str | None,
    seed: int | None,
    text_encoder: str | None,
    resume: bool,
    cache_in: "Place",
    remember: int,
    micro_batch: int | None,
    checkpointing: bool,
    tensorboard: bool,
    device: str,
    overwrite: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Train the fusion model, or a baseline, from a cache; write a run folder. torchrun uses several GPUs or hosts."""
    from fusion.config import load_config
    from fusion.run import Run
    from fusion.training import train as training
    from fusion.training.distributed import local_device, ranks
    from pipeline.cache.reader import Cache

    run = Run(out)
    _refuse_finished(out, run.finished, overwrite)
    named = {"model": model, "seed": seed}
    settings = (*settings, *(f"{key}={value}" for key, value in named.items() if value is not None))
    own = run.resumable_config() if resume else None
    given = preset or config_file or settings
    config = load_config(preset, config_file, settings) if given or own is None else own
    chosen = local_device(_device(device, quiet))
    means = training.Means(cache_in, remember << 20, micro_batch, checkpointing, tensorboard)
    cache = Cache(cache_dir)
    with ranks(chosen) as here:
        if overwrite and here.first:
            run.clear()
        here.wait()
        cache = run.take_up(config, cache, splits)
        encoder = training.masking_encoder(cache, chosen, config, text_encoder) if config.mlm else None
        result = training.train(
            cache,
            config,
            run,
            chosen,
            text_encoder=encoder,
            means=means,
            ranks=here,
            quiet=quiet,
            say=lambda line: _say(quiet or not here.first, line),
        )
    if here.first:
        _report(result.summary(), json_file, quiet)
        _say(quiet, f"wrote {out}: best epoch {result.best_epoch} of {result.epochs}")


@cli.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option("--space", "space_file", required=True, type=PATH, help="YAML: a range or choices for each setting.")
@click.option("--trials", required=True, type=click.IntRange(1), help="How many in all; more later go on from there.")
@click.option("--out", required=True, type=PATH, help="The folder of trials to write.")
@click.option("--preset", help="What the other settings start from, as in `train`.")
@click.option("--config", "config_file", type=PATH, help="A YAML file of settings, over the preset.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting, over preset and file; repeatable."
)
@splits_option
@click.option("--seed", type=int, help="Of the search and of each training; same as --set seed=N.")
@click.option("--jobs", type=click.IntRange(1), default=1, help="Trials at a time; all read the one mapped cache.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="ray: Ray Tune on a cluster.")
@click.option("--address", help="The Ray cluster's; without it one is started here.")
@click.option("--text-encoder", help="Where the cache's text encoder lies, if not where it did.")
@device_option
@overwrite_option
@result_options
def sweep(
    cache_dir: Path,
    space_file: Path,
    trials: int,
    out: Path,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    splits: Path | None,
    seed: int | None,
    jobs: int,
    engine: str,
    address: str | None,
    text_encoder: str | None,
    device: str,
    overwrite: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Try settings from a space and keep the best by validation. The same command goes on after a kill."""
    from fusion.config import load_config
    from fusion.experiments import sweep as sweeping
    from fusion.experiments.search_space import read_space
    from fusion.experiments.sweep_results import BEST, shown
    from pipeline.extraction.ray_engine import cluster

    settings = (*settings, *([f"seed={seed}"] if seed is not None else []))
    base = load_config(preset, config_file, settings)
    space = read_space(space_file, base)
    chosen = str(_device(device, quiet))
    spec = sweeping.SweepSpec(
        cache_dir.resolve(), out.resolve(), base, chosen, splits and splits.resolve(), text_encoder, jobs
    )
    with cluster(address) if engine == "ray" else contextlib.nullcontext() as ray:
        result = sweeping.sweep(spec, space, trials, ray=ray, overwrite=overwrite, say=lambda line: _say(quiet, line))
    if json_file:
        write_json(json_file, result)
    _show(quiet, f"\n{shown(result['rows'])}\n")
    _say(quiet, f"wrote {out}: trial {result['best_trial']} is the best; train with --config {out / BEST}")


@cli.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option("--table", required=True, type=click.Choice(["2", "3", "4", "beyond"]), help="Of the paper; or our own.")
@click.option("--out", required=True, type=PATH, help="The folder for runs and tables; all tables can share one.")
@click.option("--preset", default="packaged", help="What the rows' settings start from, as in `train`.")
@click.option("--config", "config_file", type=PATH, help="A YAML file of settings, over the preset.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting, over preset and file; repeatable."
)
@click.option("--seeds", type=click.IntRange(1), default=5, help="Repeats of each trained row: seeds 0, 1, ...")
@click.option("--folds", type=PATH, help="A folder of fold_K.csv (see `folds`): each post is tested once.")
@click.option("--baselines", is_flag=True, help="Also the ten baselines of the paper's Table 2.")
@click.option("--only-paper", is_flag=True, help="Without the rows that the paper lacks.")
@click.option(
    "--budget", type=click.Choice(["quick", "full"]), default="full", help="quick: half of the preset's epochs."
)
@click.option(
    "--published",
    type=click.Choice(["mvsa-single", "mvsa-multiple", "none"]),
    default="mvsa-single",
    help="Which of the paper's figures stand beside ours.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, help="Fits at a time; all read the one mapped cache.")
@click.option("--text-encoder", help="Where the cache's text encoder lies, if not where it did.")
@device_option
@result_options
def reproduce(
    cache_dir: Path,
    out: Path,
    preset: str,
    config_file: Path | None,
    settings: tuple[str, ...],
    folds: Path | None,
    only_paper: bool,
    device: str,
    json_file: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Make a table of the paper: train what it lacks, compare by posts. The same command goes on after a kill."""
    from fusion.config import load_config
    from fusion.experiments import reproduce as reproducing
    from fusion.experiments.tables.write import write_table

    task = reproducing.Task(
        cache=cache_dir.resolve(),
        out=out.resolve(),
        base=load_config(preset, config_file, settings),
        device=str(_device(device, quiet)),
        folds=folds and folds.resolve(),
        extra=not only_paper,
        **options,
    )
    result = reproducing.reproduce(task, lambda line: _say(quiet, line))
    if json_file:
        write_json(json_file, result)
    text, files = write_table(result, out)
    _show(quiet, f"\n{text}")
    _say(quiet, f"wrote {', '.join(map(str, files))}")


@cli.command()
@click.argument("table_json", metavar="TABLE.json", type=PATH)
@click.option("--out", required=True, type=PATH, help="The folder for the Markdown and the figure.")
@result_options
def table(table_json: Path, out: Path, json_file: Path | None, quiet: bool) -> None:
    """Make a table again from the JSON that `reproduce` wrote, and nothing else."""
    from fusion.experiments.tables.table_file import read_table
    from fusion.experiments.tables.write import write_table

    result = read_table(table_json)
    if json_file:
        write_json(json_file, result)
    text, files = write_table(result, out)
    _show(quiet, text)
    _say(quiet, f"wrote {', '.join(map(str, files))}")


@cli.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option("--out", required=True, type=PATH, help="The folder for fold_1.csv, fold_2.csv, ...")
@click.option("--k", "count", type=click.IntRange(3), default=10, help="How many folds.")
@click.option("--seed", default=0, help="Seed of the assignment.")
@overwrite_option
@result_options
def folds(
    cache_dir: Path, out: Path, count: int, seed: int, overwrite: bool, json_file: Path | None, quiet: bool
) -> None:
    """Make split files of K folds: stratified, repeats of a text or an image on one side."""
    from fusion.data.folds import write_folds
    from pipeline.cache.reader import Cache

    _report(write_folds(Cache(cache_dir), out, folds=count, seed=seed, overwrite=overwrite), json_file, quiet)
    _say(quiet, f"wrote {out}/fold_1.csv to fold_{count}.csv")


@cli.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", help="Which posts to score.")
@splits_option
@click.option("--cache", "cache_dir", type=PATH, help="A cache of the same encoders, in place of the run's.")
@device_option
@overwrite_option
@result_options
def evaluate(
    run_dir: Path,
    split: str,
    splits: Path | None,
    cache_dir: Path | None,
    device: str,
    overwrite: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Score a finished run: intervals, classes, without duplicates, shuffled partners, against the linear floor."""
    from fusion.evaluation import evaluate as evaluation
    from fusion.run import Run

    path = run_dir / f"evaluation-{split}.json"
    _refuse_finished(path, path.exists(), overwrite)
    result = evaluation.evaluate(
        Run(run_dir), _device(device, quiet), split=split, splits=splits, cache_folder=cache_dir
    )
    write_json(path, result)
    if json_file:
        write_json(json_file, result)
    _show(quiet, evaluation.table(result))
    _say(quiet, f"wrote {path}")


@cli.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.argument("posts", required=False, type=PATH)
@click.option("--image", type=PATH, help="The image file of one post.")
@click.option("--text", help="The text of one post.")
@click.option("--out", type=PATH, help="Where the answers to a file of posts go (JSONL).")
@place_options
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Posts encoded at once.")
@click.option("--workers", type=click.IntRange(1), default=2, help="Processes that decode images.")
@click.option(
    "--max-fail-rate", type=click.FloatRange(0, 1), default=0.05, help="Exit 1 if more posts than this got no answer."
)
@device_option
@overwrite_option
@result_options
def predict(
    run_dir: Path,
    posts: Path | None,
    image: Path | None,
    text: str | None,
    out: Path | None,
    image_weights: Path | None,
    text_encoder: str | None,
    batch_size: int,
    workers: int,
    max_fail_rate: float,
    device: str,
    overwrite: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Class probabilities of raw posts: of one by --image and --text, or of POSTS with --out.

    POSTS is a file like a manifest (JSONL); `text` or `image` may be left out where the run was trained for that. After
    a kill the same command goes on.
    """
    from fusion.inference.predict_file import answer_file, clear
    from fusion.inference.predictor import Predictor, answer_one
    from fusion.run import Run
    from pipeline.extraction.decode import start_server

    single = image is not None or text is not None
    if single == (posts is not None) or (posts is None) != (out is None):
        raise click.UsageError("give either --image and --text, or POSTS and --out")
    if out:
        _refuse_finished(out, out.exists(), overwrite)
    if out or image:
        start_server()
    chosen = _device(device, quiet)
    predictor = Predictor.open(Run(run_dir), chosen, image_weights=image_weights, text_encoder=text_encoder)
    if not posts or not out:
        answer = answer_one(predictor, text, image)
        if json_file:
            write_json(json_file, answer.record())
        for label, probability in answer.probabilities.items():
            _say(quiet, f"{label:10}{probability:>7.1%}  {'█' * round(40 * probability)}")
        if answer.flags:
            _say(quiet, f"flags: {', '.join(answer.flags)}")
        return
    if overwrite:
        clear(out)
    report = answer_file(predictor, posts, out, batch_size=batch_size, workers=workers, quiet=quiet)
    _report(report.summary(), json_file, quiet)
    _say(quiet, f"wrote {out}: {report.posts} answers, {report.failed} of them the reason why there is none")
    if report.failed > max_fail_rate * report.posts:
        raise InputError(
            f"{report.failed} of {report.posts} posts got no answer, over --max-fail-rate {max_fail_rate:g}; "
            f"their lines in {out} say why"
        )


@cli.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--out", type=PATH, help="The folder for the page, the pictures and the JSON.")
@click.option("--ids", help="Posts of the run's cache: a,b,c.")
@click.option("--worst", type=click.IntRange(1), metavar="N", help="The N posts that the run got most wrong.")
@click.option("--image", type=PATH, help="The image file of a post of one's own.")
@click.option("--text", help="Its text.")
@click.option("--compare", multiple=True, type=PATH, metavar="RUN", help="Another run beside it; repeatable.")
@click.option("--method", help="attention, rollout or gradient; by default what proved most faithful.")
@click.option("--faithfulness", is_flag=True, help="Instead measure the methods: hide what they point at.")
@click.option("--posts", type=click.IntRange(2), default=200, help="For --faithfulness: at most so many posts.")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), help="For --worst (test) and --faithfulness (val)."
)
@click.option("--cache", "cache_dir", type=PATH, help="A cache of the same encoders, in place of the run's.")
@place_options
@device_option
@overwrite_option
@result_options
def explain(
    run_dir: Path,
    out: Path | None,
    ids: str | None,
    worst: int | None,
    image: Path | None,
    text: str | None,
    compare: tuple[Path, ...],
    method: str | None,
    faithfulness: bool,
    posts: int,
    split: str | None,
    cache_dir: Path | None,
    image_weights: Path | None,
    text_encoder: str | None,
    device: str,
    overwrite: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Show where a run looks, in the image and in the text (table 5); with --compare, several runs side by side."""
    from fusion.explanation.explain import DEFAULT_METHOD
    from fusion.inference.predictor import Predictor
    from fusion.run import Run

    places: dict[str, Any] = {"image_weights": image_weights, "text_encoder": text_encoder}
    raw = image is not None or text is not None
    wanted = [one.strip() for one in (ids or "").split(",") if one.strip()]
    if sum([bool(wanted), worst is not None, raw, faithfulness]) != 1 or (out is None) != faithfulness:
        raise click.UsageError("give --out and one of --ids, --worst, or --image and --text; or --faithfulness alone")
    if faithfulness or out is None:
        from fusion.explanation import faithfulness as check

        predictor = Predictor.open(Run(run_dir), _device(device, quiet), **places)
        measured = check.of_run(predictor, split or "val", posts, cache_folder=cache_dir, quiet=quiet)
        if json_file:
            write_json(json_file, measured)
        _show(quiet, check.table(measured))
        return
    from fusion.report import gallery

    _refuse_finished(out, (out / gallery.PAGE).exists(), overwrite)
    runs, chosen = [Run(folder) for folder in (run_dir, *compare)], _device(device, quiet)
    method = method or DEFAULT_METHOD
    if raw:
        shown, looks = gallery.look_at_raw([Predictor.open(run, chosen, **places) for run in runs], text, image, method)
    else:
        wanted = wanted or gallery.most_wrong(runs[0].evaluation(split or "test"), worst or 0)
        shown, looks = gallery.look_at_cached(
            runs, wanted, chosen, method=method, cache_folder=cache_dir, text_encoder=text_encoder
        )
    result = gallery.write_gallery(out, shown, looks)
    if json_file:
        write_json(json_file, result)
    _say(quiet, f"wrote {out / gallery.PAGE}: {len(shown)} posts, {len(looks)} runs, method {method}")


@cli.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--out", required=True, type=PATH, help="The page to write (HTML).")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), default="test", help="Which evaluation to report."
)
@click.option("--worst", type=click.IntRange(0), default=12, help="How many of the posts it got most wrong to show.")
@click.option("--method", help="How to explain them: attention, rollout or gradient.")
@click.option("--cache", "cache_dir", type=PATH, help="A cache of the same encoders, in place of the run's.")
@click.option("--text-encoder", help="The folder of the run's text encoder, if from local files.")
@device_option
@overwrite_option
@result_options
def report(
    run_dir: Path,
    out: Path,
    split: str,
    worst: int,
    method: str | None,
    cache_dir: Path | None,
    text_encoder: str | None,
    device: str,
    overwrite: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Write all that is known of an evaluated run into one HTML file, to read offline or send to a colleague."""
    from fusion.explanation.explain import DEFAULT_METHOD
    from fusion.report.run_report import write_report
    from fusion.run import Run

    _refuse_finished(out, out.exists(), overwrite)
    summary = write_report(
        Run(run_dir),
        out,
        _device(device, quiet),
        split=split,
        worst=worst,
        method=method or DEFAULT_METHOD,
        cache_folder=cache_dir,
        text_encoder=text_encoder,
    )
    if json_file:
        write_json(json_file, summary)
    _say(quiet, f"wrote {out}: {out.stat().st_size / 2**20:.1f} MiB, {len(summary['explained'])} posts explained")


@cli.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--out", required=True, type=PATH, help="The folder to write.")
@click.option("--onnx", is_flag=True, help="Also the model from features to logits as ONNX, checked. Extra `onnx`.")
@overwrite_option
@result_options
def export(run_dir: Path, out: Path, onnx: bool, overwrite: bool, json_file: Path | None, quiet: bool) -> None:
    """Write all that another machine needs to predict: weights, configuration, fingerprint, model card."""
    from fusion.inference import export as exporting
    from fusion.run import Run

    _refuse_finished(out, Run(out).started, overwrite)
    files = exporting.export(Run(run_dir), out, onnx=onnx)
    if json_file:
        write_json(json_file, {"folder": str(out), "bytes": files})
    for name, size in files.items():
        _say(quiet, f"wrote {out / name}: {size / 2**20:.2f} MiB")


@cli.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--host", default="127.0.0.1", help="The address to listen on; the default is unreachable from outside.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, help="0 takes a free one.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A name by which browsers may reach the server, beside localhost; repeatable.",
)
@place_options
@device_option
@click.option("--quiet", is_flag=True, help="Print nothing but problems.")
def serve(
    run_dir: Path,
    host: str,
    port: int,
    allow_host: tuple[str, ...],
    image_weights: Path | None,
    text_encoder: str | None,
    device: str,
    quiet: bool,
) -> None:
    """Serve a page where one drops a photo and types a text, and a JSON endpoint: POST /predict and /explain."""
    from fusion.inference.predictor import Predictor
    from fusion.run import Run

    try:
        from fusion.serving.server import serve as start
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs the package {error.name}; pip install -e '.[web]'") from None
    chosen = _device(device, quiet)
    predictor = Predictor.open(Run(run_dir), chosen, image_weights=image_weights, text_encoder=text_encoder)
    start(predictor, host=host, port=port, allowed_hosts=allow_host, say=lambda line: _say(quiet, line))


@cli.command()
@click.option(
    "--out", type=PATH, default=Path("artifacts/demo"), help="Its folder; only what a demo wrote is replaced."
)
@click.option("--posts", type=click.IntRange(50), default=1000, help="How many posts to draw.")
@click.option("--seed", default=0, help="Seed of the drawing and of the training.")
@device_option
@click.pass_context
def demo(ctx: click.Context, out: Path, posts: int, seed: int, device: str) -> None:
    """Draw a data set, then prepare, extract, train, evaluate and report it: the whole job in minutes, on a CPU."""
    from fusion.report.figures import draw_run
    from fusion.run import Run
    from pipeline.demo import dataset as drawn

    started = time.perf_counter()
    page, figure = out / "run" / "report.html", out / "run" / "figure.png"
    folder, manifest, cache, run = (out / name for name in ("mvsa", "manifest.jsonl", "cache", "run"))
    _say(False, f"== draw {posts} posts into {folder}")
    drawn.replace(folder, posts=posts, seed=seed)
    for command, options in (
        (prepare, {"source": folder, "out": manifest, "ratios": "6:2:2", "seed": seed}),
        (extract, {"manifest": manifest, "out": cache, "preset": "packaged", "device": device}),
        (train, {"cache_dir": cache, "out": run, "preset": "demo", "seed": seed, "device": device}),
        (evaluate, {"run_dir": run, "device": device}),
        (report, {"run_dir": run, "out": page, "device": device}),
    ):
        _say(False, f"== {command.name}")
        ctx.invoke(command, overwrite=True, **options)
    draw_run(Run(run), Run(run).evaluation("test"), figure)
    _show(False, "")
    _say(False, f"done in {time.perf_counter() - started:.0f} s; open the report in a browser: {page}")
    _say(False, "files:")
    for path in (folder, manifest, cache, run / "model.safetensors", run / "evaluation-test.json", figure, page):
        _say(False, f"  {path}")


def _device(name: str, quiet: bool) -> "torch.device":
    """The device to use, said at start; a fall back from a GPU is said even when quiet."""
    from pipeline.common.device import resolve_device

    device = resolve_device(name)
    if name == "auto" and device.type == "cpu":
        say("device: cpu (no CUDA GPU found; all work runs on the processor)", error=True)
    else:
        _say(quiet, f"device: {device}")
    return device


def _refuse_finished(path: Path, finished: bool, overwrite: bool) -> None:
    if finished and not overwrite:
        raise InputError(f"{path}: is there already; give another name, or --overwrite")


def _report(summary: dict[str, Any], json_file: Path | None, quiet: bool) -> None:
    if json_file:
        write_json(json_file, summary)
    for key, value in summary.items():
        _print_entry(key, value, quiet)


def _print_entry(key: str, value: Any, quiet: bool, indent: int = 0) -> None:
    name = " " * indent + str(key).replace("_", " ")
    if isinstance(value, dict) and value:
        _say(quiet, f"{name}:")
        for inner, entry in value.items():
            _print_entry(inner, entry, quiet, indent + 2)
    elif value not in ({}, [], None):
        shown = (
            f"{value:.4g}"
            if isinstance(value, float)
            else ", ".join(map(str, value))
            if isinstance(value, list)
            else value
        )
        _say(quiet, f"{name}: {shown}")


def _say(quiet: bool, line: str) -> None:
    """Print a line; a line break in it is of what a file or a user named, and is escaped."""
    if not quiet:
        say(printable(line))


def _show(quiet: bool, text: str) -> None:
    """Print several lines that we laid out."""
    if not quiet:
        say(text)


if __name__ == "__main__":
    cli()
