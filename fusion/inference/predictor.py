"""Predicts raw posts, through the decoding and the encoders that made the run's features.

`Predictor` holds the run's model and both encoders; prediction, explanation and the page share it. Features are rounded
to the cache's stored precision, so that a post gets the prediction that it would get from the cache.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fusion.data.batches import Batch, collate
from fusion.evaluation.calibration import tempered
from fusion.evaluation.predict import MemberSums, mean_of_members
from fusion.models.base import Model
from fusion.names import FUSION
from fusion.run import Run
from pipeline.common.device import resolve_device
from pipeline.common.errors import InputError, option
from pipeline.encoders.from_fingerprint import same_image_encoder, same_text_encoder
from pipeline.encoders.load import ImageEncoder, NoImages, TextEncoder
from pipeline.encoders.ready import ready_encoders
from pipeline.encoders.runtime import TOLERANCE, use_runtime
from pipeline.encoders.runtimes import AUTO, TORCH, name_of
from pipeline.encoders.text import encode_texts
from pipeline.extraction.decode import Decoders
from pipeline.extraction.encode import text_problem
from pipeline.posts.images import MAX_PIXELS, ImageProblem, to_rgb
from pipeline.posts.manifest import Post


@dataclass(frozen=True)
class RawPost:
    """A post as a person has it: its text, and the bytes of its image file; None where there is none.

    An empty text is a text: the encoder reads [CLS] [SEP].
    """

    id: str
    text: str | None
    image: bytes | None


@dataclass(frozen=True)
class Inputs:
    """What the encoders get of a post: its text, and pixels (3, S, S) uint8, of several views (V, 3, S, S); None where
    there is none.

    `reason` says why the post cannot be predicted, and is empty if it can. `picture` is the whole upright RGB picture,
    for showing.
    """

    id: str
    text: str | None = None
    pixels: np.ndarray | None = None
    flags: tuple[str, ...] = ()
    reason: str = ""
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Prediction:
    """A post's class probabilities by name, or the reason why there are none. `id` is empty where none was given.

    `flags` says what a reader should know: no_text, no_image, empty_text, truncated, rotated, animated, converted.
    """

    id: str
    probabilities: dict[str, float]
    flags: tuple[str, ...] = ()
    reason: str = ""

    @property
    def label(self) -> str | None:
        """The class with the highest probability."""
        return max(self.probabilities, key=self.probabilities.__getitem__) if self.probabilities else None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        if self.reason:
            return {"id": self.id or None, "reason": self.reason}
        return {
            "id": self.id or None,
            "label": self.label,
            "probabilities": self.probabilities,
            "flags": list(self.flags),
        }


class Predictor:
    """A finished run with its two encoders. Threads may share it.

    Attributes: run, config, model (evaluation mode), image and text (the encoders), labels, device.
    """

    def __init__(
        self,
        run: Run,
        model: Model,
        image: ImageEncoder,
        text: TextEncoder,
        device: torch.device,
        *,
        runtime: str = TORCH,
    ) -> None:
        self._runtime = runtime
        self.run, self.config, self.model = run, model.config, model
        self.image, self.text, self.device = image, text, device
        self.labels: list[str] = run.metadata["labels"]
        self._stored = np.dtype(run.metadata["fingerprint"]["stored_dtype"])
        self._views = math.prod(image.pixels_shape[:-3]) if self.config.views == "sample" else 1

    @classmethod
    def open(
        cls,
        run: Run | str | Path,
        device: torch.device | str = "auto",
        *,
        model: nn.Module | None = None,
        image_weights: str | Path | None = None,
        text_encoder: str | None = None,
        runtime: str = AUTO,
        quick: bool = False,
    ) -> "Predictor":
        """Load the run's model and encoders; `image_weights` and `text_encoder` say where these are, if they have
        moved. `model` is the module, for a run of one's own. runtime: what computes the encoders, of
        pipeline.encoders.runtimes. quick: take encoders that lie ready, without loading PyTorch's.

        Raises InputError if the run is not finished, or an encoder is unavailable or another one, naming the field.
        """
        run = run if isinstance(run, Run) else Run(run)
        chosen = resolve_device(device) if isinstance(device, str) else device
        fingerprint, name = run.require_finished()["fingerprint"], str(chosen)
        loaded = run.load_model(chosen, model)
        weights = Path(image_weights) if image_weights else None
        if quick and runtime != TORCH and chosen.type == "cpu" and not (weights or text_encoder):
            ready = ready_encoders(fingerprint, TOLERANCE)
            if ready:
                return cls(run, loaded, *ready, chosen, runtime=runtime)
        image = same_image_encoder(fingerprint["image"], name, weights=weights, owner=run.folder)
        text = same_text_encoder(fingerprint["text"], name, folder=text_encoder, owner=run.folder)
        predictor = cls(run, loaded, image, text, chosen, runtime=runtime)
        predictor.settle_runtime()
        return predictor

    def settle_runtime(self, posts: int = 0, began: Mapping[str, str] | None = None) -> None:
        """Choose what computes the encoders for about so many posts. began: the runtimes of `image` and `text` that
        earlier predictions were made by, which `auto` goes on with.
        """
        for encoder in (self.image, self.text):
            wanted = self._runtime if self._runtime != AUTO else (began or {}).get(encoder.kind, AUTO)
            use_runtime(encoder, wanted, posts=posts)

    @property
    def runtimes(self) -> dict[str, str]:
        """The names of what computes the encoders of `image` and `text`."""
        return {encoder.kind: name_of(encoder.runtime) for encoder in (self.image, self.text)}

    def predict(self, posts: Sequence[RawPost]) -> list[Prediction]:
        """A prediction for each post, in order. The posts are one batch, whose composition changes rounding only."""
        return self.predict_inputs([self.inputs(post) for post in posts])

    def inputs(self, post: RawPost, *, max_pixels: int = MAX_PIXELS) -> Inputs:
        """Decode a post's image and check its text. A post that cannot be predicted is returned with the reason."""
        picture, pixels = None, None
        flags: tuple[str, ...] = ()
        reason = raw_text_problem(post.text)
        if post.image is not None and not reason and not isinstance(self.image, NoImages):
            try:
                picture, flags = to_rgb(post.image, max_pixels, require=self.image.transform.require)
                pixels = self.image.pixels(picture)
            except ImageProblem as error:
                reason = f"image: {error}"
        reason = reason or missing_input(self, post.text is None, post.image is None)
        return Inputs(post.id, post.text, pixels, flags, reason, picture)

    @torch.inference_mode()
    def predict_inputs(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        """As `predict`, for what `inputs` returned."""
        predictions = {i: Prediction(one.id, {}, reason=one.reason) for i, one in enumerate(inputs) if one.reason}
        good = [i for i in range(len(inputs)) if i not in predictions]
        if good:
            batches, flags, finite = self._encode([inputs[i] for i in good])
            probabilities = self.probabilities(batches)
            for i, values, post_flags, is_finite in zip(good, probabilities, flags, finite, strict=True):
                by_name = dict(zip(self.labels, map(float, values), strict=True))
                bad = Prediction(inputs[i].id, {}, reason=f"features: not finite in {self._stored}")
                predictions[i] = Prediction(inputs[i].id, by_name, post_flags) if is_finite else bad
        return [predictions[i] for i in range(len(inputs))]

    @torch.inference_mode()
    def probabilities(self, views: Sequence[Batch]) -> np.ndarray:
        """(B, classes) float64, at the run's temperature: the mean over the views of the same posts, and over the
        members of an ensemble.
        """
        sums = MemberSums(self.model, len(views[0]), self.device)
        for view, batch in enumerate(views):
            sums.add(batch, view)
        return np.exp(tempered(mean_of_members(sums.means(len(views))), self.model.temperature))

    def features(self, inputs: Sequence[Inputs]) -> list[Batch]:
        """The features of posts as a batch for each view that the run predicts with, the encoder's own crop first;
        labels unknown. Raises InputError naming the first post that has none.
        """
        if bad := next((one for one in inputs if one.reason), None):
            raise InputError(f"post {bad.id}: {bad.reason}")
        batches, _, finite = self._encode(inputs)
        if not finite.all():
            raise InputError(f"post {inputs[int(finite.argmin())].id}: features: not finite in {self._stored}")
        return batches

    def _encode(self, inputs: Sequence[Inputs]) -> tuple[list[Batch], list[tuple[str, ...]], np.ndarray]:
        """Features (eqs 1, 2, 5) by view, each post's flags, and whether its features are finite (B,).

        What is missing is zeros, or the tokens of an empty text, which the model then leaves out of its rows.
        """
        ids, truncated = self.text.tokenize([one.text or "" for one in inputs])
        tokens, vectors = encode_texts(self.text, ids, self._stored)
        patches = np.zeros((len(inputs), self._views, *self.image.patches_shape), np.float32)
        pooled = np.zeros((len(inputs), self._views, self.image.pooled_width), np.float32)
        seen = {
            i: one.pixels.reshape(-1, *one.pixels.shape[-3:])[: self._views]
            for i, one in enumerate(inputs)
            if one.pixels is not None
        }
        if seen:
            patches[list(seen)], pooled[list(seen)] = self.image.encode(np.stack(list(seen.values())))

        with np.errstate(over="ignore"):  # what overflows float16 is found below, by post
            patches, pooled = patches.astype(self._stored), pooled.astype(self._stored)
        finite = np.array(
            [
                all(np.isfinite(part).all() for part in (tokens[i], vectors[i], patches[i], pooled[i]))
                for i in range(len(inputs))
            ]
        )
        batches = [
            collate(
                patches[:, view],
                pooled[:, view],
                tokens,
                ids,
                self.device,
                text_pooled=vectors,
                has_text=[one.text is not None for one in inputs],
                has_image=[one.pixels is not None for one in inputs],
            )
            for view in range(self._views)
        ]
        flags = [_flags(one, cut) for one, cut in zip(inputs, truncated, strict=True)]
        return batches, flags, finite


def predict_one(predictor: Predictor, text: str | None, image: Path | None) -> Prediction:
    """The prediction for a text and an image file, which a separate process decodes within extraction's limits.

    Raises InputError saying what is wrong with either.
    """
    reason = raw_text_problem(text) or missing_input(predictor, text is None, image is None)
    one = Inputs("", text, reason=reason)
    if image and not reason:
        encoder = predictor.image
        with Decoders(encoder.transform, encoder.pixels_shape, workers=1) as decoders:
            pixels, (decoded,) = decoders.pixels(decoders.read([image]))
            one = Inputs("", text, pixels[0], decoded.flags)
        if decoded.reason:
            what = decoded.reason.removeprefix("image: ").removesuffix(f": {image}")
            raise InputError(f"{option('image', image)}: {what}")
    (prediction,) = predictor.predict_inputs([one])
    if prediction.reason:
        raise InputError(prediction.reason)
    return prediction


def missing_input(predictor: Predictor, no_text: bool, no_image: bool) -> str:
    """Why a run cannot predict a post without these modalities; empty if it can."""
    if no_text and no_image:
        return "neither text nor image"
    config = predictor.config
    for missing, what, other in ((no_text, "text", "image"), (no_image, "image", "text")):
        if missing and config.modalities != other and not config.modality_dropout:
            if config.modalities == what:
                return f"{what}: none; this run reads the {what} alone"
            way = " (trained with modality_dropout it could do without)" if config.model == FUSION else ""
            return f"{what}: none; this run needs both{way}"
    if isinstance(predictor.image, NoImages) and not no_image:
        return "image: this run was trained on texts alone; leave the image out"
    return ""


def raw_text_problem(text: str | None) -> str:
    """Why a text can't be read; empty if it can, or if there is none."""
    if text is None:
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "text: holds an unpaired surrogate, which is invalid text"
    return text_problem(Post("", text, Path()))


def _flags(inputs: Inputs, truncated: bool) -> tuple[str, ...]:
    """What a reader of the prediction should know, in the cache's words where it has them."""
    return (
        *(["no_text"] if inputs.text is None else ["empty_text"] if inputs.text == "" else []),
        *(["no_image"] if inputs.pixels is None else []),
        *(["truncated"] if truncated else []),
        *inputs.flags,
    )
