"""The paper's model and its two losses (eqs 3-4, 6, 12-16, 20-25)."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch, chunks, mean_of_tokens
from fusion.data.feature_store import Features
from fusion.models.attention import cross_attention
from fusion.models.base import Dimensions, FrozenText, Losses, Model, Term
from fusion.models.label_rule import LabelRule, rule_losses
from fusion.models.masking import image_guidance, maskable_tokens, masked_ids, top_k_mask
from fusion.models.standardised import Standardised
from fusion.models.transformer import Transformer
from pipeline.cache.reader import Cache

_POSTS_AT_ONCE = 64  # whose features are in memory while mean and deviation are taken
SEGMENT_DEVIATION = 0.02  # BERT's; PyTorch's own, 1, would drown the rows that the vectors are added to


class FusionModel(Model):
    """Multi-scale cross-modal feature fusion (Liu et al. 2024), as configured."""

    title = "the full model"

    def __init__(
        self,
        config: Config,
        dimensions: Dimensions,
        *,
        word_embeddings: Tensor | None = None,
    ) -> None:
        """To train, and not otherwise, `tie_mlm_head` needs `word_embeddings` (V, D)."""
        super().__init__(config, dimensions)
        if config.mlm and not config.mask_projection and dimensions.text_width != config.width:
            raise ValueError(
                f"mask_projection: false needs width {dimensions.text_width}, the text encoder's, not {config.width}"
            )
        if config.modalities != "text":
            self.image_projection = nn.Linear(dimensions.channels, config.width)
        if config.modalities != "image":
            self.text_projection = nn.Linear(dimensions.text_width, config.width)
        if config.segment_embeddings:
            self.segments = nn.Embedding(4, config.width)
            nn.init.normal_(self.segments.weight, std=SEGMENT_DEVIATION)
        self.transformer = self._new_transformer()
        read = 2 * config.width if config.pooled_product else config.width  # by eq 15
        self.sentiment_head = LabelRule(read) if config.label_rule else nn.Linear(read, dimensions.classes)
        if config.mlm:
            self.mlm_transformer = self.transformer if config.share_transformer else self._new_transformer()
            if config.tie_mlm_head:
                self.mlm_head: TiedWordHead | nn.Linear = TiedWordHead(config.width, dimensions, word_embeddings)
            else:
                self.mlm_head = nn.Linear(config.width, dimensions.vocabulary)
        self.input_dropout = nn.Dropout(config.input_dropout)
        if config.standardise and config.modalities != "image":
            self.text_standardised = Standardised(dimensions.text_width)
        if config.standardise and config.modalities != "text":
            self.image_standardised = Standardised(dimensions.channels)
        if config.pooled_product:
            self.product_text = nn.Linear(dimensions.text_width, config.width)
            self.product_image = nn.Linear(dimensions.channels, config.width)
            self.product_dropout = nn.Dropout(config.dropout)

    def fit(self, cache: Cache, features: Features | None = None) -> None:
        """With `standardise`, take mean and deviation from the training posts: of the text's real tokens, and of the
        rows of E_I in all views that training shows. Both sets are affine, so that the pooled row stays the patches'
        mean (eq 2).
        """
        if not self.config.standardise:
            return
        rows = cache.rows("train")
        if self.config.modalities != "image":
            self.text_standardised.fit_parts(
                np.concatenate([cache.tokens(row) for row in part]) for part in chunks(rows, _POSTS_AT_ONCE)
            )
        if self.config.modalities != "text":
            views = range(cache.views if self.config.views == "sample" else 1)
            self.image_standardised.fit_parts(
                part for view in views for part in _image_rows(cache, rows, view, _POSTS_AT_ONCE)
            )

    def _new_transformer(self) -> Transformer:
        config = self.config
        return Transformer(
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            feedforward=config.feedforward_width,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Sentiment logits (B, classes): pass 1, eqs 3-4, 6-12, 14-15. A post's logits don't depend on its batch."""
        emb_text, emb_image = self.embed(batch)
        cross = self.attend(emb_text, emb_image, batch)
        return self.classify(*self.fuse(self.transformer, emb_text, cross, emb_image, batch), batch)

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """Both losses of a batch with labels. Without `mlm`, or without a text encoder, pass 2 is left out."""
        emb_text, emb_image = self.embed(batch)
        cross = self.attend(emb_text, emb_image, batch)
        losses = self.sentiment_losses(*self.fuse(self.transformer, emb_text, cross, emb_image, batch), batch)
        if not self.config.mlm or text_encoder is None:
            return losses
        mlm, count = self.mlm_loss(batch, emb_text, emb_image, cross, text_encoder)
        return Losses((*losses.terms, Term("mlm", mlm, count, self.config.mlm_weight)))  # eq 13

    def embed(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Emb_T (B, n, d) and Emb_I (B, 1+m, d), its first row the projected pooled feature; None for a modality not
        used.
        """
        emb_text = emb_image = None
        if self.config.modalities != "image":
            emb_text = self.embed_text(batch.tokens)
        if self.config.modalities != "text":
            image_rows = torch.cat([batch.pooled[:, None], batch.patches], dim=1)  # eq 3
            emb_image = F.gelu(self.image_projection(self.image_features(image_rows)))  # eq 4
        return emb_text, emb_image

    def embed_text(self, tokens: Tensor) -> Tensor:
        return F.gelu(self.text_projection(self.text_features(tokens)))  # eq 6

    def embed_masked(self, tokens: Tensor) -> Tensor:
        """Emb_T^m (B, n, d) from the tokens of the masked texts (B, n, D)."""
        return self.embed_text(tokens) if self.config.mask_projection else self.text_features(tokens)

    def text_features(self, tokens: Tensor) -> Tensor:
        """BERT(T), or vectors of its width, as the model reads them: (..., D). Beyond the paper standardised, and with
        dropout in training.
        """
        features: Tensor = self.input_dropout(self.text_standardised(tokens) if self.config.standardise else tokens)
        return features

    def image_features(self, rows: Tensor) -> Tensor:
        """Rows of E_I as the model reads them, as `text_features`: (..., C)."""
        features: Tensor = self.input_dropout(self.image_standardised(rows) if self.config.standardise else rows)
        return features

    def attend(self, emb_text: Tensor | None, emb_image: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Emb_T' and Emb_I' (eqs 7-11), or None where they are switched off or one modality is missing altogether."""
        if emb_text is None or emb_image is None or not self.config.cross_attention:
            return None
        return cross_attention(emb_text, emb_image, batch.text_mask, scale=self.config.attention_scale)

    def fuse(
        self,
        transformer: Transformer,
        emb_text: Tensor | None,
        cross: tuple[Tensor, Tensor] | None,
        emb_image: Tensor | None,
        batch: Batch,
    ) -> tuple[Tensor, Tensor]:
        """T([T; T'; I'; I]) and the mask of its real rows: (B, 2n+2m+2, d) and (B, 2n+2m+2). Eqs 12, 22."""
        rows, masks = zip(*self.blocks(emb_text, cross, emb_image, batch), strict=True)
        mask = torch.cat(masks, dim=1)
        return transformer(torch.cat(rows, dim=1), mask), mask

    def blocks(
        self, emb_text: Tensor | None, cross: tuple[Tensor, Tensor] | None, emb_image: Tensor | None, batch: Batch
    ) -> list[tuple[Tensor, Tensor]]:
        """T, T', I', I without those that are None, each with the mask of its real rows: (B, r, d) and (B, r)."""
        text_mask = batch.text_mask & batch.has_text[:, None]
        image_mask = batch.has_image[:, None]
        blocks = []
        for segment, (block, mask) in enumerate(
            (
                (emb_text, text_mask),
                (cross and cross[0], text_mask & image_mask),
                (cross and cross[1], image_mask & batch.has_text[:, None]),
                (emb_image, image_mask),
            )
        ):
            if block is not None:
                block = block + self.segments.weight[segment] if self.config.segment_embeddings else block
                blocks.append((block, mask.expand(block.shape[:2])))
        return blocks

    def classify(self, fused: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        """Logits from the maximum over the real rows (eqs 14-15; the softmax is in the loss)."""
        return self.sentiment_head(self.pool(fused, mask, batch))  # eq 15

    def pool(self, fused: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        """What eq 15 reads: the maximum over the real rows, (B, d); with `pooled_product` the product too, (B, 2d)."""
        largest = fused.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)  # eq 14
        return torch.cat([largest, self.product(batch)], dim=1) if self.config.pooled_product else largest

    def product(self, batch: Batch) -> Tensor:
        """The product of both modalities' pooled vectors (B, d), 0 for a post that lacks one. Beyond the paper:

        product = gelu(W_a mean_T + b_a) * gelu(W_b pooled + b_b), element by element, with W_a, b_a, W_b, b_b of its
        own and dropout after each gelu; mean_T the mean of BERT(T) over the real tokens, pooled the first row of E_I,
        both standardised and dropped as before eqs 4 and 6.
        """
        text = self.product_text(self.text_features(mean_of_tokens(batch.tokens, batch.text_mask)))
        image = self.product_image(self.image_features(batch.pooled))
        both = self.product_dropout(F.gelu(text)) * self.product_dropout(F.gelu(image))
        return both * (batch.has_text & batch.has_image)[:, None]

    def sentiment_losses(self, fused: Tensor, mask: Tensor, batch: Batch) -> Losses:
        """The losses of pass 1, in which no word is masked: eq 16, and beyond the paper what else is minimised."""
        pooled, head = self.pool(fused, mask, batch), self.sentiment_head
        if isinstance(head, LabelRule):
            return rule_losses(self, head, pooled, batch)
        return self.label_losses(batch, head(pooled))  # eq 15

    def choose_masked(self, batch: Batch, emb_text: Tensor, emb_image: Tensor | None) -> Tensor:
        """Which word pieces to mask, (B, n) bool: the closest to the image, or random ones (eqs 18-19)."""
        candidates = maskable_tokens(batch.text_mask) & batch.has_text[:, None]
        if self.config.mask_choice == "random" or emb_image is None:
            scores = torch.rand(candidates.shape, device=candidates.device)
        else:
            scores = image_guidance(emb_image[:, 0], emb_text)
        return top_k_mask(scores, candidates, self.config.mask_rate)

    def mlm_loss(
        self,
        batch: Batch,
        emb_text: Tensor | None,
        emb_image: Tensor | None,
        cross: tuple[Tensor, Tensor] | None,
        text_encoder: FrozenText,
    ) -> tuple[Tensor, int]:
        """Predict the masked words from pass 2 (eqs 18-25): mean cross-entropy over all masked positions, and their
        number.
        """
        if emb_text is None:
            raise ValueError("the masked-language loss needs the text modality")
        masked = self.choose_masked(batch, emb_text, emb_image)
        count = int(masked.sum())
        if count == 0:
            return emb_text.new_zeros(()), 0
        ids = masked_ids(batch.input_ids, masked, text_encoder.mask_id)  # eq 20
        tokens_masked = text_encoder.encode(ids, batch.text_mask)  # eq 21
        emb_masked = self.embed_masked(tokens_masked)
        if self.config.mlm_cross == "masked":
            cross = self.attend(emb_masked, emb_image, batch)
        fused, _ = self.fuse(self.mlm_transformer, emb_masked, cross, emb_image, batch)  # eq 22
        words = fused[:, : masked.shape[1]]  # eq 23
        logits = self.mlm_head(words[masked])  # eq 24, at the masked positions only
        return F.cross_entropy(logits, batch.input_ids[masked]), count  # eq 25


def _image_rows(cache: Cache, rows: np.ndarray, view: int, posts: int) -> Iterator[np.ndarray]:
    """The rows of E_I (eq 3) of so many posts at a time, one after the other: ((1+m) x posts, C) each."""
    for part in chunks(rows, posts):
        patches, pooled = cache.gather_images(part, views=np.full(len(part), view))
        yield np.concatenate([pooled, patches.reshape(-1, patches.shape[2])])


class TiedWordHead(nn.Module):
    """Eq 24 with the text encoder's frozen input embeddings (V, D), after a map d -> D where the widths differ."""

    word_embeddings: Tensor

    def __init__(self, width: int, dimensions: Dimensions, word_embeddings: Tensor | None) -> None:
        super().__init__()
        self.map = nn.Identity() if width == dimensions.text_width else nn.Linear(width, dimensions.text_width)
        self.bias = nn.Parameter(torch.zeros(dimensions.vocabulary))
        self.register_buffer("word_embeddings", word_embeddings, persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        return F.linear(self.map(words), self.word_embeddings, self.bias)
