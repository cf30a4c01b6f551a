"""Extracts features: decodes, encodes and writes, overlapped, shard by shard, resumably.

Worker processes decode; as many threads as the processor gives encode, each a batch at a time on one core, so that none
waits for another; one thread writes. At most a few shards are in memory at once, however many posts there are.
"""

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache import hdf5
from pipeline.cache.keep import ALL, require_keep
from pipeline.cache.reader import Cache, remove_cache_files
from pipeline.cache.records import PooledFeatures, ShardFeatures
from pipeline.common.errors import InputError, option
from pipeline.common.files import csv_text, write_text
from pipeline.common.locks import only_writer
from pipeline.common.signals import StopRequest, graceful_shutdown
from pipeline.encoders.load import ImageEncoder, NoImages, TextEncoder
from pipeline.extraction.decode import Decoders
from pipeline.extraction.encode import Seconds, ShardJob
from pipeline.extraction.plan import (
    NO_CHANGES,
    WHOLE,
    Changes,
    Part,
    Plan,
    feature_bytes,
    plan,
    record_bytes,
    require_space,
)
from pipeline.extraction.progress import ExtractionProgress
from pipeline.posts.manifest import Post

FAILURES = "failures.csv"

# Makes the shards of a plan in a folder, elsewhere than in this process; see pipeline.extraction.ray_engine.
Engine = Callable[[Plan, Path, dict[str, Any], ExtractionProgress, StopRequest], Seconds]


@dataclass
class ExtractReport:
    """The outcome of an extraction: counts, reasons of failure, and seconds spent in each step."""

    posts: int = 0
    encoded: int = 0  # of them in this call
    failed: dict[str, str] = field(default_factory=dict)  # id -> reason
    shards_kept: int = 0
    shards_written: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    step: Seconds = field(default_factory=Seconds)
    seconds: float = 0.0
    bytes: int = 0

    def summary(self) -> dict[str, Any]:
        """For people and scripts. `posts_per_second` counts the posts of the shards that this call wrote; seconds of
        decode, encode and waiting are summed over workers and threads.
        """
        return {
            "posts": self.posts,
            "failed": self.failed,
            "flags": dict(self.flags),
            "shards": {"written": self.shards_written, "kept": self.shards_kept},
            "seconds": {"all": self.seconds, **vars(self.step)},
            "posts_per_second": self.encoded / self.seconds,
            "bytes": self.bytes,
        }


def cache_fingerprint(image: ImageEncoder, text: TextEncoder, stored_dtype: str) -> dict[str, Any]:
    """Everything that changes the meaning of the features; what does not (batch size, workers, folder, device) is left
    out.
    """
    return {"image": image.fingerprint, "text": text.fingerprint, "stored_dtype": stored_dtype}


def extract(
    posts: Sequence[Post],
    out: str | Path,
    image: ImageEncoder,
    text: TextEncoder,
    *,
    batch_size: int = 32,
    workers: int = 2,
    stored_dtype: str = "float16",
    keep: str = ALL,
    names: Mapping[str, Sequence[str]] | None = None,
    part: Part = WHOLE,
    changes: Changes = NO_CHANGES,
    overwrite: bool = False,
    engine: Engine | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> ExtractReport:
    """Write the cache `out` of `posts`, or a part of it; resume an unfinished one, or change a finished one. `names`:
    the label names of each target in order; labels that are not among them come behind, sorted. keep: `all` features,
    or `pooled`, each post's two vectors alone.

    Finished shards whose posts, source bytes and fingerprint are unchanged are kept, but for `overwrite`, which begins
    anew. `engine` makes the shards elsewhere than in this process. With NoImages for `image` the posts' images are not
    looked at. Raises InputError if what lies there is of something else, if another process writes there, if it won't
    fit, or when stopped by a signal.
    """
    started, out = time.perf_counter(), Path(out)
    require_keep(keep)
    if isinstance(image, NoImages):
        posts = [replace(post, image=None) for post in posts]
    elif without := next((post for post in posts if post.image is None), None):
        raise InputError(f"post {without.id!r} has no image; texts alone go with {option('image_encoder', 'none')}")
    out.mkdir(parents=True, exist_ok=True)
    fingerprint = cache_fingerprint(image, text, stored_dtype)
    with only_writer(out), graceful_shutdown() as stop:
        if overwrite:
            remove_cache_files(out)
        todo = plan(posts, out, fingerprint, part, changes, names, keep)
        if todo.note:
            say(todo.note)
        needed = feature_bytes(todo, image, text, stored_dtype)
        free = require_space(needed + record_bytes(todo), out)
        count = sum(len(todo.shards[number]) for number in todo.todo)
        say(f"to do: {count} posts, {needed / 2**20:.1f} MiB of features; {free / 2**30:.1f} GiB free")
        report = ExtractReport(posts=sum(map(len, todo.shards.values())), encoded=count)
        report.shards_kept, report.shards_written = len(todo.shards) - len(todo.todo), len(todo.todo)
        if todo.todo:
            # The checksums are in the index, so damaged shards are deleted before it.
            for number in todo.todo if changes.repair else ():
                (out / hdf5.shard_name(number)).unlink(missing_ok=True)
            (out / hdf5.INDEX).unlink(missing_ok=True)  # the index describes shards that are about to change
        with ExtractionProgress(todo, quiet=quiet, say=say) as progress, _broken_off_in_one_line(todo, progress, out):
            if todo.todo and engine:
                report.step = engine(todo, out, fingerprint, progress, stop)
            elif todo.todo:
                report.step = make_shards(todo, out, image, text, fingerprint, batch_size, workers, progress, stop)
            _refuse_if_stopped(stop, todo, progress, out)
            _write_failures(todo, out)
            sys.audit("mscf.index", str(out))
            hdf5.write_index(out, todo.shards, fingerprint, names=todo.names, part=_part_marks(todo))
        finished = Cache(out)
    report.failed = {record.id: record.reason for record in finished.records if record.reason}
    report.flags = Counter(flag for record in finished.records for flag in record.flags)
    report.bytes = finished.bytes_on_disk()
    report.seconds = time.perf_counter() - started
    return report


def make_shards(
    todo: Plan,
    out: Path,
    image: ImageEncoder,
    text: TextEncoder,
    fingerprint: dict[str, Any],
    batch_size: int,
    workers: int,
    progress: ExtractionProgress,
    stop: StopRequest,
) -> Seconds:
    """Decode, encode and write the shards that are to be made. Returns the seconds spent in each step."""
    total, dtype = Seconds(), np.dtype(fingerprint["stored_dtype"])
    started: deque[tuple[int, ShardJob, list[Future[Seconds]]]] = deque()
    writing: Future[float] | None = None
    with (
        encoding_threads(image.device) as threads,
        ThreadPoolExecutor(1, "write") as writer,
        Decoders(image.transform, image.pixels_shape, workers=workers) as decoders,
    ):

        def begin(number: int) -> None:
            job = ShardJob(todo.shards[number], image, text, dtype, todo.keep)
            futures = [threads.submit(job.encode_texts, rows) for rows in job.text_batches(batch_size)]
            for rows in job.image_batches(batch_size):  # waits here while enough of them are decoded
                reading = decoders.read([path for row in rows if (path := job.posts[row].image)])
                futures.append(threads.submit(job.encode_images, rows, reading, decoders))
            started.append((number, job, futures))

        def finish() -> None:
            nonlocal writing
            number, job, futures = started.popleft()
            for future in futures:
                total.add(future.result())
            features = job.features(text_pooled=todo.text_pooled)
            if writing:
                total.write += writing.result()  # at most one finished shard waits in memory
            writing = writer.submit(_write, out, number, features, fingerprint, progress)

        try:
            for number in todo.todo:
                if stop:
                    break
                begin(number)  # the next shard is decoded and begun while this one is still encoded
                if len(started) > 1:
                    finish()
            while started:
                finish()
            if writing:
                total.write += writing.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)  # waits: what they read in must not go before they do
            raise
    return total


def _refuse_if_stopped(stop: StopRequest, todo: Plan, progress: ExtractionProgress, out: Path) -> None:
    if len(progress.made) < len(todo.todo):  # an older shard may lie where one is still to be made
        finished = _finished(todo, progress, out)
        raise InputError(f"stopped by {stop.signal}; {finished}; the same command resumes from there")


@contextmanager
def _broken_off_in_one_line(todo: Plan, progress: ExtractionProgress, out: Path) -> Iterator[None]:
    """A full disk, a quota, a folder that can't be written any more, a GPU without room: what, where, what to do."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or out}: {error.strerror or error}; {_finished(todo, progress, out)}"
        raise InputError(f"{what}; once that is fixed, the same command resumes from there") from error
    except torch.OutOfMemoryError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the GPU is out of memory ({reason}); a smaller {option('batch_size')} needs less") from error


def _finished(todo: Plan, progress: ExtractionProgress, out: Path) -> str:
    left = len(todo.todo) - len(progress.made)
    return f"{len(todo.shards) - left} of {len(todo.shards)} shards of {out} are finished"


@contextmanager
def encoding_threads(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads that encode a batch each: on a CPU one per core and each on one core, so that none waits at a barrier;
    on a GPU two, so that one copies while the other computes.
    """
    cores = torch.get_num_threads()
    count = cores if device.type == "cpu" else 2
    try:
        with ThreadPoolExecutor(count, "encode", initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield threads
    finally:
        torch.set_num_threads(cores)


def _write(
    out: Path,
    number: int,
    features: ShardFeatures | PooledFeatures,
    fingerprint: dict[str, Any],
    progress: ExtractionProgress,
) -> float:
    started = time.perf_counter()
    hdf5.write_shard(out / hdf5.shard_name(number), features, fingerprint)
    progress.done(number)
    return time.perf_counter() - started


def _part_marks(todo: Plan) -> dict[str, Any] | None:
    """What merging must know of a part: which it is, and of which manifest."""
    if todo.part.of == 1:
        return None
    return {
        "number": todo.part.number,
        "of": todo.part.of,
        "posts": len(todo.posts),
        "ids_sha256": hdf5.sha256_of_ids(todo.posts),
        "assignments_sha256": hdf5.sha256_of_assignments(todo.posts, todo.names),
    }


def _write_failures(todo: Plan, out: Path) -> None:
    """The failed posts as CSV, for people; nothing if there are none."""
    path, failures = out / FAILURES, []
    shards = hdf5.read_shards([out / hdf5.shard_name(number) for number in todo.shards])
    for posts, shard in zip(todo.shards.values(), shards, strict=True):
        if isinstance(shard, InputError):
            raise shard
        for record, post in zip(shard.posts, posts, strict=True):
            if record.reason:
                failures.append((record.id, record.reason, post.image))
    if failures:
        write_text(path, csv_text(("id", "reason", "image"), failures))
    else:
        path.unlink(missing_ok=True)
