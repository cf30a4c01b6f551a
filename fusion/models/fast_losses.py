"""The training losses without redundant arithmetic; the same sums and gradients as `FusionModel.losses`.

Exact, not approximate:
- both passes go through the shared Transformer as one batch, so that each weight is read once;
- rows that pass 2 has in common with pass 1 are projected once in the first layer;
- the last layer of pass 2 is computed for the masked words alone, among the keys and values of all rows;
- words' logits exist for the masked words alone, and become their own gradient in place (`word_loss`);
- how many words are masked is known beforehand from the texts' lengths, so nothing waits for the device.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fusion.data.batches import Batch
from fusion.models.base import Losses, Term
from fusion.models.fusion import FusionModel, TiedWordHead
from fusion.models.kernels import word_loss
from fusion.models.masking import masked_counts
from fusion.models.transformer import EncoderLayer, Transformer

Reencode = Callable[[Batch, Tensor], Tensor]  # the batch and its masked words (B, n) to last_hidden_state (B, n, D)


def losses(model: FusionModel, batch: Batch, reencode: Reencode | None) -> Losses:
    """Both losses of a batch with labels, equal to `model.losses` (eqs 3-25). Without `reencode` pass 2 is left out."""
    counts = masked_counts(batch.num_maskable, model.config.mask_rate)
    emb_text, emb_image = model.embed(batch)
    cross = model.attend(emb_text, emb_image, batch)
    if not model.config.mlm or reencode is None or not counts.any() or emb_text is None:
        return model.sentiment_losses(
            *model.fuse(model.transformer, emb_text, cross, emb_image, batch), batch
        )  # eqs 14-16

    masked = model.choose_masked(batch, emb_text, emb_image)
    tokens_masked = reencode(batch, masked)  # eqs 20-21
    emb_masked = model.embed_masked(tokens_masked)
    cross_masked = model.attend(emb_masked, emb_image, batch) if model.config.mlm_cross == "masked" else None
    blocks1 = model.blocks(emb_text, cross, emb_image, batch)
    blocks2 = model.blocks(emb_masked, cross_masked, None, batch)  # the others are those of pass 1
    positions, real = _masked_positions(masked, counts)
    passes = _TwoPasses(blocks1, blocks2, positions)
    if model.config.share_transformer:
        fused, words = passes.through_one(model.transformer)  # eqs 12, 22
    else:
        fused, words = passes.through_two(model.transformer, model.mlm_transformer)
    sentiment = model.sentiment_losses(fused, passes.mask, batch)  # eqs 14-16
    targets = batch.input_ids.gather(1, positions)[real]
    mlm = _mlm_loss(model, words[real], targets)  # eqs 23-25
    return Losses((*sentiment.terms, Term("mlm", mlm, int(counts.sum()), model.config.mlm_weight)))  # eq 13


def _masked_positions(masked: Tensor, counts: np.ndarray) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Positions of the masked words, (B, k) for the largest k, and the index of the real ones among these."""
    k = int(counts.max())
    positions = masked.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :k]
    post, number = np.nonzero(np.arange(k) < counts[:, None])
    return positions, (torch.from_numpy(post).to(masked.device), torch.from_numpy(number).to(masked.device))


class _TwoPasses:
    """Rows of both passes concatenated as [pass 1 only | shared | pass 2 only]; each pass is one contiguous slice.

    Pass 1 is the front and pass 2 the back of them, overlapping in the middle: T has no positions, so that the order of
    rows does not matter. `blocks1` are those of pass 1, `blocks2` those that pass 2 has instead of the first ones, each
    rows (B, r, d) and mask (B, r). `positions` (B, k): the masked words, counted from the text's first row.
    """

    def __init__(
        self, blocks1: Sequence[tuple[Tensor, Tensor]], blocks2: Sequence[tuple[Tensor, Tensor]], positions: Tensor
    ) -> None:
        rows, masks = zip(*blocks1, *blocks2, strict=True)
        self._rows = torch.cat(rows, dim=1)
        mask = torch.cat(masks, dim=1)
        count = sum(block.shape[1] for block, _ in blocks1)
        first = sum(block.shape[1] for block, _ in blocks1[: len(blocks2)])
        self._pass1, self._pass2 = slice(0, count), slice(first, first + count)
        self.mask, self._mask2 = mask[:, self._pass1], mask[:, self._pass2]
        self._positions = positions + (count - first)  # in pass 2, its own rows follow those in common

    def through_one(self, transformer: Transformer) -> tuple[Tensor, Tensor]:
        """Pass 1's rows and pass 2's masked words (B, k, d), both through one Transformer."""
        *layers, last = transformer.layers
        if not layers:
            return self.through_two(transformer, transformer)
        mask = torch.cat([self.mask, self._mask2])
        x = transformer.run_layer(self._first, layers[0], self._rows)
        for layer in layers[1:]:
            x = transformer.run_layer(layer, x, mask)
        rows1, rows2 = x.chunk(2)
        return transformer.run_layer(last, rows1, self.mask), transformer.run_layer(self._last, last, rows2)

    def through_two(self, first: Transformer, second: Transformer) -> tuple[Tensor, Tensor]:
        """The same with a Transformer for each pass."""
        rows2 = self._rows[:, self._pass2]
        *layers, last = second.layers
        for layer in layers:
            rows2 = second.run_layer(layer, rows2, self._mask2)
        return first(self._rows[:, self._pass1], self.mask), second.run_layer(self._last, last, rows2)

    def _first(self, layer: EncoderLayer, rows: Tensor) -> Tensor:
        """The first layer of both passes, stacked (2B, r, d); queries, keys and values of common rows made once."""
        passes = ((self._pass1, self.mask), (self._pass2, self._mask2))
        attended = layer.self_attend(rows, [(which, which, mask) for which, mask in passes])
        return layer.residual_ffn(torch.cat([rows[:, which] for which, _ in passes]), attended)

    def _last(self, layer: EncoderLayer, rows: Tensor) -> Tensor:
        """The last layer of pass 2 at the masked words: (B, k, d)."""
        words = rows.gather(1, self._positions[:, :, None].expand(-1, -1, rows.shape[2]))
        return layer.forward_queries(words, rows, self._mask2)


def _mlm_loss(model: FusionModel, words: Tensor, targets: Tensor) -> Tensor:
    """Eqs 24-25 at the masked words (H, d) alone."""
    head = model.mlm_head
    if isinstance(head, TiedWordHead):
        return word_loss(head.map(words), head.word_embeddings, head.bias, targets)
    return word_loss(words, head.weight, head.bias, targets)
