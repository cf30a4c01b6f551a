"""The training losses without redundant arithmetic; the same sums and gradients as `FusionModel.losses`.

Exact, not approximate:
- both passes go through the shared Transformer as one batch, so that each weight is read once;
- rows that pass 2 has in common with pass 1 are projected once in the first layer;
- the last layer of pass 2 is computed for the hidden words alone, among the keys and values of all rows;
- words' logits exist for the hidden words alone, and become their own gradient in place (`word_loss`);
- how many words are hidden is known beforehand from the texts' lengths, so nothing waits for the device.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fusion.data.batches import Batch
from fusion.models.base import Losses, Term
from fusion.models.fusion import FusionModel, TiedWordHead
from fusion.models.kernels import word_loss
from fusion.models.masking import hidden_counts
from fusion.models.transformer import EncoderLayer, Transformer

Reencode = Callable[[Batch, Tensor], Tensor]  # the batch and its hidden words (B, n) to last_hidden_state (B, n, D)


def losses(model: FusionModel, batch: Batch, reencode: Reencode | None) -> Losses:
    """Both losses of a batch with labels, equal to `model.losses` (eqs 3-25). Without `reencode` pass 2 is left out."""
    counts = hidden_counts(batch.words, model.config.mask_rate)
    emb_text, emb_image = model.embed(batch)
    cross = model.attend(emb_text, emb_image, batch)
    if not model.config.mlm or reencode is None or not counts.any() or emb_text is None:
        return model.sentiment_losses(
            *model.fuse(model.transformer, emb_text, cross, emb_image, batch), batch
        )  # eqs 14-16

    hidden = model.choose_hidden(batch, emb_text, emb_image)
    tokens_masked = reencode(batch, hidden)  # eqs 20-21
    emb_masked = model.embed_text(tokens_masked) if model.config.mask_projection else tokens_masked
    cross_masked = model.attend(emb_masked, emb_image, batch) if model.config.mlm_cross == "masked" else None
    own = model.blocks(emb_masked, cross_masked, None, batch)  # of pass 2; the rest it has in common with pass 1
    places, chosen = _places(hidden, counts)
    two = _TwoPasses(model.blocks(emb_text, cross, emb_image, batch), own, places)
    if model.config.share_transformer:
        fused, words = two.shared(model.transformer)  # eqs 12, 22
    else:
        fused, words = two.separate(model.transformer, model.mlm_transformer)
    judged = model.sentiment_losses(fused, two.mask, batch)  # eqs 14-16
    targets = batch.input_ids.gather(1, places)[chosen]
    mlm = _mlm_loss(model, words[chosen], targets)  # eqs 23-25
    return Losses((*judged.terms, Term("mlm", mlm, int(counts.sum()), model.config.mlm_weight)))  # eq 13


def _places(hidden: Tensor, counts: np.ndarray) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Where the hidden words stand, (B, k) for the largest k, and the index of the real ones among these."""
    k = int(counts.max())
    places = hidden.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :k]
    post, number = np.nonzero(np.arange(k) < counts[:, None])
    return places, (torch.from_numpy(post).to(hidden.device), torch.from_numpy(number).to(hidden.device))


class _TwoPasses:
    """Rows of both passes concatenated as [pass 1 only | shared | pass 2 only]; each pass is one contiguous slice.

    Pass 1 is the front and pass 2 the back of them, overlapping in the middle: T has no positions, so that the order of
    rows does not matter. `blocks` are those of pass 1 and `own` those that pass 2 has instead of the first ones, each
    rows (B, r, d) and mask (B, r). `places` (B, k): the hidden words, counted from the text's first row.
    """

    def __init__(
        self, blocks: Sequence[tuple[Tensor, Tensor]], own: Sequence[tuple[Tensor, Tensor]], places: Tensor
    ) -> None:
        rows, masks = zip(*blocks, *own, strict=True)
        self._rows = torch.cat(rows, dim=1)
        mask = torch.cat(masks, dim=1)
        count = sum(block.shape[1] for block, _ in blocks)
        first = sum(block.shape[1] for block, _ in blocks[: len(own)])
        self._pass1, self._pass2 = slice(0, count), slice(first, first + count)
        self.mask, self._mask2 = mask[:, self._pass1], mask[:, self._pass2]
        self._places = places + (count - first)  # in pass 2, its own rows stand behind those in common

    def shared(self, transformer: Transformer) -> tuple[Tensor, Tensor]:
        """Pass 1's rows and pass 2's hidden words (B, k, d), both through one Transformer."""
        *layers, last = transformer.layers
        if not layers:
            return self.separate(transformer, transformer)
        mask = torch.cat([self.mask, self._mask2])
        x = transformer.run(self._first, layers[0], self._rows)
        for layer in layers[1:]:
            x = transformer.run(layer, x, mask)
        one, two = x.chunk(2)
        return transformer.run(last, one, self.mask), transformer.run(self._last, last, two)

    def separate(self, first: Transformer, second: Transformer) -> tuple[Tensor, Tensor]:
        """The same with a Transformer for each pass."""
        two = self._rows[:, self._pass2]
        *layers, last = second.layers
        for layer in layers:
            two = second.run(layer, two, self._mask2)
        return first(self._rows[:, self._pass1], self.mask), second.run(self._last, last, two)

    def _first(self, layer: EncoderLayer, rows: Tensor) -> Tensor:
        """The first layer of both passes, stacked (2B, r, d); queries, keys and values of common rows made once."""
        passes = ((self._pass1, self.mask), (self._pass2, self._mask2))
        attended = layer.attend(rows, [(which, which, mask) for which, mask in passes])
        return layer.finish(torch.cat([rows[:, which] for which, _ in passes]), attended)

    def _last(self, layer: EncoderLayer, rows: Tensor) -> Tensor:
        """The last layer of pass 2 at the hidden words: (B, k, d)."""
        words = rows.gather(1, self._places[:, :, None].expand(-1, -1, rows.shape[2]))
        return layer.rows_for(words, rows, self._mask2)


def _mlm_loss(model: FusionModel, words: Tensor, targets: Tensor) -> Tensor:
    """Eqs 24-25 at the hidden words (H, d) alone."""
    head = model.mlm_head
    if isinstance(head, TiedWordHead):
        return word_loss(head.map(words), head.word_embeddings, head.bias, targets)
    return word_loss(words, head.weight, head.bias, targets)
