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
    "pipeline.commands": ("prepare", "extract", "inspect", "merge", "doctor"),
    "fusion.commands.training": ("probe", "train", "evaluate"),
    "fusion.commands.experiments": ("sweep", "reproduce", "table", "folds"),
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
                command: click.Command = getattr(import_module(module), name)
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
    """Image-text sentiment: encode a data set once, then train fusion models from the cached features in seconds."""


@cli.command()
@click.option(
    "--out",
    type=PATH,
    default=Path("artifacts/demo"),
    help="Output folder; only the files of an earlier demo are replaced.",
)
@click.option("--posts", type=click.IntRange(50), default=1000, help="Number of posts to draw.")
@click.option("--seed", default=0, help="Seed for drawing and training.")
@device_option
@click.pass_context
def demo(ctx: click.Context, out: Path, posts: int, seed: int, device: str) -> None:
    """Draw a data set, then prepare, extract, train, evaluate and report it: the whole job in minutes, on a CPU."""
    from pipeline.demo import dataset

    started, console = time.perf_counter(), Console()
    page = out / "run" / "report.html"
    folder, manifest, cache, run = (out / name for name in ("mvsa", "manifest.jsonl", "cache", "run"))
    console.say(f"== draw {posts} posts into {folder}")
    dataset.replace(folder, posts=posts, seed=seed)
    for name, options in (
        ("prepare", {"source": folder, "out": manifest, "ratios": "6:2:2", "seed": seed}),
        ("extract", {"manifest": manifest, "out": cache, "preset": "packaged", "device": device}),
        ("train", {"cache_dir": cache, "out": run, "preset": "demo", "seed": seed, "device": device}),
        ("evaluate", {"run_dir": run, "device": device}),
        ("report", {"run_dir": run, "out": page, "device": device}),
    ):
        console.say(f"== {name}")
        command = cli.get_command(ctx, name)
        assert command
        ctx.invoke(command, overwrite=True, **options)
    console.show("")
    console.say(f"done in {time.perf_counter() - started:.0f} s; open the report in a browser: {page}")
    console.say("files:")
    for path in (folder, manifest, cache, run / "model.safetensors", run / "evaluation-test.json", page):
        console.say(f"  {path}")


if __name__ == "__main__":
    cli()
