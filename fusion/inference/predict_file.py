"""Predicts a JSONL file of posts of any size, resumably: a line for a line, in order.

Until all have a prediction, the lines are in OUT.unfinished, whose first line identifies the model and the posts. A
kill leaves whole lines there and perhaps a torn one, which the same command cuts off before it goes on.
"""

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from fusion.inference.predictor import Inputs, Prediction, Predictor, missing_input
from pipeline.common.errors import InputError, option, switch
from pipeline.common.files import complete_or_absent, open_regular, sha256_of_file
from pipeline.common.folders import is_file_of, open_to_append
from pipeline.common.locks import hold
from pipeline.common.signals import StopRequest, graceful_shutdown
from pipeline.encoders.runtimes import ONNXRUNTIME, TORCH
from pipeline.extraction.decode import Decoders, Reading
from pipeline.extraction.encode import text_problem
from pipeline.extraction.extract import encoding_threads
from pipeline.posts.image_files import ImagePlace
from pipeline.posts.manifest import NAMES, parse_partial

_SHOWN_FAILURES = 5
_HEADER_BEGINS = b'{"model_sha256"'
_MOST_FILE_BYTES = 1 << 36  # of a file of posts, some hundred million of them; more is a hole without an end
_MOST_LINE_BYTES = 1 << 24  # of a post


@dataclass
class StreamReport:
    """The outcome of a file of posts: how many posts, how many of them earlier, how many without a prediction and why
    the first.
    """

    posts: int
    answered_before: int = 0
    failed: int = 0
    first_failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, record: dict[str, Any]) -> None:
        if "reason" in record:
            self.failed += 1
            if len(self.first_failures) < _SHOWN_FAILURES:
                self.first_failures.append(f"{record.get('id') or 'a post'}: {record['reason']}")

    def summary(self) -> dict[str, Any]:
        """For people and scripts. `posts_per_second` counts the posts of this call."""
        return {**vars(self), "posts_per_second": (self.posts - self.answered_before) / self.seconds}


@dataclass(frozen=True)
class _Line:
    """A post of the file before its image is decoded; `image` is None where there is none, or nothing can be done."""

    inputs: Inputs
    image: ImagePlace | None


def unfinished(out: Path) -> Path:
    return out.with_name(out.name + ".unfinished")


def predict_file(
    predictor: Predictor,
    posts: str | Path,
    out: str | Path,
    *,
    batch_size: int = 32,
    workers: int = 2,
    overwrite: bool = False,
    quiet: bool = False,
) -> StreamReport:
    """Predict every post of a JSONL file, resuming after the predictions of an earlier call; with `overwrite` anew, in
    place of what is there.

    As in extraction, worker processes decode and each core encodes a batch of its own. A line that is no post, or a
    post without a prediction, gets a line with the reason. Raises InputError if an unfinished file is of another run or
    of other posts, if another process writes there, or when stopped by a signal.
    """
    started, posts, out = time.perf_counter(), Path(posts), Path(out)
    if is_file_of(out, posts):
        raise InputError(f"{out}: the posts are read from it; name another {option('out')}")
    sha256, total = _measure(posts)
    began = None if overwrite else _began_with(unfinished(out))
    predictor.settle_runtime(total, began)
    facts = {"model_sha256": predictor.run.weights_sha256, "posts_sha256": sha256}
    header = {**facts, "runtimes": predictor.runtimes}
    report = StreamReport(total)
    with _unfinished_file(out, header, report, overwrite) as file:
        done = report.answered_before
        with (
            graceful_shutdown() as stop,
            tqdm(total=total, initial=done, unit="post", desc="predict", disable=quiet) as bar,
        ):
            lines = islice(_read(posts, predictor), done, None)
            for predictions in _predictions(predictor, lines, batch_size, workers, stop):
                records = [prediction.record() for prediction in predictions]
                file.write("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records).encode())
                file.flush()
                for record in records:
                    report.note(record)
                bar.update(len(records))
                done += len(records)
        if done < total:
            finished = f"{done} of {total} posts have predictions"
            raise InputError(f"stopped by {stop.signal}; {finished}; the same command resumes from there")
        file.seek(0)
        file.readline()  # the header
        with complete_or_absent(out) as temporary, temporary.open("wb") as complete:
            shutil.copyfileobj(file, complete)
        unfinished(out).unlink(missing_ok=True)
    report.seconds = time.perf_counter() - started
    return report


def _predictions(
    predictor: Predictor, lines: Iterator[_Line], batch_size: int, workers: int, stop: StopRequest
) -> Iterator[list[Prediction]]:
    """The predictions, batch by batch in order; `Decoders` bounds how many are in memory."""
    pending: deque[Future[list[Prediction]]] = deque()
    image = predictor.image
    with (
        encoding_threads(predictor.device) as threads,
        Decoders(image.transform, image.pixels_shape, workers=workers) as decoders,
    ):
        while not stop and (batch := list(islice(lines, batch_size))):
            paths = [line.image for line in batch if line.image]
            reading = decoders.read(paths) if paths else None  # waits here while enough are decoded
            pending.append(threads.submit(_predict_batch, predictor, batch, reading, decoders))
            while pending and (pending[0].done() or len(pending) > 2 * workers):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _predict_batch(
    predictor: Predictor, batch: Sequence[_Line], reading: Reading | None, decoders: Decoders
) -> list[Prediction]:
    if reading is None:
        return predictor.predict_inputs([line.inputs for line in batch])
    seen = iter(zip(*decoders.pixels(reading), strict=True))
    inputs = []
    for line in batch:
        one = line.inputs
        if line.image:
            values, decoded = next(seen)
            one = Inputs(one.id, one.text, values, decoded.flags, decoded.reason)
        inputs.append(one)
    return predictor.predict_inputs(inputs)


def _measure(posts: Path) -> tuple[str, int]:
    """SHA-256 of the file, and how many posts it has: next to nothing beside their encoding."""
    with _opened(posts) as file:
        count = sum(1 for _ in _post_lines(file))
    if not count:
        raise InputError(f"{posts}: no posts in it; it has one JSON object a line with id, text and image")
    return sha256_of_file(posts), count


def _read(posts: Path, predictor: Predictor) -> Iterator[_Line]:
    """The posts of the file, one by one; a line that is not a valid post is yielded with the reason."""
    folder = posts.parent.absolute()
    with _opened(posts) as file:
        for number, line in _post_lines(file):
            if len(line) > _MOST_LINE_BYTES:
                yield _Line(Inputs("", reason=f"line {number}: over the limit of {_MOST_LINE_BYTES} bytes"), None)
            else:
                yield _parse(line, folder, f"line {number}", predictor)


def _post_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Each line that has to be a post, with its number: neither a blank one nor the label names of a manifest."""
    first = True
    for number, line in enumerate(_lines(file), start=1):
        if line.strip() or len(line) > _MOST_LINE_BYTES:
            if not (first and _gives_names(line)):
                yield number, line
            first = False


def _gives_names(line: bytes) -> bool:
    """Whether a manifest's first line is that of the label names."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and set(record) == {NAMES}


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file. A line over the limit is cut to one byte more than it, which is how it is recognised."""
    while line := file.readline(_MOST_LINE_BYTES + 1):
        yield line
        while len(line) > _MOST_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(_MOST_LINE_BYTES + 1)


def _opened(posts: Path) -> BinaryIO:
    """Raises InputError if there is no such file, or it is no ordinary one, or has no end."""
    try:
        file = open_regular(posts)
    except FileNotFoundError:
        raise InputError(f"{posts}: no such file") from None
    except OSError as error:
        raise InputError(f"{posts}: {error.strerror or error}") from None
    if (size := os.fstat(file.fileno()).st_size) > _MOST_FILE_BYTES:
        file.close()
        raise InputError(f"{posts}: {size} bytes, over the limit of {_MOST_FILE_BYTES}; split the file")
    return file


def _parse(line: bytes, folder: Path, where: str, predictor: Predictor) -> _Line:
    try:
        post, missing = parse_partial(line.decode("utf-8-sig").rstrip("\n"), folder, where)
    except UnicodeDecodeError as error:
        return _Line(Inputs("", reason=f"{where}: not UTF-8 at byte {error.start}"), None)
    except InputError as error:
        return _Line(Inputs("", reason=str(error)), None)
    reason = missing_input(predictor, "text" in missing, "image" in missing)
    if "text" not in missing:
        reason = reason or text_problem(post)
    image = None if reason or "image" in missing else post.image
    return _Line(Inputs(post.id, post.text, reason=reason), image)


def _open_unfinished(path: Path) -> BinaryIO:
    try:
        return open_to_append(path)
    except OSError as error:
        what = "a link" if path.is_symlink() else error.strerror or error
        raise InputError(f"{path}: {what}; delete it, or name another {option('out')}") from None


@contextmanager
def _unfinished_file(out: Path, header: dict[str, Any], report: StreamReport, overwrite: bool) -> Iterator[BinaryIO]:
    """The file of predictions so far, locked, open at its end; `report` counts them. Raises InputError if they are of
    another run or other posts.
    """
    path = unfinished(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        opened.enter_context(hold(path.with_name(path.name + ".lock")))
        for old in (path, out) if overwrite else ():
            old.unlink(missing_ok=True)
        file = opened.enter_context(_open_unfinished(path))
        file.seek(0)
        line = file.readline(_MOST_LINE_BYTES)
        if (first := _whole(line)) is None:
            if not _torn_header(line):
                raise InputError(f"{path}: no unfinished predictions; delete it, or name another {option('out')}")
            file.truncate(0)
            file.write(json.dumps(header).encode() + b"\n")
        else:
            for name, what in (("model_sha256", "by another run"), ("posts_sha256", "of other posts")):
                if first.get(name) != header[name]:
                    raise InputError(f"{path}: unfinished predictions {what}; {switch('overwrite')} begins again")
            end = file.tell()
            while report.answered_before < report.posts and (record := _whole(file.readline(_MOST_LINE_BYTES))):
                report.answered_before += 1
                report.note(record)
                end = file.tell()
            file.truncate(end)
        file.seek(0, 2)
        yield file


def _began_with(path: Path) -> dict[str, str]:
    """What computed the encoders of unfinished predictions, where that is known; they are gone on with by the same."""
    try:
        with open_regular(path) as file:
            first = _whole(file.readline(_MOST_LINE_BYTES)) or {}
    except OSError:
        return {}
    runtimes = first.get("runtimes")
    known = runtimes.items() if isinstance(runtimes, dict) else ()
    return {kind: runtime for kind, runtime in known if runtime in (TORCH, ONNXRUNTIME)}


def _torn_header(line: bytes) -> bool:
    """Whether a kill or a power cut can have left this of a header: its beginning, or zeros."""
    rest = line.strip(b"\0\n")
    return _HEADER_BEGINS.startswith(rest) or rest.startswith(_HEADER_BEGINS)


def _whole(line: bytes) -> dict[str, Any] | None:
    """A line's record; None where a kill or a power cut tore it, or at the end."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
