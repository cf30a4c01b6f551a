"""Co-MN-Hop (Xu, Mao and Chen, SIGIR 2018): a memory of words and a memory of regions, each read by the other.

From the source (readers' notes, and the description in Liu et al.): an image memory of region vectors and a
text memory of words; in each hop, each memory is read by attention with the other modality's state as the
query; after some hops the two states, side by side, are classified.
Reconstruction: additive attention, as in the first author's later code (github.com/xunan0812/MIMN), shared by
all hops; states begin as the memories' means and grow by what is read (end-to-end memory networks); hops are
`layers` (the notes say 2 to 6).
Reads `width`, `layers` and `dropout`.
"""

import torch
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.base import Dimensions, Model
from fusion.models.baselines.parts import AdditiveAttention, masked_mean


class CoMnHop(Model):
    title = "Co-MN-Hop"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        width = config.width
        self.words = nn.Linear(dimensions.text_width, width)
        self.regions = nn.Linear(dimensions.channels, width)
        self.image_asks_text = AdditiveAttention(width, width, width)
        self.text_asks_image = AdditiveAttention(width, width, width)
        self.head = nn.Linear(2 * width, dimensions.classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        words, regions = self.words(batch.tokens), self.regions(batch.patches)  # the memories (B, n, d), (B, m, d)
        text, image = masked_mean(words, batch.text_mask), regions.mean(dim=1)
        for _ in range(self.config.layers):
            text_read = self.image_asks_text(words, image, batch.text_mask)
            image_read = self.text_asks_image(regions, text)
            text, image = text + text_read, image + image_read
        return self.head(self.dropout(torch.cat([text, image], dim=1)))
