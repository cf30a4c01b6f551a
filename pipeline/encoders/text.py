"""The frozen text encoder: texts to word-piece ids and tokens, and the fingerprint of both (eqs 5, 17, 20-21)."""

import hashlib
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pipeline.encoders.forward import TextForward
from pipeline.encoders.frozen import COMPUTE_DTYPES, compute_precision, freeze, weights_sha256
from pipeline.encoders.graph import Computed
from pipeline.encoders.pairs import UNKNOWN
from pipeline.encoders.text_form import TextForm
from pipeline.encoders.text_vector import MEAN, MODEL, pooled_tokens
from pipeline.encoders.towers import BERT
from pipeline.encoders.word_pieces import WordPieces

_PROBE = ("", "What a night!", "Two dogs and a ball on the beach, seen from a boat.")


class TextEncoder(Computed):
    """A frozen text model with its tokenizer (eqs 5, 17, 21), of a family of pipeline.encoders.towers.

    [CLS] and [SEP] are here whatever tokens the tokenizer puts first and last: CLIP's are BOS and EOS, and SigLIP has
    none in front.

    With `split_special_tokens` a literal [MASK] or [SEP] in a text is text, cut into word pieces like any other.
    Without, as in caches that were made before, it becomes the special token itself.
    """

    kind = "text"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        *,
        max_tokens: int,
        dtype: str,
        device: torch.device,
        layers: int = 1,
        split_special_tokens: bool = True,
        licence: str = UNKNOWN,
        family: str = BERT,
        pooled: str = MEAN,
        pooled_width: int | None = None,
        form: TextForm | None = None,
    ) -> None:
        """`pooled`: how a text's one vector is made; `pooled_width`: how wide it is, if not as its tokens are."""
        self.name, self.licence = name, licence
        self._model = freeze(model, device)
        self.pieces = WordPieces.of(tokenizer, max_tokens, split=split_special_tokens, mask=family == BERT)
        self._dtype = COMPUTE_DTYPES[dtype]
        self.device = device
        self.max_tokens = max_tokens
        self.layers = layers
        own, padding = pooled == MODEL, self.pieces.padding
        self._forward = TextForward(self._model, family, layers=layers, own=own, padding=padding).eval()
        self.width: int = model.config.hidden_size
        self.pooled, self.pooled_width = pooled, pooled_width or self.width
        self.vocabulary: int = model.config.vocab_size
        self.form = form or TextForm()
        # -1: it has none; SigLIP 2's tokenizer is of another model, and has one that the tower was not trained with
        self.mask_id = self.pieces.mask
        self.fingerprint: dict[str, Any] = {
            "name": name,
            **({"family": family} if family != BERT else {}),
            "weights_sha256": weights_sha256(model, pooler=pooled == MODEL),
            "tokenizer_sha256": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "max_tokens": max_tokens,
            "layers": list(range(-layers, 0)),
            **({"pooled": pooled} if pooled != MEAN else {}),
            **self.form.marks,
            **({"special_tokens_in_text": "split"} if split_special_tokens else {}),
            "compute_dtype": dtype,
            "licence": licence,
        }

    @property
    def graph_facts(self) -> dict[str, Any]:
        """What decides the encoder's arithmetic."""
        names = ("weights_sha256", "family", "layers")
        facts = {name: self.fingerprint[name] for name in names if name in self.fingerprint}
        return {**facts, "own": self.pooled == MODEL, "padding": self._forward.padding}

    def exported(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The module of the encoder's arithmetic, and an example of its inputs."""
        ids, mask = padded(self.tokenize(_PROBE)[0])
        return self._forward, {"ids": ids, "mask": mask}

    def probed(self) -> tuple[np.ndarray, ...]:
        """The features of a few texts, always the same ones; zeros for padding."""
        ids, mask = padded(self.tokenize(_PROBE)[0])
        states, own = self.encode_both(ids, mask)
        states = states * mask[..., None].to(states.device)
        return tuple(values.numpy(force=True) for values in (states, own) if values is not None)

    def describe(self) -> str:
        layers = f", mean of {self.layers} layers" if self.layers > 1 else ""
        pooled = f", pooled by {self.pooled} to {self.pooled_width}" if self.pooled != MEAN else ""
        no_mask = ", no mask token: train with mlm false" if self.mask_id < 0 else ""
        return f"{self.name} ({self.width}{layers}{pooled}{no_mask})"

    def in_precision(self, dtype: str) -> "TextEncoder":
        """The same encoder computing in `dtype`, where its features need not equal those of a cache."""
        other = copy(self)
        other._dtype = COMPUTE_DTYPES[dtype]
        if other._dtype != torch.float32:
            other._graph = None
        return other

    @property
    def parameters(self) -> int:
        """How many parameters the frozen model has."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def word_embeddings(self) -> Tensor:
        """The input embeddings (V, D), frozen."""
        return self._model.get_input_embeddings().weight.detach()

    def tokenize(self, texts: Sequence[str]) -> tuple[list[np.ndarray], list[bool]]:
        """Word-piece ids with [CLS] and [SEP], int32, at most `max_tokens` a text, and whether each was cut short. Eq
        17.
        """
        encodings = self._encodings([self.normalized(text) for text in texts])  # eq 17
        return [self.pieces.ids(encoding) for encoding in encodings], [bool(row.overflowing) for row in encodings]

    def normalized(self, text: str) -> str:
        """The text as it is read, without the prefix: what `spans` are of, and what an explanation shows."""
        return self.form.normalized(text)

    def spans(self, normalized: str) -> list[tuple[int, int]]:
        """Which characters [start, end) of a normalised text each id of `tokenize` stands for; [CLS], [SEP] and the
        prefix: (0, 0).
        """
        (encoding,) = self._encodings([normalized])
        before = len(self.form.prefix)
        if not before:
            return list(encoding.offsets)
        return [(max(start - before, 0), end - before) if end > before else (0, 0) for start, end in encoding.offsets]

    def _encodings(self, normalized: Sequence[str]) -> Sequence[Any]:
        return self.pieces.encodings([f"{self.form.prefix}{text}" for text in normalized])

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """last_hidden_state, or the mean of the last hidden states, of ids (B, n) under mask (B, n), True = real token:
        (B, n, D) float32 on the device. Eqs 5, 21.
        """
        return self.encode_both(input_ids, mask)[0]

    def encode_both(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `encode`, and what the model's own pooling gives, (B, D_p) float32, where `pooled` is `model`."""
        if self._graph:
            made = self._graph(input_ids.numpy(force=True).astype(np.int64), mask.numpy(force=True))
            states, *own = (torch.from_numpy(values) for values in made)
        else:
            with torch.inference_mode(), compute_precision(self.device, self._dtype):
                computed = self._forward(input_ids.to(self.device, torch.int64), mask.to(self.device))
            states, *own = (values.clone() for values in computed)  # of which what follows may learn
        return states, own[0] if own else None


def padded(ids: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Ids (n_i,) of texts as one batch (B, n), int64, and its mask, True = real token."""
    lengths = torch.tensor([len(one) for one in ids])
    whole = pad_sequence([torch.from_numpy(one).long() for one in ids], batch_first=True)
    return whole, torch.arange(whole.shape[1]) < lengths[:, None]


def encode_texts(
    encoder: TextEncoder, ids: Sequence[np.ndarray], dtype: np.dtype
) -> tuple[list[np.ndarray], np.ndarray]:
    """What a cache stores of texts with these ids (n_i,), encoded as one padded batch: the tokens (n_i, D) of each in
    `dtype`, and their vectors (B, D_p), float32. Those that are made of the tokens are made of the stored ones.
    """
    whole, real = padded(ids)
    states, own = encoder.encode_both(whole, real) if encoder.pooled == MODEL else (encoder.encode(whole, real), None)
    with np.errstate(over="ignore"):  # what overflows float16 is for the caller to find
        tokens = [rows[: len(one)].astype(dtype) for rows, one in zip(states.cpu().numpy(), ids, strict=True)]
    if own is not None:
        return tokens, own.cpu().numpy()
    return tokens, np.stack([pooled_tokens(rows, encoder.pooled) for rows in tokens])
