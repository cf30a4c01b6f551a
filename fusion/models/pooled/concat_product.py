"""The projected vectors of text and image side by side with their element-wise product.

Each modality can answer alone, and the product says what depends on both. Beyond the paper.
"""

import torch
from torch import Tensor

from fusion.config import Config
from fusion.models.base import Dimensions
from fusion.models.pooled.vectors import Block, PooledModel


class ConcatProduct(PooledModel):
    title = "concatenation and product of pooled vectors"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions, mixed=3 * config.width, layers=config.layers - 1)
        self.text_block = Block(dimensions.text_vector_width, config.width, config.dropout)
        self.image_block = Block(dimensions.image_vector_width, config.width, config.dropout)

    def mix(self, text: Tensor, image: Tensor) -> Tensor:
        text, image = self.text_block(text), self.image_block(image)
        return torch.cat([text, image, text * image], dim=1)
