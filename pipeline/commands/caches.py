"""inspect, merge, export-features."""

from pathlib import Path

import click

from pipeline.common.console import Console, refuse_finished
from pipeline.common.errors import InputError
from pipeline.common.options import PATH, SPLIT, device_option, overwrite_option, remote_option, result_options


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
@remote_option
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


@click.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option("--out", required=True, type=PATH, help="The folder to write.")
@click.option(
    "--format",
    type=click.Choice(["parquet", "npy"]),
    default="parquet",
    help="One Parquet file, or NumPy files as clip-retrieval lays them out; needs the extra `parquet`.",
)
@click.option("--split", type=SPLIT, help="Write the posts of this split alone.")
@click.option(
    "--what",
    type=click.Choice(["pooled", "image", "text"]),
    default="pooled",
    help="Vectors to write: of both, of the images, of the texts.",
)
@overwrite_option
@result_options
def export_features(
    cache_dir: Path, out: Path, format: str, split: str | None, what: str, overwrite: bool, console: Console
) -> None:
    """Write a cache's pooled vectors for pandas, DuckDB, FAISS, clip-retrieval, with ids, labels, splits and hashes."""
    from pipeline.cache.export import export_features as export

    result = export(cache_dir, out, format=format, split=split, what=what, overwrite=overwrite, quiet=console.quiet)
    console.save(result)
    for name, size in result["files"].items():
        console.say(f"wrote {out / name}: {size / 2**20:.2f} MiB")
    left = f"; {result['failed']} that failed in extraction are left out" if result["failed"] else ""
    console.say(f"{result['posts']} posts{left}")
