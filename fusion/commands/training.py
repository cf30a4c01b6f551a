"""probe, train, ensemble, evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fusion.commands.options import (
    ConfigSource,
    config_options,
    encoder_folder_option,
    open_with_splits,
    target_option,
)
from fusion.names import model_modules
from pipeline.common.console import Console, refuse_finished
from pipeline.common.errors import InputError
from pipeline.common.options import (
    PATH,
    SPLIT,
    cache_option,
    device_option,
    overwrite_option,
    result_options,
    splits_options,
)

if TYPE_CHECKING:
    from fusion.data.feature_store import Location
    from fusion.training.ensemble import EnsembleResult


@click.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@target_option
@splits_options
@click.option("--kinds", default="logistic", help="Kinds of classifiers: logistic,mlp,svm,knn, or some of them.")
@result_options
def probe(
    cache_dir: Path, target: str, splits: Path | None, allow_unmatched: bool, kinds: str, console: Console
) -> None:
    """Baselines without fusion: plain classifiers on mean-pooled features of text, image and both."""
    from fusion.evaluation.linear_probe import KINDS, probed_modalities
    from fusion.evaluation.linear_probe import probe as fit

    cache = open_with_splits(cache_dir, target, splits, allow_unmatched, console)
    chosen = [kind.strip() for kind in kinds.split(",")]
    if unknown := [kind for kind in chosen if kind not in KINDS]:
        raise InputError(f"--kinds {kinds}: no such kind of probe {unknown[0]!r}; known are {', '.join(KINDS)}")
    head = f"{'':15}{'val accuracy':>14}{'test accuracy':>15}{'test weighted F1':>18}"
    result: dict[str, dict[str, dict[str, float]]] = {}
    for kind in chosen:
        result[kind] = {}
        for modality in probed_modalities(cache):
            row = result[kind][modality] = fit(cache, modality, kind=kind).summary()
            if head:  # once a probe could be fitted
                console.say(head)
                head = ""
            scores = f"{row['val_accuracy']:>14.4f}{row['test_accuracy']:>15.4f}{row['test_weighted_f1']:>18.4f}"
            console.say(f"{kind:9}{modality:6}{scores}  {KINDS[kind].setting} {row['setting']:.2g}")
    console.save(result)


@click.command()
@click.argument("cache_dir", metavar="CACHE", type=PATH)
@click.option("--out", required=True, type=PATH, help="The run folder to write.")
@config_options()
@target_option
@splits_options
@click.option("--model", help=f"Same as --set model=NAME: {', '.join(model_modules())}.")
@click.option("--seed", type=int, help="Same as --set seed=N.")
@click.option(
    "--members",
    type=click.IntRange(1, 100),
    help="Train an ensemble of so many models, with the seeds from --seed on; its prediction is their mean.",
)
@encoder_folder_option
@click.option("--resume", is_flag=True, help="Resume the unfinished run at --out with its own configuration.")
@click.option(
    "--cache-in",
    type=click.Choice(["auto", "map", "ram", "device"]),
    default="auto",
    help="Where features are held: memory-mapped files, this process's memory, or the GPU.",
)
@click.option(
    "--remember",
    type=click.IntRange(0),
    default=1024,
    metavar="MIB",
    help="Memory for cached encodings of masked texts, in MiB; CPU only.",
)
@click.option(
    "--micro-batch",
    type=click.IntRange(1),
    help="Number of posts in the model at a time: less memory, the same gradient.",
)
@click.option("--checkpointing", is_flag=True, help="Recompute layers in the backward pass: less memory, more time.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard event files into the run folder.")
@device_option
@overwrite_option
@result_options
def train(
    cache_dir: Path,
    out: Path,
    source: ConfigSource,
    target: str,
    splits: Path | None,
    allow_unmatched: bool,
    model: str | None,
    seed: int | None,
    members: int | None,
    text_encoder: str | None,
    resume: bool,
    cache_in: "Location",
    remember: int,
    micro_batch: int | None,
    checkpointing: bool,
    tensorboard: bool,
    device: str,
    overwrite: bool,
    console: Console,
) -> None:
    """Train the fusion model or a baseline from a cache; write a run folder. torchrun uses several GPUs or hosts."""
    from fusion.data.requirements import settled
    from fusion.run import Run
    from fusion.training import train as training
    from fusion.training.allocator import keep_memory
    from fusion.training.build import masking_encoder
    from fusion.training.distributed import local_device, ranks
    from fusion.training.ensemble import train_ensemble
    from pipeline.common.signals import graceful_shutdown

    run = Run(out)
    if resume:
        run.require_unfinished()
    refuse_finished(out, run.finished, overwrite)
    own = run.resumable_config() if resume else None
    members = members or (run.metadata.get("members", 1) if resume else 1)
    config = own if own and not source.given(model=model, seed=seed) else source.load(model=model, seed=seed)
    chosen = local_device(console.device(device))
    execution = training.ExecutionOptions(cache_in, remember << 20, micro_batch, checkpointing, tensorboard)
    cache = open_with_splits(cache_dir, target, splits, allow_unmatched, console)
    config = settled(config, cache)
    keep_memory()
    with ranks(chosen) as here, graceful_shutdown() as stop:
        say = console.say if here.is_main else lambda line: None
        if not overwrite:
            run.require_members(members if members > 1 else None)
            cache = run.resume_or_start(config, cache, same_splits=splits is not None, say=say)
        encoder = masking_encoder(cache, chosen, config, text_encoder) if config.mlm else None
        options: dict[str, Any] = {
            **{"text_encoder": encoder, "execution": execution, "ranks": here, "stop": stop},
            **{"overwrite": overwrite, "quiet": console.quiet, "say": say},
        }
        result: EnsembleResult | training.TrainResult
        if members > 1:
            result = train_ensemble(cache, config, run, members, chosen, **options)
            what = _of_validation(result)
        else:
            result = training.train(cache, config, run, chosen, **options)
            what = f"best epoch {result.best_epoch} of {result.epochs}"
    if here.is_main:
        console.report(result.summary())
        console.say(f"wrote {out}: {what}")


@click.command()
@click.argument("run_dirs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, help="The run folder to write; the weights are copied into it.")
@cache_option
@device_option
@overwrite_option
@result_options
def ensemble(
    run_dirs: tuple[Path, ...], out: Path, cache_dir: Path | None, device: str, overwrite: bool, console: Console
) -> None:
    """Combine finished runs of one cache, of any models and settings, to one run: its prediction is the mean of theirs.

    The runs must have the same posts, splits and labels. In place of an ensemble its members are taken; all weigh
    alike.
    """
    from fusion.run import Run
    from fusion.training.combine import combine_runs

    refuse_finished(out, Run(out).finished, overwrite)
    chosen = console.device(device)
    result = combine_runs(run_dirs, out, chosen, cache=cache_dir, overwrite=overwrite, say=console.say)
    console.report(result.summary())
    console.say(f"wrote {out}: {_of_validation(result)}")


def _of_validation(result: "EnsembleResult") -> str:
    scores = result.validation
    return (
        f"{result.members} members, validation accuracy {scores['accuracy']:.4f}, "
        f"weighted F1 {scores['weighted_f1']:.4f}, temperature {result.temperature:.3f}"
    )


@click.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--split", type=SPLIT, default="test", help="Split to score.")
@splits_options
@cache_option
@device_option
@overwrite_option
@result_options
def evaluate(
    run_dir: Path,
    split: str,
    splits: Path | None,
    allow_unmatched: bool,
    cache_dir: Path | None,
    device: str,
    overwrite: bool,
    console: Console,
) -> None:
    """Evaluate a finished run: scores with 95 % intervals, by class, without duplicates of training posts, with
    shuffled modalities, and the paired difference to the linear probe. Writes evaluation-SPLIT.json into the run.
    """
    from fusion.evaluation import evaluate as evaluation
    from fusion.evaluation.display import format_scores
    from fusion.run import Run
    from pipeline.common.files import write_json
    from pipeline.common.locks import only_writer

    run, chosen = Run(run_dir), console.device(device)
    run.require_finished()
    with only_writer(run_dir):
        result = evaluation.evaluate(
            run,
            chosen,
            split=split,
            splits=splits,
            cache=cache_dir,
            allow_unmatched=allow_unmatched,
            begin=lambda path: refuse_finished(path, path.exists(), overwrite),
            say=console.say,
        )
        path = run.evaluation_file(split, result["of"])
        write_json(path, result)
    console.save(result)
    console.show(format_scores(result))
    console.say(f"wrote {path}")
