"""The commands of stage one: each reads its options, calls one function and prints the result."""

import contextlib
from pathlib import Path
from typing import Any

import click

from pipeline.common.console import Console, refuse_finished
from pipeline.common.errors import InputError
from pipeline.common.options import (
    PATH,
    allow_unmatched_option,
    cluster_options,
    device_option,
    encoder_options,
    encoding_options,
    overwrite_option,
    result_options,
)
from pipeline.posts.formats import formats


@click.command()
@click.argument("source", metavar="MVSA_DIR|TEXTS.csv", type=PATH)
@click.option(
    "--format",
    "name",
    type=click.Choice(list(formats())),
    help="Format of the source; recognised by default.",
)
@click.option("--out", required=True, type=PATH, help="The manifest to write (JSONL).")
@click.option("--splits", type=PATH, help="CSV id,label,split; without it a stratified split is made.")
@click.option("--ratios", default="8:1:1", help="Ratios of train, val and test.")
@click.option("--seed", default=0, help="Seed of the stratified split.")
@click.option("--encoding", help="Encoding of an MVSA folder's texts, gb18030 unless given; never guessed.")
@allow_unmatched_option
@overwrite_option
@result_options
def prepare(
    source: Path,
    name: str | None,
    out: Path,
    splits: Path | None,
    ratios: str,
    seed: int,
    encoding: str | None,
    allow_unmatched: bool,
    overwrite: bool,
    console: Console,
) -> None:
    """Read a data set (an MVSA folder, or a CSV file id,text,label,split without images), apply the label rule, split
    the posts, count duplicates, and write a manifest.
    """
    from pipeline.posts.formats import format_of
    from pipeline.posts.manifest import write_manifest

    refuse_finished(out, out.exists(), overwrite)
    try:
        shares = [float(part) for part in ratios.split(":")]
    except ValueError:
        raise click.BadParameter(f"{ratios!r} is not like 8:1:1", param_hint="--ratios") from None
    read = format_of(source, name)
    options: dict[str, Any] = {"ratios": shares, "seed": seed, "encoding": encoding, "allow_unmatched": allow_unmatched}
    prepared = read.prepare(source, splits=splits, **options)
    write_manifest(out, prepared.posts)
    console.report(prepared.summary)
    console.say(f"wrote {out}: {len(prepared.posts)} posts")


@click.command()
@click.argument("manifest", type=PATH)
@click.option("--out", required=True, type=PATH, help="The cache folder to write.")
@encoder_options
@encoding_options
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
@overwrite_option
@result_options
def extract(
    manifest: Path,
    out: Path,
    batch_size: int,
    workers: int,
    device: str,
    store: str,
    max_fail_rate: float,
    append: bool,
    retry_failed: bool,
    repair: bool,
    part: str,
    engine: str,
    address: str | None,
    overwrite: bool,
    console: Console,
    **encoders: Any,
) -> None:
    """Run both encoders once over a manifest's posts; write a feature cache. The same command resumes after a kill."""
    from pipeline.encoders.fingerprint import NO_IMAGES
    from pipeline.encoders.load import EncoderChoice, load_image_encoder, load_text_encoder
    from pipeline.extraction import extract as extraction
    from pipeline.extraction.decode import start_server
    from pipeline.extraction.match_cache import match_existing_cache
    from pipeline.extraction.plan import Changes, Part
    from pipeline.posts.manifest import read_manifest

    posts = read_manifest(manifest, images=encoders["image"] != NO_IMAGES)
    changes = Changes(append, retry_failed, repair)
    one_part = Part.parse(part)
    refuse_finished(out, (out / "index.h5").exists() and not any((append, retry_failed, repair)), overwrite)
    chosen = console.device(device)
    start_server()
    choice = EncoderChoice(**encoders, device=str(chosen))
    choice = choice if overwrite else match_existing_cache(choice, out)
    image, text = load_image_encoder(choice), load_text_encoder(choice)
    console.say(f"encoders: {image.describe()} and {text.describe()}")
    with contextlib.ExitStack() as stack:
        elsewhere = None
        if engine == "ray":
            from pipeline.extraction.ray_engine import cluster, engine_on

            ray = stack.enter_context(cluster(address))
            elsewhere = engine_on(ray, choice, batch_size=batch_size, workers=workers, log=console.say)
        report = extraction.extract(
            posts,
            out,
            image,
            text,
            batch_size=batch_size,
            workers=workers,
            stored_dtype=store,
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


@click.command()
@click.argument("parts", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, help="The cache folder to write.")
@overwrite_option
@result_options
def merge(parts: tuple[Path, ...], out: Path, overwrite: bool, console: Console) -> None:
    """Merge the parts that `extract --part i/n` wrote into one cache."""
    from pipeline.cache.merge import merge as merge_parts
    from pipeline.cache.summary import summary

    refuse_finished(out, (out / "index.h5").exists(), overwrite)
    merged = merge_parts(parts, out, overwrite=overwrite)
    console.report(summary(merged))
    console.say(f"wrote {out}: {len(merged)} posts of {len(parts)} parts")


@click.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option("--verify", is_flag=True, help="Read everything: checksums, offsets, finiteness, manifest hash.")
@click.option("--re-encode", default=0, metavar="K", help="Also encode K random posts again and compare.")
@click.option(
    "--image-weights", type=PATH, help="For --re-encode: file of the image-encoder weights, if they were local."
)
@click.option("--text-encoder", help="For --re-encode: folder of the text encoder, if it was a local one.")
@device_option
@result_options
def inspect(
    cache_dir: Path,
    verify: bool,
    re_encode: int,
    image_weights: Path | None,
    text_encoder: str | None,
    device: str,
    console: Console,
) -> None:
    """Report what a cache holds, its size, and whether it is complete."""
    from pipeline.cache.reader import Cache
    from pipeline.cache.summary import summary

    cache = Cache(cache_dir)
    problems = cache.damage() if verify else []
    if re_encode:
        from pipeline.extraction.verify import encode_again, load_encoders

        encoders = load_encoders(cache, str(console.device(device)), image_weights, text_encoder)
        problems += encode_again(cache, *encoders, re_encode)
    checked = {"problems": problems} if verify or re_encode else {}
    console.report(summary(cache) | checked)
    if problems:
        raise InputError(
            f"{cache_dir}: damaged; {'; '.join(problems)}; `extract` with --repair makes damaged shards again"
        )
