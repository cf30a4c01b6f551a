"""Answers posts of untrusted requests: decodes in worker processes, computes on a thread per core, within limits."""

import asyncio
import contextlib
import io
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from PIL import Image

from fusion.explanation.explain import DEFAULT_METHOD, Explanation, explain_posts
from fusion.inference.predictor import Inputs, Prediction, Predictor, missing_input, raw_text_problem
from fusion.report.cards import data_uri, shaded
from fusion.report.heatmap import overlay
from fusion.serving.decoding import PictureDecoders
from fusion.serving.forms import Post, read_post
from fusion.serving.limits import Limits, Refusal, busy
from pipeline.encoders.load import NoImages

Result = TypeVar("Result")


@dataclass(frozen=True)
class Explained:
    """A prediction with its explanation: the picture under its heat map (PNG in a data URI), and each word's weight."""

    prediction: Prediction
    explanation: Explanation
    heat_map: str | None

    @property
    def words(self) -> list[dict[str, Any]]:
        """Each word with its weight, its rank among the strongest, and whether the encoder read it."""
        read = len(self.explanation.words) - self.explanation.unread
        return [
            {"text": word.text, "weight": word.weight, "rank": word.rank, "read": place < read}
            for place, word in enumerate(shaded(self.explanation.words))
        ]


class RequestHandler:
    """Answers one post at a time on each core. A context manager; leaving it ends its processes and threads.

    Requests wait in line for a core, at most `limits.requests` of them and at most `limits.seconds` each.
    """

    def __init__(self, predictor: Predictor, limits: Limits, *, cores: int) -> None:
        self.predictor, self.limits = predictor, limits
        self._in_progress = 0
        self._decoders = PictureDecoders(predictor.image.transform, limits)
        # Threads that stay: each thread has its own part of the heap, which does not shrink when the thread is idle.
        self._cores = ThreadPoolExecutor(cores, "answer", initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cores.shutdown(wait=False, cancel_futures=True)
        self._decoders.end()  # and with it what waits for a picture
        self._cores.shutdown()
        self._decoders.__exit__()

    def warm_up(self) -> None:
        """Answer a blank post, so that the first request is as quick as the others. Starts a decoding process.

        Raises InputError if there can be none.
        """
        picture = io.BytesIO()
        Image.new("RGB", (64, 64)).save(picture, "PNG")
        post = Post("warm up", None if isinstance(self.predictor.image, NoImages) else picture.getvalue())
        problem = self._cores.submit(self._explain, post).exception()
        if problem and not isinstance(problem, Refusal):
            raise problem

    async def predict(self, content_type: str, body: bytes) -> Prediction:
        """Class probabilities of the post in a body. Raises Refusal."""
        return await self._on_a_core(self._predict, content_type, body)

    async def explain(self, content_type: str, body: bytes) -> Explained:
        """Class probabilities of the post in a body, with the explanation. Raises Refusal."""
        return await self._on_a_core(self._explain, content_type, body)

    async def _on_a_core(self, work: Callable[[Post], Result], content_type: str, body: bytes) -> Result:
        """Do a request's work within the limits. Its place is free again only when the work has really ended."""
        if self._in_progress >= self.limits.requests:
            raise busy(f"the limit of {self.limits.requests} requests in progress is reached")
        self._in_progress += 1
        loop, deadline = asyncio.get_running_loop(), time.monotonic() + self.limits.seconds

        def ended(_: Future[Result]) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self._leave)

        future = self._cores.submit(self._read_and, work, content_type, body, deadline)
        future.add_done_callback(ended)
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise busy(f"no answer within {self.limits.seconds:g} s") from None

    def _read_and(self, work: Callable[[Post], Result], content_type: str, body: bytes, deadline: float) -> Result:
        if time.monotonic() > deadline:  # nobody waits for it any more
            raise busy("the request waited too long for its turn")
        post = read_post(content_type, body, deadline)
        if problem := self._problem(post):
            raise problem
        return work(post)

    def _leave(self) -> None:
        self._in_progress -= 1

    def _problem(self, post: Post) -> Refusal | None:
        """What is wrong with a post as far as it is known before any work."""
        most = self.limits.characters
        if post.text and len(post.text) > most:
            return Refusal(413, f"text: {len(post.text)} characters, over the limit of {most}")
        reason = raw_text_problem(post.text) or missing_input(self.predictor, post.text is None, post.image is None)
        return Refusal(422, reason) if reason else None

    def _predict(self, post: Post) -> Prediction:
        return self._predict_inputs(self._inputs(post))

    def _explain(self, post: Post) -> Explained:
        inputs = self._inputs(post)
        prediction = self._predict_inputs(inputs)
        (explanation,) = explain_posts(self.predictor, [inputs])
        heat_map = None
        if explanation.heat is not None and inputs.picture is not None:
            view = self.predictor.image.fingerprint["transform"]
            heat_map = data_uri(overlay(inputs.picture, explanation.heat, view), "png")
        return Explained(prediction, explanation, heat_map)

    def _inputs(self, post: Post) -> Inputs:
        if post.image is None:
            return Inputs("", post.text)
        picture = self._decoders.decode(post.image)
        if picture.reason:
            raise Refusal(422, picture.reason)
        return Inputs("", post.text, picture.pixels, picture.flags, picture=picture.shown)

    def _predict_inputs(self, inputs: Inputs) -> Prediction:
        (prediction,) = self.predictor.predict_inputs([inputs])
        if prediction.reason:
            raise Refusal(422, prediction.reason)
        return prediction

    def reads(self) -> dict[str, bool]:
        """Which modalities the run reads at all."""
        modalities = self.predictor.config.modalities
        image = modalities != "text" and not isinstance(self.predictor.image, NoImages)
        return {"image": image, "text": modalities != "image"}

    def needs(self) -> dict[str, bool]:
        """Which modalities every post must have."""
        return {
            "image": bool(missing_input(self.predictor, no_text=False, no_image=True)),
            "text": bool(missing_input(self.predictor, no_text=True, no_image=False)) and self.reads()["text"],
        }

    @property
    def method(self) -> str:
        """How predictions are explained."""
        return DEFAULT_METHOD
