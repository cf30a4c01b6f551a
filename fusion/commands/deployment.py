"""predict, explain, report, export, serve."""

from pathlib import Path
from typing import Any

import click

from pipeline.common.console import Console, refuse_finished
from pipeline.common.errors import InputError
from pipeline.common.options import (
    PATH,
    SPLIT,
    cache_option,
    device_option,
    encoding_options,
    local_encoder_options,
    overwrite_option,
    remote_option,
    result_options,
)
from pipeline.encoders.options import runtime_option


@click.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.argument("posts", required=False, type=PATH)
@click.option("--image", type=PATH, help="The image file of one post.")
@click.option("--text", help="The text of one post.")
@click.option("--out", type=PATH, help="Where the predictions for a file of posts go (JSONL).")
@local_encoder_options
@encoding_options
@remote_option
@click.option(
    "--max-fail-rate",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Exit 1 if a larger fraction of the posts got no prediction.",
)
@device_option
@runtime_option
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
    runtime: str,
    overwrite: bool,
    console: Console,
) -> None:
    """Predict class probabilities of raw posts: of one given by --image and --text, or of all of POSTS with --out.

    POSTS is a file like a manifest (JSONL); `text` or `image` may be missing if the run was trained for that. After
    a kill the same command resumes.
    """
    from fusion.inference.predict_file import predict_file
    from fusion.inference.predictor import Predictor, predict_one
    from fusion.run import Run
    from pipeline.extraction.decode import start_server

    single = image is not None or text is not None
    if single == (posts is not None) or (posts is None) != (out is None):
        raise click.UsageError("give either --image and --text, or POSTS and --out")
    if out:
        refuse_finished(out, out.exists(), overwrite)
    if out or image:
        start_server()
    chosen = console.device(device)
    where: dict[str, Any] = {"image_weights": image_weights, "text_encoder": text_encoder}
    predictor = Predictor.open(Run(run_dir), chosen, **where, runtime=runtime, quick=single)
    if not posts or not out:
        prediction = predict_one(predictor, text, image)
        console.save(prediction.record())
        wide = max(10, *(len(label) + 1 for label in prediction.probabilities))
        for label, probability in prediction.probabilities.items():
            console.say(f"{label:{wide}}{probability:>7.1%}  {'█' * round(40 * probability)}")
        if prediction.flags:
            console.say(f"flags: {', '.join(prediction.flags)}")
        return
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "overwrite": overwrite}
    report = predict_file(predictor, posts, out, **options, quiet=console.quiet)
    console.report(report.summary())
    without = f", {report.failed} of them without a prediction, each with its reason" if report.failed else ""
    console.say(f"wrote {out}: {report.posts} posts{without}")
    if report.failed > max_fail_rate * report.posts:
        raise InputError(
            f"{report.failed} of {report.posts} posts got no prediction, over --max-fail-rate {max_fail_rate:g}; "
            f"their lines in {out} give the reasons"
        )


@click.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--out", type=PATH, help="The folder for the page, the pictures and the JSON.")
@click.option("--ids", help="Posts of the run's cache by id: a,b,c.")
@click.option(
    "--worst",
    type=click.IntRange(1),
    metavar="N",
    help="Explain the N posts with the lowest probability of their label.",
)
@click.option("--image", type=PATH, help="Image file of your own post.")
@click.option("--text", help="Text of the post given with --image.")
@click.option("--compare", multiple=True, type=PATH, metavar="RUN", help="Another run to show beside it; repeatable.")
@click.option("--method", help="attention, rollout or gradient; the default was measured to be the most faithful.")
@click.option(
    "--faithfulness", is_flag=True, help="Measure explanation faithfulness by occlusion instead of writing a page."
)
@click.option("--posts", type=click.IntRange(2), default=200, help="Number of posts for --faithfulness, at most.")
@click.option("--split", type=SPLIT, help="Split for --worst (default test) and --faithfulness (default val).")
@cache_option
@local_encoder_options
@remote_option
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
    console: Console,
) -> None:
    """Explain predictions: weights of patches and words (table 5); with --compare, several runs side by side."""
    from fusion.explanation.explain import DEFAULT_METHOD
    from fusion.inference.predictor import Predictor
    from fusion.run import Run

    local: dict[str, Any] = {"image_weights": image_weights, "text_encoder": text_encoder}
    raw = image is not None or text is not None
    wanted = [one.strip() for one in (ids or "").split(",") if one.strip()]
    if sum([bool(wanted), worst is not None, raw, faithfulness]) != 1 or (out is None) != faithfulness:
        raise click.UsageError("give --out and one of --ids, --worst, or --image and --text; or --faithfulness alone")
    if faithfulness or out is None:
        from fusion.explanation import faithfulness as check

        predictor = Predictor.open(Run(run_dir), console.device(device), **local)
        measured = check.of_run(predictor, split or "val", posts, cache=cache_dir, quiet=console.quiet, say=console.say)
        console.save(measured)
        console.show(check.format_faithfulness(measured))
        return
    from fusion.report import gallery

    refuse_finished(out, (out / gallery.PAGE).exists(), overwrite)
    runs, chosen = [Run(folder) for folder in (run_dir, *compare)], console.device(device)
    method = method or DEFAULT_METHOD
    if raw:
        shown, looks = gallery.view_raw_post(
            [Predictor.open(run, chosen, **local) for run in runs], text, image, method
        )
    else:
        wanted = wanted or gallery.most_wrong(runs[0].evaluation(split or "test"), worst or 0)
        shown, looks = gallery.view_cached_posts(
            runs,
            wanted,
            chosen,
            method=method,
            cache=cache_dir,
            image_weights=image_weights,
            text_encoder=text_encoder,
            evaluated=worst is not None,
            say=console.say,
        )
    console.save(gallery.write_gallery(out, shown, looks))
    for note in sorted({one.note for look in looks for one in look.explanations if one.note}):
        console.say(note)
    console.say(f"wrote {out / gallery.PAGE}: {len(shown)} posts, {len(looks)} runs, method {method}")


@click.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--out", required=True, type=PATH, help="The page to write (HTML).")
@click.option("--split", type=SPLIT, default="test", help="Split whose evaluation to report.")
@click.option(
    "--worst",
    type=click.IntRange(0),
    default=12,
    help="Number of posts to show, those with the lowest probability of their label.",
)
@click.option("--method", help="Explanation method: attention, rollout or gradient.")
@cache_option
@local_encoder_options
@remote_option
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
    image_weights: Path | None,
    text_encoder: str | None,
    device: str,
    overwrite: bool,
    console: Console,
) -> None:
    """Write a report of an evaluated run: one HTML file to read offline or to send to a colleague."""
    from fusion.explanation.explain import DEFAULT_METHOD
    from fusion.report.run_report import write_report
    from fusion.run import Run

    refuse_finished(out, out.exists(), overwrite)
    summary = write_report(
        Run(run_dir),
        out,
        console.device(device),
        split=split,
        worst=worst,
        method=method or DEFAULT_METHOD,
        cache=cache_dir,
        image_weights=image_weights,
        text_encoder=text_encoder,
        say=console.say,
    )
    console.save(summary)
    why = f" ({summary['not_explained']})" if "not_explained" in summary else ""
    console.say(f"wrote {out}: {out.stat().st_size / 2**20:.1f} MiB, {len(summary['explained'])} posts explained{why}")


@click.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--out", required=True, type=PATH, help="The folder to write.")
@click.option(
    "--onnx",
    is_flag=True,
    help="Also write the model (features to logits) as ONNX and check it.",
)
@overwrite_option
@result_options
def export(run_dir: Path, out: Path, onnx: bool, overwrite: bool, console: Console) -> None:
    """Write what another machine needs to predict: weights, configuration, fingerprint, model card."""
    from fusion.inference import export as exporting
    from fusion.run import Run

    refuse_finished(out, Run(out).started, overwrite)
    files = exporting.export(Run(run_dir), out, onnx=onnx)
    console.save({"folder": str(out), "bytes": files})
    for name, size in files.items():
        console.say(f"wrote {out / name}: {size / 2**20:.2f} MiB")


@click.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option(
    "--host", default="127.0.0.1", help="Address to listen on; the default is unreachable from other machines."
)
@click.option("--port", type=click.IntRange(0, 65535), default=7860, help="Port; 0 takes a free one.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Another host name by which browsers may reach the server; repeatable.",
)
@local_encoder_options
@device_option
@runtime_option
@click.option("--quiet", is_flag=True, help="Print only warnings and errors.")
def serve(
    run_dir: Path,
    host: str,
    port: int,
    allow_host: tuple[str, ...],
    image_weights: Path | None,
    text_encoder: str | None,
    device: str,
    runtime: str,
    quiet: bool,
) -> None:
    """Serve a page where one drops a photo and types a text, and a JSON endpoint: POST /predict and /explain."""
    from fusion.inference.predictor import Predictor
    from fusion.run import Run

    try:
        from fusion.serving.server import serve as start
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs the package {error.name}; pip install -e '.[web]'") from None
    console = Console(quiet)
    chosen = console.device(device)
    where: dict[str, Any] = {"image_weights": image_weights, "text_encoder": text_encoder}
    predictor = Predictor.open(Run(run_dir), chosen, **where, runtime=runtime, quick=True)
    start(predictor, host=host, port=port, allowed_hosts=allow_host, say=console.say)
