"""The command line: the group of commands, each loaded when it is asked for, exit codes, and the demonstration."""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from pipeline.common.console import Console, escape_message, escaped_warnings
from pipeline.common.errors import InputError, as_command, problem_of
from pipeline.common.options import PATH, device_option

MODULES = {
    "pipeline.commands.extraction": ("prepare", "extract", "doctor"),
    "pipeline.commands.caches": ("inspect", "merge", "export-features"),
    "fusion.commands.training": ("probe", "train", "ensemble", "evaluate"),
    "fusion.commands.experiments": ("sweep", "reproduce", "study", "table", "folds"),
    "fusion.commands.deployment": ("predict", "explain", "report", "export", "serve"),
}


class Commands(click.Group):
    """Loads a command from its module when it is asked for.

    Turns a problem of the user's input into one line and exit code 1; usage errors stay click's own (2).
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*self.commands, *(name for names in MODULES.values() for name in names)])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for module, names in MODULES.items():
            if name in names:
                command: click.Command = getattr(import_module(module), name.replace("-", "_"))
                return command
        return super().get_command(ctx, name)

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **named)
        except click.ClickException as error:
            raise escape_message(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with escaped_warnings(), as_command():
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
    """Image-text classification: encode a data set once, then train fusion models from the cached features."""


@cli.command()
@click.option(
    "--out",
    type=PATH,
    default=Path("artifacts/demo"),
    help="Output folder; only the files of an earlier demo are replaced.",
)
@click.option("--posts", type=click.IntRange(100), default=1000, help="Number of posts to draw.")
@click.option("--seed", default=0, help="Seed for drawing and training.")
@device_option
@click.pass_context
def demo(ctx: click.Context, out: Path, posts: int, seed: int, device: str) -> None:
    """Draw a data set, then prepare, extract, train, evaluate and report it: the whole job in minutes, on a CPU.

    A second model learns another target of the same cache: what the pictures show.
    """
    from pipeline.demo import dataset

    started, console = time.perf_counter(), Console()
    folder, manifest, cache = out / "mvsa", out / "manifest.jsonl", out / "cache"
    run, scene_run, page = out / "run", out / "run-scene", "report.html"
    learn: dict[str, Any] = {"cache_dir": cache, "preset": "demo", "seed": seed, "device": device}
    short = ("mlm=false", "epochs=2")  # what a picture shows is learned easily

    def say_and_do(name: str, *about: str, **options: Any) -> None:
        console.say(" ".join(["==", name, *about]))
        command = cli.get_command(ctx, name)
        assert command
        ctx.invoke(command, overwrite=True, **options)

    console.say(f"== draw {posts} posts into {folder}")
    dataset.replace(folder, posts=posts, seed=seed)
    say_and_do("prepare", sources=(folder,), out=manifest, ratios="6:2:2", seed=seed)
    say_and_do("extract", manifest=manifest, out=cache, preset="packaged", device=device)
    say_and_do("train", out=run, **learn)
    say_and_do("evaluate", run_dir=run, device=device)
    say_and_do("report", run_dir=run, out=run / page, device=device)
    say_and_do(
        "train",
        "on what the pictures show, from the same cache",
        out=scene_run,
        target=dataset.SCENE,
        settings=short,
        **learn,
    )
    say_and_do("evaluate", run_dir=scene_run, device=device)
    say_and_do("report", run_dir=scene_run, out=scene_run / page, device=device)
    console.show("")
    console.say(f"done in {time.perf_counter() - started:.0f} s; open the report in a browser: {run / page}")
    console.say("files:")
    written = (one / name for one in (run, scene_run) for name in ("model.safetensors", "evaluation-test.json", page))
    for path in (folder, manifest, cache, *written):
        console.say(f"  {path}")


if __name__ == "__main__":
    cli()
