"""Shows the progress of an extraction: a bar, and after the first shard how long the rest will take."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from pipeline.extraction.plan import Plan


class ExtractionProgress:
    """How far the making of a plan's shards is. A context manager that shows a bar unless `quiet`.

    `made` holds the numbers of the shards that are done.
    """

    def __init__(self, todo: Plan, *, quiet: bool, say: Callable[[str], None]) -> None:
        self.made: set[int] = set()
        self._posts = {number: len(todo.shards[number]) for number in todo.todo}
        self._say, self._quiet = say, quiet
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        disable = self._quiet or not self._posts
        self._bar: tqdm[Any] = tqdm(total=sum(self._posts.values()), unit="post", desc="extract", disable=disable)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def done(self, number: int) -> None:
        """Shard `number` is in the cache folder."""
        self.made.add(number)
        self._bar.update(self._posts[number])
        left = len(self._posts) - len(self.made)
        if len(self.made) == 1 and left:
            with tqdm.external_write_mode():  # not into the middle of the bar
                self._say(self._estimate(number, left))

    def _estimate(self, first: int, left: int) -> str:
        seconds = time.perf_counter() - self._started
        rate = self._posts[first] / seconds
        posts = sum(self._posts.values()) - self._posts[first]
        shards = "1 shard" if left == 1 else f"{left} shards"
        return f"first shard: {rate:.1f} posts/s; {shards} left, {posts} posts, about {duration(posts / rate)}"


def duration(seconds: float) -> str:
    """A duration for people: 47 s, 12 min, 3 h 20 min, 4 d 7 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
