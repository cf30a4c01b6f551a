"""The frozen text encoder: texts to word-piece ids and tokens, and the fingerprint of both (eqs 5, 17, 20-21)."""

import hashlib
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.encoders.frozen import COMPUTE_DTYPES, compute_precision, freeze, weights_sha256
from pipeline.encoders.pairs import UNKNOWN


class TextEncoder:
    """A frozen BERT-family model with its tokenizer (eqs 5, 17, 21).

    With `split_special_tokens` a literal [MASK] or [SEP] in a text is text, cut into word pieces like any other.
    Without, as in caches that were made before, it becomes the special token itself.
    """

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
    ) -> None:
        self.name, self.licence = name, licence
        self._model = freeze(model, device)
        self._tokenizer = tokenizer
        self._dtype = COMPUTE_DTYPES[dtype]
        self.device = device
        self.max_tokens = max_tokens
        self._layers = layers
        self._split = split_special_tokens
        self._special = [id_ for id_ in tokenizer.all_special_ids if id_ != tokenizer.unk_token_id]
        self.width: int = model.config.hidden_size
        self.vocabulary: int = model.config.vocab_size
        self.mask_id: int = -1 if tokenizer.mask_token_id is None else tokenizer.mask_token_id  # -1: it has none
        self.fingerprint: dict[str, Any] = {
            "name": name,
            "weights_sha256": weights_sha256(model),
            "tokenizer_sha256": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "max_tokens": max_tokens,
            "layers": list(range(-layers, 0)),
            **({"special_tokens_in_text": "split"} if split_special_tokens else {}),
            "compute_dtype": dtype,
            "licence": licence,
        }

    def describe(self) -> str:
        layers = f", mean of {self._layers} layers" if self._layers > 1 else ""
        return f"{self.name} ({self.width}{layers})"

    def in_precision(self, dtype: str) -> "TextEncoder":
        """The same encoder computing in `dtype`, where its features need not equal those of a cache."""
        other = copy(self)
        other._dtype = COMPUTE_DTYPES[dtype]
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
        encodings = self._encodings(texts)  # eq 17
        return [self._ids(encoding) for encoding in encodings], [bool(row.overflowing) for row in encodings]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Which characters [start, end) of the text each id of `tokenize` stands for; [CLS] and [SEP]: (0, 0)."""
        (encoding,) = self._encodings([text])
        return list(encoding.offsets)

    def _encodings(self, texts: Sequence[str]) -> Sequence[Any]:
        return self._tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, split_special_tokens=self._split
        ).encodings

    def _ids(self, encoding: Any) -> np.ndarray:
        ids = np.asarray(encoding.ids, np.int32)
        if self._split and self._tokenizer.unk_token_id is not None:
            # A SentencePiece vocabulary has <s> and <mask> among its pieces and finds them in a text all the same.
            written = np.asarray(encoding.special_tokens_mask) == 0
            ids[written & np.isin(ids, self._special)] = self._tokenizer.unk_token_id
        return ids

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """last_hidden_state, or the mean of the last hidden states, of ids (B, n) under mask (B, n), True = real token:
        (B, n, D) float32 on the device. Eqs 5, 21.
        """
        with torch.inference_mode(), compute_precision(self.device, self._dtype):
            ids = input_ids.to(self.device, torch.int64)
            real = mask.to(self.device, torch.int64)
            output = self._model(input_ids=ids, attention_mask=real, output_hidden_states=self._layers > 1)
            states = output.last_hidden_state.float()  # eqs 5, 21
            if self._layers > 1:
                states = torch.stack([state.float() for state in output.hidden_states[-self._layers :]]).mean(dim=0)
        return states.clone()  # outside inference mode, so that what follows may learn from it


def encode_each(encoder: TextEncoder, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The tokens (n_i, D), float32, of each text's ids (n_i,), encoded as one padded batch."""
    lengths = torch.tensor([len(one) for one in ids])
    padded = pad_sequence([torch.from_numpy(one).long() for one in ids], batch_first=True)
    states = encoder.encode(padded, torch.arange(padded.shape[1]) < lengths[:, None]).cpu().numpy()
    return [tokens[: len(one)] for tokens, one in zip(states, ids, strict=True)]
