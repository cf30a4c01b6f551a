"""Texts to word-piece ids, by the tokenizers library alone, whose import takes a hundredth of transformers'."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class WordPieces:
    """A tokenizer with what an encoder must know of it. max_tokens: longer texts are cut; special: the ids of its
    special tokens but for `unknown`; split: a special token's name in a text is text; padding, mask: ids, -1 for none.
    """

    tokenizer: str  # of the tokenizers library, JSON
    side: str  # which end is kept of a text that is cut: right cuts its end
    max_tokens: int
    special: tuple[int, ...]
    unknown: int | None
    padding: int
    mask: int
    split: bool

    def __post_init__(self) -> None:
        from tokenizers import Tokenizer

        backend = Tokenizer.from_str(self.tokenizer)
        backend.enable_truncation(self.max_tokens, direction=self.side)
        backend.no_padding()
        backend.encode_special_tokens = self.split
        object.__setattr__(self, "_backend", backend)

    @classmethod
    def of(cls, tokenizer: Any, max_tokens: int, *, split: bool, mask: bool) -> "WordPieces":
        """Those of a fast tokenizer of transformers. mask: whether its mask token is of use."""
        unknown = tokenizer.unk_token_id
        return cls(
            tokenizer.backend_tokenizer.to_str(),
            tokenizer.truncation_side,
            max_tokens,
            tuple(id_ for id_ in tokenizer.all_special_ids if id_ != unknown),
            unknown,
            -1 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            -1 if tokenizer.mask_token_id is None or not mask else tokenizer.mask_token_id,
            split,
        )

    def encodings(self, texts: Sequence[str]) -> Sequence[Any]:
        """What the tokenizers library makes of each text: ids, offsets, what was cut off."""
        encodings: Sequence[Any] = self._backend.encode_batch(list(texts))  # type: ignore[attr-defined]
        return encodings

    def ids(self, encoding: Any) -> np.ndarray:
        """The ids (n,) of a text, int32."""
        ids = np.asarray(encoding.ids, np.int32)
        if self.split and self.unknown is not None:
            # A SentencePiece vocabulary has <s> and <mask> among its pieces and finds them in a text all the same.
            written = np.asarray(encoding.special_tokens_mask) == 0
            ids[written & np.isin(ids, self.special)] = self.unknown
        return ids
