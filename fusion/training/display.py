"""Shows a training as it goes on: a progress bar, a line for each epoch, TensorBoard events."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

from tqdm import tqdm

from fusion.run import Run
from fusion.training.epoch import Step

EpochMetrics = dict[str, Any]


class Display:
    """The bar on standard error, the lines through `say`, and event files where they are wanted. A context manager."""

    def __init__(
        self,
        run: Run,
        *,
        epochs: int,
        steps: int,
        done: int,
        best_score: float,
        quiet: bool,
        say: Callable[[str], None],
        tensorboard: bool,
    ) -> None:
        self._run, self._steps, self.epochs, self._done = run, steps, epochs, done
        self._best_score = best_score
        self._quiet, self._say, self._tensorboard = quiet, say, tensorboard
        self._events: Callable[[EpochMetrics], None] = lambda line: None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self._tensorboard:
            from fusion.training.tensorboard import event_files

            self._events = self._open.enter_context(event_files(self._run.folder, after=self._done))
        total, initial = self.epochs * self._steps, self._done * self._steps
        bar = tqdm(total=total, initial=initial, unit="step", desc="train", disable=self._quiet)
        self._bar = self._open.enter_context(bar)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def step(self, step: Step) -> None:
        """After a step: move the bar."""
        best = f"{self._best_score:.4f}" if self._best_score >= 0 else "-"
        self._bar.set_postfix(loss=f"{step.sentiment:.3f}", mlm=f"{step.mlm:.3f}", best_val_f1=best, refresh=False)
        self._bar.update()

    def epoch(self, line: EpochMetrics) -> None:
        """After an epoch: one line of text, and its events."""
        if better := line["val_weighted_f1"] > self._best_score:
            self._best_score = line["val_weighted_f1"]
        self._events(line)
        speed = line["speed"]
        cached = f", {speed['remembered_share']:.0%} of masked texts from memory" if "remembered_share" in speed else ""
        self._say(
            f"epoch {line['epoch']}: loss {line['loss_sentiment']:.4f} + {line['loss_mlm']:.3f}, "
            f"val accuracy {line['val_accuracy']:.4f}, weighted F1 {line['val_weighted_f1']:.4f}"
            f"{' (best)' if better else ''}; {line['seconds']:.1f} s, "
            f"{speed['posts_per_second']:.0f} posts/s, {speed['waiting_share']:.1%} waiting for data{cached}"
        )
