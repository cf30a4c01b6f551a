"""prepare, extract, doctor."""

import contextlib
import csv
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pipeline.common.console import Console, refuse_finished
from pipeline.common.errors import InputError, option
from pipeline.common.folders import is_file_of
from pipeline.common.options import (
    PATH,
    SOURCE,
    Command,
    all_of,
    allow_unmatched_option,
    cluster_options,
    device_option,
    encoding_options,
    overwrite_option,
    remote_option,
    result_options,
)
from pipeline.common.remote import is_url
from pipeline.encoders.options import encoder_options, runtime_option
from pipeline.posts.formats import ReadOptions, formats
from pipeline.posts.manifest import SPLITS


def _read_options(command: Command) -> Command:
    """The options that say how `prepare` reads a source; the command gets `options`, a ReadOptions."""

    @wraps(command)
    def with_options(
        *arguments: Any,
        encoding: str | None,
        columns: str | None,
        image_pattern: str | None,
        targets: str | None,
        template: str | None,
        **named: Any,
    ) -> Any:
        pairs = [part.partition("=") for part in columns.split(",")] if columns else []
        if wrong := next((pair for pair in pairs if not (pair[0].strip() and pair[2].strip())), None):
            raise click.BadParameter(f"{''.join(wrong)!r} is not like text=title", param_hint="--columns")
        read = ReadOptions(
            encoding,
            {name.strip(): column.strip() for name, _, column in pairs},
            image_pattern,
            tuple(name.strip() for name in targets.split(",")) if targets else (),
            template,
        )
        return command(*arguments, options=read, **named)

    return all_of(
        click.option(
            "--columns", help="Columns of a table: id=..,text=..,image=..,label=..,split=..; text=a+b joins two."
        ),
        click.option(
            "--image-pattern", help="Where a table's images lie: 'images/{id}.jpg', with column names in braces."
        ),
        click.option("--targets", help="Columns of a table that are further targets: A,B,..."),
        click.option("--template", help="How a text and its target become one text (Twitter-15 and -17)."),
        click.option("--encoding", help="Encoding of the texts, where the format's own is another; never guessed."),
    )(with_options)


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=SOURCE)
@click.option(
    "--format",
    "name",
    type=click.Choice(list(formats())),
    help="Format of the source; recognised by default.",
)
@click.option("--out", required=True, type=PATH, help="The manifest to write (JSONL).")
@click.option(
    "--labels",
    metavar="A,B,...",
    help='The classes in this order, "quoted" if with a comma; by default the format\'s, else sorted.',
)
@click.option("--splits", type=PATH, help="CSV id,label,split in place of the source's own splits.")
@click.option(
    "--test-split", type=click.Choice(SPLITS), help="Split of the source to test on, if its test has no labels."
)
@click.option("--ratios", help="Ratios of train, val and test, drawn stratified; 8:1:1 where the source has no splits.")
@click.option("--seed", default=0, help="Seed of the stratified split.")
@_read_options
@click.option(
    "--max-fail-rate",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Exit 1 if a larger fraction of the rows is no post.",
)
@allow_unmatched_option
@overwrite_option
@result_options
def prepare(
    sources: tuple[Path | str, ...],
    name: str | None,
    out: Path,
    labels: str | None,
    splits: Path | None,
    test_split: str | None,
    ratios: str | None,
    seed: int,
    options: ReadOptions,
    max_fail_rate: float,
    allow_unmatched: bool,
    overwrite: bool,
    console: Console,
) -> None:
    """Read a data set, split its posts, count classes and duplicates, and write a manifest.

    SOURCE is a file or a folder; or several tars or Parquet files, also as 'shards/{000..099}.tar' or as URLs.
    """
    from pipeline.posts.manifest import write_manifest
    from pipeline.posts.prepare import prepare as prepare_posts
    from pipeline.posts.source_set import files_of

    refuse_finished(out, out.exists(), overwrite)
    files = files_of(sources)
    if isinstance(files, list) and any(is_file_of(out, Path(file)) for file in files if not is_url(file)):
        raise InputError(f"{option('out', out)}: the posts are read from it; name another file")
    try:
        shares = [float(part) for part in ratios.split(":")] if ratios else None
    except ValueError:
        raise click.BadParameter(f"{ratios!r} is not like 8:1:1", param_hint="--ratios") from None
    prepared = prepare_posts(
        files,
        name=name,
        options=options,
        labels=[label.strip() for label in next(csv.reader([labels], skipinitialspace=True))] if labels else (),
        splits=splits,
        test_split=test_split,
        ratios=shares,
        seed=seed,
        allow_unmatched=allow_unmatched,
        max_fail_rate=max_fail_rate,
    )
    write_manifest(out, prepared.posts, prepared.names)
    console.report(prepared.summary)
    for line in prepared.warnings:
        console.warn(f"warning: {line}")
    console.say(f"wrote {out}: {len(prepared.posts)} posts")


@click.command()
@click.argument("manifest", type=PATH)
@click.option("--out", required=True, type=PATH, help="The cache folder to write.")
@encoder_options
@encoding_options
@device_option
@runtime_option
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
    "--keep",
    type=click.Choice(["all", "pooled"]),
    default="all",
    help="Features to keep: all, or each post's two pooled vectors, for models and tools that read these alone.",
)
@click.option(
    "--max-fail-rate",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Exit 1 if a larger fraction of the posts failed.",
)
@click.option("--append", is_flag=True, help="Add the posts of a larger manifest to a finished cache.")
@click.option("--retry-failed", is_flag=True, help="Rebuild the shards that hold failed posts.")
@click.option("--repair", is_flag=True, help="Check every shard's bytes, and rebuild the damaged ones.")
@click.option("--part", default="1/1", help="i/n: make only part i of n, for `merge`.")
@cluster_options
@remote_option
@overwrite_option
@result_options
def extract(
    manifest: Path,
    out: Path,
    batch_size: int,
    workers: int,
    device: str,
    store: str,
    keep: str,
    max_fail_rate: float,
    append: bool,
    retry_failed: bool,
    repair: bool,
    part: str,
    engine: str,
    address: str | None,
    runtime: str,
    overwrite: bool,
    console: Console,
    **encoders: Any,
) -> None:
    """Run both encoders once over a manifest's posts; write a feature cache. The same command resumes after a kill."""
    from pipeline.encoders.fingerprint import NO_IMAGES
    from pipeline.encoders.licences import licence_line, restriction
    from pipeline.encoders.load import EncoderChoice, load_image_encoder, load_text_encoder
    from pipeline.encoders.runtime import use_runtime
    from pipeline.encoders.runtimes import AUTO, name_of
    from pipeline.extraction import extract as extraction
    from pipeline.extraction.decode import start_server
    from pipeline.extraction.match_cache import existing_runtimes, match_existing_cache
    from pipeline.extraction.plan import Changes, Part
    from pipeline.posts.image_files import require_readable
    from pipeline.posts.manifest import fault_note, read_manifest
    from pipeline.posts.shown import shown

    listed = read_manifest(manifest, images=encoders["image"] != NO_IMAGES)
    posts = listed.posts
    if listed.ignored:
        console.say(f"{manifest}: not used: {', '.join(map(shown, listed.ignored[:20]))}")
    if len(listed.faults) > max_fail_rate * (len(posts) + len(listed.faults)):
        raise InputError(
            f"{manifest}: {len(listed.faults)} lines have faults, over --max-fail-rate {max_fail_rate:g}; "
            f"the first: {listed.faults[0]}"
        )
    if encoders["image"] != NO_IMAGES:
        require_readable([post.image for post in posts], max_fail_rate, str(manifest))
    if listed.faults:
        console.warn(fault_note(listed, manifest))
    changes = Changes(append, retry_failed, repair)
    one_part = Part.parse(part)
    refuse_finished(out, (out / "index.h5").exists() and not any((append, retry_failed, repair)), overwrite)
    chosen = console.device(device)
    start_server()
    choice = EncoderChoice(**encoders, device=str(chosen))
    choice = choice if overwrite else match_existing_cache(choice, out)
    image, text = load_image_encoder(choice), load_text_encoder(choice)
    began = {} if overwrite else existing_runtimes(out)
    for encoder in (image, text):
        wanted = began.get(encoder.kind, AUTO) if runtime == AUTO else runtime
        use_runtime(encoder, wanted, posts=len(posts) // one_part.of, say=console.say)
    console.say(f"encoders: {image.describe()} and {text.describe()}")
    for encoder in (image, text):
        if encoder.licence:
            tell = console.warn if restriction(encoder.licence) else console.say
            tell(licence_line(encoder.name, encoder.licence))
    with contextlib.ExitStack() as stack:
        elsewhere = None
        if engine == "ray":
            from pipeline.extraction.ray_engine import cluster, engine_on

            ray = stack.enter_context(cluster(address))
            runtimes = [name_of(encoder.runtime) for encoder in (image, text)]
            how: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "log": console.say}
            elsewhere = engine_on(ray, choice, runtimes=runtimes, **how)
        report = extraction.extract(
            posts,
            out,
            image,
            text,
            names=listed.names,
            batch_size=batch_size,
            workers=workers,
            stored_dtype=store,
            keep=keep,
            part=one_part,
            changes=changes,
            overwrite=overwrite,
            engine=elsewhere,
            quiet=console.quiet,
            say=console.say,
        )
    console.report(report.summary())
    encoded = report.posts - len(report.failed)
    console.say(f"wrote {out}: {encoded} of {report.posts} posts, {report.bytes / 2**20:.0f} MiB")
    if len(report.failed) > max_fail_rate * report.posts:
        raise InputError(
            f"{len(report.failed)} of {report.posts} posts failed, over --max-fail-rate {max_fail_rate:g}; "
            f"{out / extraction.FAILURES} gives the reasons"
        )


@click.command()
@encoder_options
@click.option("--out", type=PATH, default=Path(), help="Folder where a cache would be written.")
@click.option("--offline", is_flag=True, help="Use only the hub's local cache.")
@result_options
def doctor(out: Path, console: Console, **encoders: Any) -> None:
    """Check whether everything that `extract` needs is available: weights, devices, memory, disk."""
    from pipeline.encoders.load import EncoderChoice
    from pipeline.extraction.doctor import examine

    findings = list(examine(EncoderChoice(**encoders), out))
    for finding in findings:
        console.say(f"{finding.mark:4} {finding.what}: {finding.found}")
    console.save([vars(finding) for finding in findings])
    missing = [finding.what for finding in findings if finding.ok is False]
    if missing:
        raise InputError(f"not ready: {', '.join(missing)}")
